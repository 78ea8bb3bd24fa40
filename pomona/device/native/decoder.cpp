// The decoder of pomona/model/decoder.py, computed on packed weights for the next tokens of several sequences.
//
// Tokens of all sequences are rows, and go through the layers in chunks of at most CHUNK: every weight that is read
// serves all rows of its chunk. All threads run the same function and share out rows of matrices, tokens or heads between
// barriers. An adapter's first factor is one more matrix beside those with the same input; its second is added by whoever
// takes up the product next, so it costs no barrier.
//
// Shapes: C rows of a chunk, D model, N query heads, K key-value heads, H head, F feed-forward, V vocabulary.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "attention.h"
#include "device.h"
#include "kernels.h"
#include "memory.h"
#include "team.h"

namespace pomona {
namespace {

constexpr int CHUNK = 72;  // six times ROWS
constexpr int PLACES = 7;
enum Place { QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN };

// Rows of one sequence within a chunk.
struct Run {
    const PomonaPart *part;
    int begin;     // of its tokens
    int row, count;
    int position;  // of the first token
};

// One product of the rows from `first` on.
struct Product {
    const PomonaMatrix *matrix;
    const Quantized *vectors;
    int first, count;
    float *out;    // of row 0
    int64_t stride;
};

}  // namespace
}  // namespace pomona

using namespace pomona;

struct PomonaEngine {
    PomonaModel model;
    PomonaArchitecture a;
    const Kernels &with;
    Team team;
    Memory memory;
    std::unique_ptr<Memory> longest;   // what `attention` computes in
    std::vector<Attention> attention;  // one a thread
    int room = 0;
    std::vector<std::vector<Product>> lists;  // one a thread

    std::vector<Run> runs;                                     // of this chunk
    int rows = 0;
    std::vector<const Run *> run_of;                           // [C]
    std::vector<int> wanted, felt;                             // rows whose logits, or hidden states, are asked for
    std::vector<double> frequencies;                           // [H / 2]
    float *cos, *sin;                                          // [C][H / 2]
    float *x, *normed, *query, *key, *value, *attended, *gate, *up, *hidden;  // [C][...]
    float *low;                                                // [C][PLACES][LARGEST_RANK]
    int8_t *narrowed;                                          // [threads][H]
    Quantized by_model, by_heads, by_ffn;

    PomonaEngine(const PomonaModel &m, int threads, const Kernels &kernels)
        : model(m), a(m.architecture), with(kernels), team(threads), lists((size_t)threads), run_of(CHUNK) {
        const int64_t heads = (int64_t)a.num_heads * a.head_dim, kv = (int64_t)a.num_kv_heads * a.head_dim, half = a.head_dim / 2;
        for (int i = 0; i < half; i++) frequencies.push_back(std::pow(a.rope_base, -(double)i / (double)half));
        cos = memory.array<float>(CHUNK * half);
        sin = memory.array<float>(CHUNK * half);
        x = memory.array<float>((int64_t)CHUNK * a.model_dim);
        normed = memory.array<float>((int64_t)CHUNK * a.model_dim);
        query = memory.array<float>(CHUNK * heads);
        key = memory.array<float>(CHUNK * kv);
        value = memory.array<float>(CHUNK * kv);
        attended = memory.array<float>(CHUNK * heads);
        gate = memory.array<float>((int64_t)CHUNK * a.ffn_dim);
        up = memory.array<float>((int64_t)CHUNK * a.ffn_dim);
        hidden = memory.array<float>((int64_t)CHUNK * model.embedding.outputs);
        low = memory.array<float>((int64_t)CHUNK * PLACES * POMONA_LARGEST_RANK);
        narrowed = memory.array<int8_t>((int64_t)threads * a.head_dim);
        by_model = memory.quantized(CHUNK, a.model_dim);
        by_heads = memory.quantized(CHUNK, (int)heads);
        by_ffn = memory.quantized(CHUNK, a.ffn_dim);
    }

    // Room for attention over `tokens` positions.
    void reach(int tokens) {
        if (padded(tokens) <= room) return;
        auto more = std::make_unique<Memory>();
        std::vector<Attention> each;
        for (int index = 0; index < team.size(); index++) each.emplace_back(*more, a.head_dim, padded(tokens));
        attention = std::move(each);
        longest = std::move(more);
        room = padded(tokens);
    }

