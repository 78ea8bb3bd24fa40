// The decoder of pomona/model/decoder.py, computed on packed weights for one sequence.
//
// Tokens go through it in chunks of at most CHUNK; all threads run the same function and share out rows of matrices,
// tokens or heads between barriers. Keys and values are int8 with a scale for every head of every token.
//
// Shapes: C tokens of a chunk, D model, N query heads, K key-value heads, H head, F feed-forward, V vocabulary.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "device.h"
#include "kernels.h"
#include "team.h"

namespace pomona {
namespace {

constexpr int CHUNK = 64;

const Kernels *kernels_called(const std::string &set) {
    for (const Kernels *each : {avx512_kernels(), avx2_kernels(), portable_kernels()})
        if (each && (set.empty() || set == each->name)) return each;
    return nullptr;
}

Matrix matrix(const PomonaMatrix &m) { return {m.packed, m.tables, m.factors, m.bits, m.inputs, m.outputs}; }

int padded(int inputs) { return (inputs + BLOCK - 1) / BLOCK * BLOCK; }

// The part [first, last) of `count` things that a thread takes.
struct Share {
    int first, last;
    Share(int count, int index, int of)
        : first((int)((int64_t)count * index / of)), last((int)((int64_t)count * (index + 1) / of)) {}
};

// Memory on cache-line boundaries.
class Memory {
  public:
    template <typename T>
    T *array(int64_t count) {
        const int64_t bytes = (count * (int64_t)sizeof(T) + 63) / 64 * 64 + 64;
        void *place = std::aligned_alloc(64, (size_t)bytes);
        if (!place) throw std::bad_alloc();
        std::memset(place, 0, (size_t)bytes);
        held_.emplace_back(place, std::free);
        return (T *)place;
    }
    Quantized quantized(int64_t tokens, int inputs) {
        const int size = padded(inputs);
        return {array<int8_t>(tokens * size), array<float>(tokens * size / BLOCK), array<int32_t>(tokens * size / BLOCK)};
    }

  private:
    std::vector<std::unique_ptr<void, void (*)(void *)>> held_;
};

}  // namespace
}  // namespace pomona

using namespace pomona;

struct PomonaSession {
    PomonaModel model;
    PomonaArchitecture a;
    const Kernels &with;
    Team team;
    Memory memory;
    int context, length = 0;

    float *x, *normed, *query, *key, *value, *attended, *gate, *up, *hidden;  // [C][...]
    Quantized by_model, by_heads, by_ffn;
    float *cos, *sin;             // [context][H / 2]
    int8_t *keys, *values;        // [layers][K][context][H]
    float *key_scales, *value_scales;  // [layers][K][context]
    float *scores;                // [threads][N / K][context + 16]

    PomonaSession(const PomonaModel &m, int room, int threads, const Kernels &kernels)
        : model(m), a(m.architecture), with(kernels), team(threads), context(room) {
        const int64_t heads = (int64_t)a.num_heads * a.head_dim, kv = (int64_t)a.num_kv_heads * a.head_dim;
        x = memory.array<float>((int64_t)CHUNK * a.model_dim);
        normed = memory.array<float>((int64_t)CHUNK * a.model_dim);
        query = memory.array<float>(CHUNK * heads);
        key = memory.array<float>(CHUNK * kv);
        value = memory.array<float>(CHUNK * kv);
        attended = memory.array<float>(CHUNK * heads);
        gate = memory.array<float>((int64_t)CHUNK * a.ffn_dim);
        up = memory.array<float>((int64_t)CHUNK * a.ffn_dim);
        hidden = memory.array<float>((int64_t)CHUNK * model.embedding.outputs);
        by_model = memory.quantized(CHUNK, a.model_dim);
        by_heads = memory.quantized(CHUNK, (int)heads);
        by_ffn = memory.quantized(CHUNK, a.ffn_dim);
        const int64_t half = a.head_dim / 2, cells = (int64_t)a.num_layers * a.num_kv_heads * context;
        cos = memory.array<float>(context * half);
        sin = memory.array<float>(context * half);
        for (int64_t i = 0; i < context * half; i++) {
            const double angle = (double)(i / half) * std::pow(a.rope_base, -(double)(i % half) / (double)half);
            cos[i] = (float)std::cos(angle);
            sin[i] = (float)std::sin(angle);
        }
        keys = memory.array<int8_t>(cells * a.head_dim);
        values = memory.array<int8_t>(cells * a.head_dim);
        key_scales = memory.array<float>(cells);
        value_scales = memory.array<float>(cells);
        scores = memory.array<float>((int64_t)threads * (a.num_heads / a.num_kv_heads) * (context + 16));
    }

    // out [C][outputs] = the first `count` vectors times a matrix: this thread's share of its rows.
    void product(const PomonaMatrix &m, const Quantized &vectors, int count, float *out, int index) {
        const Matrix weights = matrix(m);
        const Share mine(m.outputs / GROUP, index, team.size());
        for (int group = mine.first; group < mine.last; group++)
            for (int first = 0; first < count; first += ROWS)
                with.group(weights, group, vectors, first, std::min(ROWS, count - first),
                           out + (int64_t)first * m.outputs + group * GROUP, m.outputs);
    }

