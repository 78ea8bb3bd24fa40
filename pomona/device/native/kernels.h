// The arithmetic of the device runtime that depends on the instruction set, as one table of functions.
//
// Every instruction set computes the same numbers, bit for bit: integers are exact, and floating-point operations happen
// in the same order on the same 16 lanes, without fused multiply-adds (setup compiles with -ffp-contract=off).
//
// A group is 16 outputs of a matrix; a lane is one of them. Inputs are padded with zeros to blocks of 64.
#pragma once
#include <cstdint>

namespace pomona {

constexpr int GROUP = 16;   // outputs that share a table: one lane each
constexpr int BLOCK = 64;   // inputs that share a scale
constexpr int ROWS = 8;     // tokens that a group's weights are multiplied with at once

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
    // out[token * stride + lane] for one group and `tokens` (1 to 8) vectors from `first` on.
    void (*group)(const Matrix &, int group, const Quantized &, int first, int tokens, float *out, int stride);
    // A vector of `size` (a multiple of 16, padded to `padded`) into the place of a token.
    void (*quantize)(const float *x, int size, int padded, const Quantized &, int token);
    // x / sqrt(mean(x^2) + epsilon) * weight; size is a multiple of 16.
    void (*rms_norm)(const float *x, const float *weight, float epsilon, int size, float *out);
    // silu(gate) * up.
    void (*gated)(const float *gate, const float *up, int size, float *out);
    // int8 with one scale a head vector; size is a multiple of 16.
    float (*narrow)(const float *x, int size, int8_t *out);
    float (*dot)(const float *x, const int8_t *y, int size);
    void (*add_scaled)(float *out, const int8_t *y, float scale, int size);
    // Scores become exp(score - largest); returns their sum.
    float (*softmax)(float *scores, int count);
};

// Null where it was not compiled, or where this processor lacks the instructions.
const Kernels *portable_kernels();
const Kernels *avx2_kernels();
const Kernels *avx512_kernels();

}  // namespace pomona
