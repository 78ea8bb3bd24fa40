// Plain C++: what every processor runs, and what the other instruction sets are compared with.
#include "kernels.h"

namespace pomona {
namespace {

struct Table { int8_t entries[16]; };

inline Table spread(const int8_t *entries) {
    Table table;
    __builtin_memcpy(table.entries, entries, 16);
    return table;
}

// dots[t][lane] = the sum over a block of 64 inputs of weight * integer.
template <int BITS, int TOKENS, typename Integers>
inline void dot_block(const uint8_t *packed, const Table &table, const int8_t *x, int stride, const int32_t *, int, Integers *dots) {
    constexpr int HERE = 8 / BITS * 4;  // inputs in 64 bytes
    for (int t = 0; t < TOKENS; t++) dots[t] = Integers{};
    for (int k = 0; k < BLOCK; k += HERE, packed += 64)
        for (int byte = 0; byte < 64; byte++)
            for (int part = 0; part < 8 / BITS; part++) {
                const int index = packed[byte] >> (part * BITS & 7) & ((1 << BITS) - 1);
                const int weight = BITS == 8 ? (int8_t)packed[byte] : table.entries[index & 15];
                for (int t = 0; t < TOKENS; t++) dots[t][byte / 4] += weight * x[(int64_t)t * stride + k + part * 4 + byte % 4];
            }
}

constexpr int MOST = 4;
#include "lanes.inc"

const Kernels KERNELS = POMONA_KERNELS("portable");

}  // namespace

const Kernels *portable_kernels() { return &KERNELS; }

}  // namespace pomona