    void normalize(const float *weight, int count, int index) {
        const Share mine(count, index, team.size());
        for (int t = mine.first; t < mine.last; t++) {
            float *out = normed + (int64_t)t * a.model_dim;
            with.rms_norm(x + (int64_t)t * a.model_dim, weight, a.norm_epsilon, a.model_dim, out);
            with.quantize(out, a.model_dim, padded(a.model_dim), by_model, t);
        }
        team.meet();
    }

    void add(const float *more, int count, int index) {
        const Share mine(count * a.model_dim, index, team.size());
        for (int i = mine.first; i < mine.last; i++) x[i] += more[i];
        team.meet();
    }

    // Normalised and turned in place.
    void turn(float *head, const float *weight, int position) {
        const int half = a.head_dim / 2;
        with.rms_norm(head, weight, a.norm_epsilon, a.head_dim, head);
        const float *c = cos + (int64_t)position * half, *s = sin + (int64_t)position * half;
        for (int i = 0; i < half; i++) {
            const float one = head[i], other = head[i + half];
            head[i] = one * c[i] - other * s[i];
            head[i + half] = other * c[i] + one * s[i];
        }
    }

    void place_heads(const PomonaLayer &layer, int number, int count, int index) {
        const int H = a.head_dim, N = a.num_heads, K = a.num_kv_heads;
        const Share mine(count * (N + K), index, team.size());
        for (int i = mine.first; i < mine.last; i++) {
            const int t = i / (N + K), head = i % (N + K);
            if (head < N) {
                turn(query + ((int64_t)t * N + head) * H, layer.query_norm, length + t);
                continue;
            }
            float *k = key + ((int64_t)t * K + head - N) * H;
            turn(k, layer.key_norm, length + t);
            const int64_t cell = ((int64_t)number * K + head - N) * context + length + t;
            key_scales[cell] = with.narrow(k, H, keys + cell * H);
            value_scales[cell] = with.narrow(value + ((int64_t)t * K + head - N) * H, H, values + cell * H);
        }
        team.meet();
    }

    // The query heads that share a key head are taken together: its keys and values are read once for all of them.
    void attend(int number, int count, int index) {
        const int H = a.head_dim, N = a.num_heads, K = a.num_kv_heads, G = N / K;
        const float scale = 1.0f / std::sqrt((float)H);
        float *own = scores + (int64_t)index * G * (context + 16);
        const Share mine(count * K, index, team.size());
        for (int i = mine.first; i < mine.last; i++) {
            const int t = i / K, head = i % K, seen = length + t + 1;
            const int64_t cells = ((int64_t)number * K + head) * context;
            const float *q = query + ((int64_t)t * N + (int64_t)head * G) * H;
            float *out = attended + ((int64_t)t * N + (int64_t)head * G) * H;
            for (int p = 0; p < seen; p++)
                for (int g = 0; g < G; g++)
                    own[(int64_t)g * (context + 16) + p] =
                        with.dot(q + (int64_t)g * H, keys + (cells + p) * H, H) * (key_scales[cells + p] * scale);
            for (int g = 0; g < G; g++) {
                float *weights = own + (int64_t)g * (context + 16);
                const float total = with.softmax(weights, seen);
                for (int p = 0; p < seen; p++) weights[p] = weights[p] / total * value_scales[cells + p];
            }
            std::memset(out, 0, sizeof(float) * (size_t)G * H);
            for (int p = 0; p < seen; p++)
                for (int g = 0; g < G; g++)
                    with.add_scaled(out + (int64_t)g * H, values + (cells + p) * H, own[(int64_t)g * (context + 16) + p], H);
        }
        team.meet();
    }

    void quantize_all(const float *from, int size, const Quantized &to, int count, int index) {
        const Share mine(count, index, team.size());
        for (int t = mine.first; t < mine.last; t++) with.quantize(from + (int64_t)t * size, size, padded(size), to, t);
        team.meet();
    }

    void embed(const int32_t *tokens, int count, int index) {
        const Share mine(count, index, team.size());
        for (int t = mine.first; t < mine.last; t++) {
            const int token = tokens[t], lane = token % GROUP;
            const uint8_t *row = model.embedding.packed + (int64_t)(token / GROUP) * model.embedding.inputs * GROUP;
            for (int d = 0; d < a.model_dim; d++)
                x[(int64_t)t * a.model_dim + d] =
                    (float)(int8_t)row[d / 4 * 64 + lane * 4 + d % 4] * model.embedding.factors[token];
        }
        team.meet();
    }