    // This thread's groups of several products, shared out by the bytes they read.
    void multiply(std::vector<Product> &products, int index) {
        int64_t total = 0, before = 0;
        for (const Product &p : products) total += (int64_t)p.matrix->outputs / GROUP * p.matrix->inputs * p.matrix->bits;
        const int64_t begin = total * index / team.size(), end = total * (index + 1) / team.size();
        for (const Product &p : products) {
            const PomonaMatrix &m = *p.matrix;
            const Matrix weights = {m.packed, m.tables, m.factors, m.bits, m.inputs, m.outputs};
            const int64_t groups = m.outputs / GROUP, each = (int64_t)m.inputs * m.bits;
            const auto at = [&](int64_t place) { return std::clamp<int64_t>((place - before + each - 1) / each, 0, groups); };
            for (int64_t group = at(begin), last = at(end); group < last; group++)
                for (int row = p.first; row < p.first + p.count; row += ROWS)
                    with.group(weights, (int)group, *p.vectors, row, std::min(ROWS, p.first + p.count - row),
                               p.out + row * p.stride + group * GROUP, (int)p.stride);
            before += groups * each;
        }
        products.clear();
    }

    // One projection of all rows, and what their adapters make of its input.
    void project(int layer, Place place, const PomonaMatrix &m, const Quantized &vectors, float *out, int index) {
        lists[(size_t)index].push_back({&m, &vectors, 0, rows, out, m.outputs});
        for (const Run &run : runs)
            if (run.part->adapter)
                lists[(size_t)index].push_back({&run.part->adapter[layer].places[place].a, &vectors, run.row, run.count,
                                                low + place * POMONA_LARGEST_RANK, PLACES * POMONA_LARGEST_RANK});
    }

    // Adds what a row's adapter has for `groups` groups of 16 outputs from `first` on.
    void correct(int layer, Place place, int row, float *out, int first, int groups) {
        const PomonaAdapterLayer *adapter = run_of[(size_t)row]->part->adapter;
        if (!adapter) return;
        const PomonaLowRank &own = adapter[layer].places[place];
        const int rank = own.a.outputs;
        with.low_rank(out, own.b + (int64_t)first * rank * GROUP, own.factors + first * GROUP,
                      low + ((int64_t)row * PLACES + place) * POMONA_LARGEST_RANK, rank, groups);
    }

    // work(row, first, count): this thread's share of `each` parts of every row.
    template <typename Work>
    void spans(int each, int index, Work work) {
        const Share mine((int64_t)rows * each, index, team.size());
        for (int from = mine.first; from < mine.last;) {
            const int count = std::min(each - from % each, mine.last - from);
            work(from / each, from % each, count);
            from += count;
        }
        team.meet();
    }

    // Row `t` of by_model is row[t] of x, or row t without a list, normalised and rounded.
    void normalize(const float *weight, const int *row, int count, int index) {
        const Share mine(count, index, team.size());
        for (int t = mine.first; t < mine.last; t++) {
            float *out = normed + (int64_t)t * a.model_dim;
            with.rms_norm(x + (int64_t)(row ? row[t] : t) * a.model_dim, weight, a.norm_epsilon, a.model_dim, out);
            with.quantize(out, a.model_dim, padded(a.model_dim), by_model, t, 0, padded(a.model_dim) / BLOCK);
        }
        team.meet();
    }

    // x += product.
    void add(int layer, Place place, float *product, int index) {
        spans(a.model_dim / GROUP, index, [&](int row, int first, int count) {
            const int64_t from = (int64_t)row * a.model_dim + first * GROUP;
            correct(layer, place, row, product + from, first, count);
            for (int64_t i = from; i < from + count * GROUP; i++) x[i] += product[i];
        });
    }

    // Normalised and turned in place.
    void turn(float *head, const float *weight, int row) {
        const int half = a.head_dim / 2;
        with.rms_norm(head, weight, a.norm_epsilon, a.head_dim, head);
        const float *c = cos + (int64_t)row * half, *s = sin + (int64_t)row * half;
        for (int i = 0; i < half; i++) {
            const float one = head[i], other = head[i + half];
            head[i] = one * c[i] - other * s[i];
            head[i + half] = other * c[i] + one * s[i];
        }
    }

