// Keys and values of one sequence, and attention over them, as two products with matrices of 8 bits.
//
// A key-value head's keys are a matrix whose outputs are positions, its values one whose inputs are positions, both
// packed as kernels.h describes; a key's scale is its output's factor, a value's scale multiplies its position's weight.
// Queries and weights become two int8 vectors each, the second of what the first left over: 15 bits, so that what one
// position weighs beside a far heavier one is not lost.
//
// Shapes: H head, K key-value heads, G query heads that share one.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>

#include "device.h"
#include "kernels.h"
#include "memory.h"

struct PomonaSequence {
    const int context, room, head_dim, kv_heads;
    int length = 0;
    pomona::Memory memory;
    int8_t *keys, *values;             // [layers][K] matrices
    float *key_scales, *value_scales;  // [layers][K][room]

    PomonaSequence(const PomonaArchitecture &a, int32_t tokens)
        : context(tokens), room(pomona::padded(tokens)), head_dim(a.head_dim), kv_heads(a.num_kv_heads) {
        const int64_t cells = (int64_t)a.num_layers * kv_heads * room;
        keys = memory.array<int8_t>(cells * pomona::padded(head_dim));
        values = memory.array<int8_t>(cells * head_dim);
        key_scales = memory.array<float>(cells);
        value_scales = memory.array<float>(cells);
    }

    int64_t cell(int layer, int head) const { return ((int64_t)layer * kv_heads + head) * room; }
    int8_t *keys_of(int layer, int head) const { return keys + cell(layer, head) * pomona::padded(head_dim); }
    int8_t *values_of(int layer, int head) const { return values + cell(layer, head) * head_dim; }

    void keep_key(int layer, int head, int position, const int8_t *key, float scale) {
        int8_t *place = keys_of(layer, head) + (int64_t)(position / 16) * 16 * pomona::padded(head_dim) + position % 16 * 4;
        for (int h = 0; h < head_dim; h += 4) std::memcpy(place + (int64_t)h * 16, key + h, 4);
        key_scales[cell(layer, head) + position] = scale;
    }
    void keep_value(int layer, int head, int position, const int8_t *value, float scale) {
        int8_t *place = values_of(layer, head) + (int64_t)(position / 4) * 64 + position % 4;
        for (int h = 0; h < head_dim; h++) place[(int64_t)(h / 16) * 16 * room + h % 16 * 4] = value[h];
        value_scales[cell(layer, head) + position] = scale;
    }
};

namespace pomona {

constexpr int PAIRS = ROWS / 2;  // queries taken together: two vectors each

// Queries of one key-value head: those of a token lie side by side, tokens are `stride` apart; `out` likewise.
struct Queries {
    const float *query;
    float *out;
    int heads;         // G
    int64_t stride;
    int position;      // of the first token
};

// One thread's room for it.
class Attention {
  public:
    Attention(Memory &memory, int head_dim, int room)
        : head_dim_(head_dim), room_(room), queries_(memory.quantized(ROWS, head_dim)), weights_(memory.quantized(ROWS, room)) {
        scores_ = memory.array<float>((int64_t)ROWS * room);
        sums_ = memory.array<float>((int64_t)ROWS * head_dim);
        ones_ = memory.array<float>(GROUP);
        std::fill(ones_, ones_ + GROUP, 1.0f);
    }

    // `count` (1 to PAIRS) queries from `first` on, counted over tokens and their heads.
    void attend(const Kernels &with, const PomonaSequence &to, int layer, int head, const Queries &q, int first, int count) {
        const int H = head_dim_, last = q.position + (first + count - 1) / q.heads + 1, wide = padded(last);
        const int64_t cell = to.cell(layer, head);
        for (int i = 0; i < count; i++) with.split(q.query + place(q, first + i), H, padded(H), queries_, 2 * i);
        const Matrix keys = {(const uint8_t *)to.keys_of(layer, head), nullptr, to.key_scales + cell, 8, padded(H), to.room};
        for (int sixteen = 0; sixteen < (last + 15) / 16; sixteen++)
            with.group(keys, sixteen, queries_, 0, 2 * count, scores_ + sixteen * 16, room_);
        for (int i = 0; i < count; i++) {
            float *own = scores_ + (int64_t)2 * i * room_;
            const int seen = q.position + (first + i) / q.heads + 1;
            with.weigh(own, own + room_, 1.0f / std::sqrt((float)H), to.value_scales + cell, seen, wide);
            with.split(own, wide, wide, weights_, 2 * i);
        }
        for (int sixteen = 0; sixteen < H / 16; sixteen++) {
            const int8_t *part = to.values_of(layer, head) + (int64_t)sixteen * 16 * to.room;
            const Matrix values = {(const uint8_t *)part, nullptr, ones_, 8, wide, 16};
            with.group(values, 0, weights_, 0, 2 * count, sums_ + sixteen * 16, H);
        }
        for (int i = 0; i < count; i++) {
            float *out = q.out + place(q, first + i);
            const float *one = sums_ + (int64_t)2 * i * H, *rest = one + H;
            for (int h = 0; h < H; h++) out[h] = one[h] + rest[h];
        }
    }

  private:
    int64_t place(const Queries &q, int number) const {
        return number / q.heads * q.stride + (int64_t)(number % q.heads) * head_dim_;
    }

    int head_dim_, room_;
    Quantized queries_, weights_;
    float *scores_, *sums_, *ones_;  // [ROWS][room], [ROWS][H], [16]
};

}  // namespace pomona
