// What tests and benches ask for: the instruction sets, one product, the speed of the memory.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <vector>

#include "device.h"
#include "kernels.h"
#include "memory.h"
#include "team.h"

namespace pomona {

// Best first.
static std::vector<const Kernels *> all_kernels() {
    std::vector<const Kernels *> found;
    for (const Kernels *each : {avx512_kernels(), avxvnni_kernels(), avx2_kernels(), neon_kernels(), portable_kernels()})
        if (each) found.push_back(each);
    return found;
}

const Kernels *kernels_called(const char *name) {
    for (const Kernels *each : all_kernels())
        if (!*name || !std::strcmp(name, each->name)) return each;
    return nullptr;
}

}  // namespace pomona

using namespace pomona;

extern "C" {

const char *pomona_instruction_sets(void) {
    static const std::string names = [] {
        std::string found;
        for (const Kernels *each : all_kernels()) found += (found.empty() ? "" : ",") + std::string(each->name);
        return found;
    }();
    return names.c_str();
}

int32_t pomona_product(const PomonaMatrix *m, const float *x, int32_t size, int32_t tokens, const char *set, float *out) {
    const Kernels *kernels = kernels_called(set);
    if (!kernels) return 1;
    Memory memory;
    const Quantized vectors = memory.quantized(tokens, size);
    const int wide = padded(size);
    for (int t = 0; t < tokens; t++) kernels->quantize(x + (int64_t)t * size, size, wide, vectors, t, 0, wide / BLOCK);
    const Matrix weights = {m->packed, m->tables, m->factors, m->bits, m->inputs, m->outputs};
    for (int group = 0; group < m->outputs / GROUP; group++)
        for (int first = 0; first < tokens; first += ROWS)
            kernels->group(weights, group, vectors, first, std::min(ROWS, tokens - first),
                           out + (int64_t)first * m->outputs + group * GROUP, m->outputs);
    return 0;
}

typedef uint64_t Line __attribute__((vector_size(64)));

double pomona_read_seconds(const uint8_t *data, int64_t bytes, int32_t threads, int32_t times) {
    Team team(threads);
    double best = 1e30;
    std::atomic<uint64_t> sink{0};
    for (int turn = 0; turn < times; turn++) {
        const auto begin = std::chrono::steady_clock::now();
        team.run([&](int index) {
            const int64_t words = bytes / 64, first = words * index / threads, last = words * (index + 1) / threads;
            Line sums[2] = {};
            for (int64_t i = first; i < last; i++) {
                Line line;
                std::memcpy(&line, data + i * 64, 64);
                __builtin_prefetch(data + i * 64 + 8192);
                sums[i % 2] += line;
            }
            for (int j = 0; j < 8; j++) sink += sums[0][j] + sums[1][j];
        });
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
        best = std::min(best, took.count());
    }
    return best;
}

}  // extern "C"