    void place_heads(const PomonaLayer &layer, int number, int index) {
        const int H = a.head_dim, N = a.num_heads, K = a.num_kv_heads, groups = H / GROUP;
        int8_t *narrow = narrowed + (int64_t)index * H;
        spans(N + K, index, [&](int row, int first, int count) {
            const Run &run = *run_of[(size_t)row];
            const int position = run.position + row - run.row;
            for (int head = first; head < first + count; head++) {
                if (head < N) {
                    float *q = query + ((int64_t)row * N + head) * H;
                    correct(number, QUERY, row, q, head * groups, groups);
                    turn(q, layer.query_norm, row);
                    continue;
                }
                const int own = head - N;
                float *k = key + ((int64_t)row * K + own) * H, *v = value + ((int64_t)row * K + own) * H;
                correct(number, KEY, row, k, own * groups, groups);
                correct(number, VALUE, row, v, own * groups, groups);
                turn(k, layer.key_norm, row);
                float scale = with.narrow(k, H, narrow);
                run.part->sequence->keep_key(number, own, position, narrow, scale);
                scale = with.narrow(v, H, narrow);
                run.part->sequence->keep_value(number, own, position, narrow, scale);
            }
        });
    }

    // Tiles of queries that share a key-value head are shared out.
    void attend(int number, int index) {
        const int H = a.head_dim, N = a.num_heads, K = a.num_kv_heads, G = N / K;
        const auto tiles = [&](const Run &run) { return (run.count * G + PAIRS - 1) / PAIRS; };
        int64_t total = 0, before = 0;
        for (const Run &run : runs) total += (int64_t)K * tiles(run);
        const Share mine(total, index, team.size());
        for (const Run &run : runs) {
            const int64_t own = (int64_t)K * tiles(run);
            for (int64_t i = std::max<int64_t>(mine.first - before, 0); i < std::min(mine.last - before, own); i++) {
                const int head = (int)(i / tiles(run)), first = (int)(i % tiles(run)) * PAIRS;
                const int64_t from = ((int64_t)run.row * N + (int64_t)head * G) * H;
                const Queries queries = {query + from, attended + from, G, (int64_t)N * H, run.position};
                attention[(size_t)index].attend(with, *run.part->sequence, number, head, queries, first,
                                                std::min(PAIRS, run.count * G - first));
            }
            before += own;
        }
        team.meet();
        const Share tokens(rows, index, team.size());
        const int size = N * H, wide = padded(size);
        for (int t = tokens.first; t < tokens.last; t++)
            with.quantize(attended + (int64_t)t * size, size, wide, by_heads, t, 0, wide / BLOCK);
        team.meet();
    }

    // silu(gate) * up, rounded.
    void gated(int layer, int index) {
        const int F = a.ffn_dim, wide = padded(F);
        spans(wide / BLOCK, index, [&](int row, int first, int count) {
            const int begin = first * BLOCK, size = std::min(F, (first + count) * BLOCK) - begin;
            float *g = gate + (int64_t)row * F + begin, *u = up + (int64_t)row * F + begin;
            correct(layer, GATE, row, g, begin / GROUP, size / GROUP);
            correct(layer, UP, row, u, begin / GROUP, size / GROUP);
            with.gated(g, u, size, g);
            with.quantize(gate + (int64_t)row * F, F, wide, by_ffn, row, first, first + count);
        });
    }

    void embed(int index) {
        const int half = a.head_dim / 2;
        const Share mine(rows, index, team.size());
        for (int row = mine.first; row < mine.last; row++) {
            const Run &run = *run_of[(size_t)row];
            const int place = row - run.row, token = run.part->tokens[run.begin + place], lane = token % GROUP;
            const uint8_t *from = model.embedding.packed + (int64_t)(token / GROUP) * model.embedding.inputs * GROUP;
            for (int d = 0; d < a.model_dim; d++)
                x[(int64_t)row * a.model_dim + d] =
                    (float)(int8_t)from[d / 4 * 64 + lane * 4 + d % 4] * model.embedding.factors[token];
            for (int i = 0; i < half; i++) {
                const double angle = (run.position + place) * frequencies[(size_t)i];
                cos[(int64_t)row * half + i] = (float)std::cos(angle);
                sin[(int64_t)row * half + i] = (float)std::sin(angle);
            }
        }
        team.meet();
    }

