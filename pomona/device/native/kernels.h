// The arithmetic of the device runtime that depends on the instruction set, as one table of functions.
//
// Every instruction set computes the same numbers, bit for bit: integers are exact, and floating-point operations happen
// in the same order on the same 16 lanes, without fused multiply-adds (setup compiles with -ffp-contract=off).
//
// A group is 16 outputs of a matrix; a lane is one of them. Inputs are padded with zeros to blocks of 64.
#pragma once
#include <stdint.h>

namespace pomona {

constexpr int GROUP = 16;   // outputs that share a table: one lane each
constexpr int BLOCK = 64;   // inputs that share a scale
constexpr int ROWS = 12;    // tokens that a group's weights are multiplied with at once

// A matrix whose weights are factor[o] * table[o / 16][index]; at 8 bits the integers themselves, without tables.
//
// packed, for group g and from input k on, at b bits: 64 bytes, byte 4 * lane + j holds the indices of the inputs
// k + j, k + 4 + j, ... of that lane, the first in the lowest bits.
struct Matrix {
    const uint8_t *packed;
    const int8_t *tables;   // [groups][16]; null at 8 bits
    const float *factors;   // [outputs]
    int32_t bits;           // 2, 4 or 8
    int32_t inputs;         // padded to a multiple of 64
    int32_t outputs;        // a multiple of 16
};

// Vectors as integers: x = scale of its block * integer.
struct Quantized {
    int8_t *integers;       // [tokens][inputs], -127 to 127
    float *scales;          // [tokens][inputs / 64]
    int32_t *sums;          // [tokens][inputs / 64], of the integers
};

struct Kernels {
    const char *name;
    // out[token * stride + lane] for one group and `tokens` (1 to ROWS) vectors from `first` on.
    void (*group)(const Matrix &, int group, const Quantized &, int first, int tokens, float *out, int stride);
    // The blocks [first, last) of a vector of `size` (a multiple of 16, padded to `padded`) into the place of a token.
    void (*quantize)(const float *x, int size, int padded, const Quantized &, int token, int first, int last);
    // A whole vector into the places of two tokens: itself, and what rounding left over.
    void (*split)(const float *x, int size, int padded, const Quantized &, int token);
    // x / sqrt(mean(x^2) + epsilon) * weight; size is a multiple of 16.
    void (*rms_norm)(const float *x, const float *weight, float epsilon, int size, float *out);
    // silu(gate) * up.
    void (*gated)(const float *gate, const float *up, int size, float *out);
    // int8 with one scale, which it returns; size is a multiple of 16.
    float (*narrow)(const float *x, int size, int8_t *out);
    // out += factors * b x, for groups of 16 outputs: b [groups][rank][16], x [rank].
    void (*low_rank)(float *out, const int8_t *b, const float *factors, const float *x, int rank, int groups);
    // Scores, given as two parts, become softmax(scale * score) * value_scale of `seen` positions, and zeros up to `wide`;
    // all arrays reach to a multiple of 16.
    void (*weigh)(float *scores, const float *rest, float scale, const float *value_scales, int seen, int wide);
};

// Null where it was not compiled, or where this processor lacks the instructions.
const Kernels *portable_kernels();
const Kernels *avx2_kernels();
const Kernels *avxvnni_kernels();
const Kernels *avx512_kernels();
const Kernels *neon_kernels();

// Those of a name, or the best for an empty one; null where there are none.
const Kernels *kernels_called(const char *name);

}  // namespace pomona