    void layers(int count, int index) {
        for (int number = 0; number < a.num_layers; number++) {
            const PomonaLayer &layer = model.layers[number];
            normalize(layer.attention_norm, count, index);
            product(layer.query, by_model, count, query, index);
            product(layer.key, by_model, count, key, index);
            product(layer.value, by_model, count, value, index);
            team.meet();
            place_heads(layer, number, count, index);
            attend(number, count, index);
            quantize_all(attended, a.num_heads * a.head_dim, by_heads, count, index);
            product(layer.output, by_heads, count, normed, index);
            team.meet();
            add(normed, count, index);
            normalize(layer.ffn_norm, count, index);
            product(layer.gate, by_model, count, gate, index);
            product(layer.up, by_model, count, up, index);
            team.meet();
            const Share mine(count * (a.ffn_dim / GROUP), index, team.size());
            const int64_t first = (int64_t)mine.first * GROUP;
            with.gated(gate + first, up + first, (mine.last - mine.first) * GROUP, gate + first);
            team.meet();
            quantize_all(gate, a.ffn_dim, by_ffn, count, index);
            product(layer.down, by_ffn, count, normed, index);
            team.meet();
            add(normed, count, index);
        }
    }

    // Logits of the last of `count` tokens of this chunk, or of all.
    void head(int count, bool every, int index) {
        if (!every && count > 1) {
            if (index == 0) std::memcpy(x, x + (int64_t)(count - 1) * a.model_dim, sizeof(float) * (size_t)a.model_dim);
            team.meet();
        }
        normalize(model.final_norm, every ? count : 1, index);
        product(model.embedding, by_model, every ? count : 1, hidden, index);
    }

    void take_logits(int rows, float *logits) {
        for (int t = 0; t < rows; t++) {
            const float *from = hidden + (int64_t)t * model.embedding.outputs;
            std::memcpy(logits + (int64_t)t * a.vocab_size, from, sizeof(float) * (size_t)a.vocab_size);
        }
    }

    bool advance(const int32_t *tokens, int total, bool every, float *logits) {
        if (total > context - length) return false;
        for (int first = 0; first < total; first += CHUNK) {
            const int count = std::min(CHUNK, total - first);
            const bool last = first + count == total;
            team.run([&](int index) {
                embed(tokens + first, count, index);
                layers(count, index);
                if (every || last) head(count, every, index);
            });
            if (every || last) take_logits(every ? count : 1, logits + (every ? (int64_t)first * a.vocab_size : 0));
            length += count;
        }
        return true;
    }
};

extern "C" {

const char *pomona_instruction_sets(void) {
    static const std::string names = [] {
        std::string found;
        for (const Kernels *each : {avx512_kernels(), avx2_kernels(), portable_kernels()})
            if (each) found += (found.empty() ? "" : ",") + std::string(each->name);
        return found;
    }();
    return names.c_str();
}

PomonaSession *pomona_open(const PomonaModel *model, int32_t context, int32_t threads, const char *set) {
    const Kernels *kernels = kernels_called(set);
    if (!kernels) return nullptr;
    try {
        return new PomonaSession(*model, context, threads, *kernels);
    } catch (const std::exception &) {  // no memory, or no threads
        return nullptr;
    }
}

void pomona_close(PomonaSession *session) { delete session; }

int32_t pomona_advance(PomonaSession *session, const int32_t *tokens, int32_t count, int32_t every, float *logits) {
    return session->advance(tokens, count, every != 0, logits) ? 0 : 1;
}

int32_t pomona_length(const PomonaSession *session) { return session->length; }

void pomona_forget(PomonaSession *session, int32_t length) {
    if (length < session->length) session->length = length < 0 ? 0 : length;
}

int32_t pomona_product(const PomonaMatrix *m, const float *x, int32_t size, int32_t tokens, const char *set, float *out) {
    const Kernels *kernels = kernels_called(set);
    if (!kernels) return 1;
    Memory memory;
    const Quantized vectors = memory.quantized(tokens, size);
    for (int t = 0; t < tokens; t++) kernels->quantize(x + (int64_t)t * size, size, padded(size), vectors, t);
    const Matrix weights = matrix(*m);
    for (int group = 0; group < m->outputs / GROUP; group++)
        for (int first = 0; first < tokens; first += ROWS)
            kernels->group(weights, group, vectors, first, std::min(ROWS, tokens - first),
                           out + (int64_t)first * m->outputs + group * GROUP, m->outputs);
    return 0;
}

double pomona_read_seconds(const uint8_t *data, int64_t bytes, int32_t threads, int32_t times) {
    Team team(threads);
    double best = 1e30;
    std::atomic<uint64_t> sink{0};
    for (int turn = 0; turn < times; turn++) {
        const auto begin = std::chrono::steady_clock::now();
        team.run([&](int index) {
            const int64_t words = bytes / 64, first = words * index / threads, last = words * (index + 1) / threads;
            uint64_t sums[8] = {};
            for (int64_t i = first; i < last; i++) {
                uint64_t line[8];
                std::memcpy(line, data + i * 64, 64);
                for (int j = 0; j < 8; j++) sums[j] += line[j];
            }
            for (uint64_t each : sums) sink += each;
        });
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
        best = std::min(best, took.count());
    }
    return best;
}

}  // extern "C"