    void layers(int index) {
        std::vector<Product> &products = lists[(size_t)index];
        for (int number = 0; number < a.num_layers; number++) {
            const PomonaLayer &layer = model.layers[number];
            normalize(layer.attention_norm, nullptr, rows, index);
            project(number, QUERY, layer.query, by_model, query, index);
            project(number, KEY, layer.key, by_model, key, index);
            project(number, VALUE, layer.value, by_model, value, index);
            multiply(products, index);
            team.meet();
            place_heads(layer, number, index);
            attend(number, index);
            project(number, OUTPUT, layer.output, by_heads, normed, index);
            multiply(products, index);
            team.meet();
            add(number, OUTPUT, normed, index);
            normalize(layer.ffn_norm, nullptr, rows, index);
            project(number, GATE, layer.gate, by_model, gate, index);
            project(number, UP, layer.up, by_model, up, index);
            multiply(products, index);
            team.meet();
            gated(number, index);
            project(number, DOWN, layer.down, by_ffn, normed, index);
            multiply(products, index);
            team.meet();
            add(number, DOWN, normed, index);
        }
    }

    void head(int index) {
        if (wanted.empty()) return;
        const int count = (int)wanted.size();
        normalize(model.final_norm, wanted.data(), count, index);
        lists[(size_t)index].push_back({&model.embedding, &by_model, 0, count, hidden, model.embedding.outputs});
        multiply(lists[(size_t)index], index);
    }

    // Fills a chunk from the parts that are left, of which `begin` tokens of the first have been run.
    void gather(const PomonaPart *&part, const PomonaPart *end, int &begin) {
        runs.clear();
        wanted.clear();
        felt.clear();
        rows = 0;
        while (part < end && rows < CHUNK) {
            const int count = std::min(CHUNK - rows, part->count - begin);
            runs.push_back({part, begin, rows, count, part->sequence->length});
            for (int i = 0; i < count; i++)
                if (part->wanted == POMONA_HIDDEN) felt.push_back(rows + i);
                else if (part->wanted == POMONA_EVERY || begin + i + 1 == part->count) wanted.push_back(rows + i);
            part->sequence->length += count;
            rows += count;
            begin += count;
            if (begin == part->count) part++, begin = 0;
        }
        for (const Run &run : runs)
            for (int i = 0; i < run.count; i++) run_of[(size_t)(run.row + i)] = &run;
    }

    void advance(const PomonaPart *part, int count, float *logits, float *states) {
        const PomonaPart *end = part + count;
        for (int begin = 0; part < end;) {
            gather(part, end, begin);
            team.run([&](int index) {
                embed(index);
                layers(index);
                head(index);
            });
            for (size_t i = 0; i < wanted.size(); i++, logits += a.vocab_size)
                std::memcpy(logits, hidden + (int64_t)i * model.embedding.outputs, sizeof(float) * (size_t)a.vocab_size);
            for (size_t i = 0; i < felt.size(); i++, states += a.model_dim)
                with.rms_norm(x + (int64_t)felt[i] * a.model_dim, model.final_norm, a.norm_epsilon, a.model_dim, states);
        }
    }
};

extern "C" {

PomonaEngine *pomona_engine(const PomonaModel *model, int32_t threads, const char *set) {
    const Kernels *kernels = kernels_called(set);
    if (!kernels) return nullptr;
    try {
        return new PomonaEngine(*model, threads, *kernels);
    } catch (const std::exception &) {  // no memory, or no threads
        return nullptr;
    }
}

void pomona_close_engine(PomonaEngine *engine) { delete engine; }

PomonaSequence *pomona_sequence(PomonaEngine *engine, int32_t context) {
    try {
        auto sequence = std::make_unique<PomonaSequence>(engine->a, context);
        engine->reach(context);
        return sequence.release();
    } catch (const std::bad_alloc &) {
        return nullptr;
    }
}

void pomona_close_sequence(PomonaSequence *sequence) { delete sequence; }

void pomona_advance(PomonaEngine *engine, const PomonaPart *parts, int32_t count, float *logits, float *hidden) {
    engine->advance(parts, count, logits, hidden);
}

void pomona_forget(PomonaSequence *sequence, int32_t length) {
    if (length < sequence->length) sequence->length = length < 0 ? 0 : length;
}

}  // extern "C"
