/* The device runtime's C interface. Nothing here reads a file: all arrays belong to the caller, outlive what uses them, and
 * have been checked by it (pomona/device/file.py). Sizes are those of `pomona.model.config.Architecture`. */
#ifndef POMONA_DEVICE_H
#define POMONA_DEVICE_H
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

typedef struct {
    int32_t vocab_size, model_dim, num_layers, num_heads, num_kv_heads, head_dim, ffn_dim;
    float norm_epsilon;
    double rope_base;
} PomonaArchitecture;

/* A matrix as kernels.h describes it. */
typedef struct {
    const uint8_t *packed;
    const int8_t *tables;
    const float *factors;
    int32_t bits, inputs, outputs;
} PomonaMatrix;

typedef struct {
    const float *attention_norm, *query_norm, *key_norm, *ffn_norm;
    PomonaMatrix query, key, value, output, gate, up, down;
} PomonaLayer;

typedef struct {
    PomonaArchitecture architecture;
    PomonaMatrix embedding; /* 8 bits: the input table and the output layer */
    const PomonaLayer *layers;
    const float *final_norm;
} PomonaModel;

/* What an adapter adds to a projection: factors * b (a x), b [outputs / 16][rank][16]; a has 8 bits and `rank` outputs, a
 * multiple of 16 and at most POMONA_LARGEST_RANK. */
#define POMONA_LARGEST_RANK 256
typedef struct {
    PomonaMatrix a;
    const int8_t *b;
    const float *factors;
} PomonaLowRank;

/* In the order query, key, value, output, gate, up, down. */
typedef struct {
    PomonaLowRank places[7];
} PomonaAdapterLayer;

/* Threads and what they compute in; a sequence's keys and values. */
typedef struct PomonaEngine PomonaEngine;
typedef struct PomonaSequence PomonaSequence;

/* Logits after the last token, logits after each, or the last hidden state of each, [model_dim]. */
enum { POMONA_LAST, POMONA_EVERY, POMONA_HIDDEN };

/* Tokens that come next in a sequence. */
typedef struct {
    PomonaSequence *sequence;
    const PomonaAdapterLayer *adapter; /* all layers; null for the bare model */
    const int32_t *tokens;
    int32_t count;
    int32_t wanted; /* POMONA_LAST, POMONA_EVERY or POMONA_HIDDEN */
} PomonaPart;

/* The names of the instruction sets that this processor runs, best first, separated by commas. */
const char *pomona_instruction_sets(void);

/* Null where there is no memory or no threads, or `set` is no instruction set of this processor; an empty `set` takes the
 * best. */
PomonaEngine *pomona_engine(const PomonaModel *, int32_t threads, const char *set);
void pomona_close_engine(PomonaEngine *);

/* Room for `context` tokens; null where there is no memory for it. */
PomonaSequence *pomona_sequence(PomonaEngine *, int32_t context);
void pomona_close_sequence(PomonaSequence *);

/* Runs the tokens of several sequences, each of which is named once, and has room for them. Writes logits [vocab_size]
 * and hidden states for all rows that are asked for, in the order of the parts. */
void pomona_advance(PomonaEngine *, const PomonaPart *parts, int32_t count, float *logits, float *hidden);

/* Forgets all tokens after the first `length`. */
void pomona_forget(PomonaSequence *, int32_t length);

/* For tests and benches: one product, out [tokens][outputs] = x [tokens][size] times the matrix, on one thread. */
int32_t pomona_product(const PomonaMatrix *, const float *x, int32_t size, int32_t tokens, const char *set, float *out);

/* For benches: reads `bytes` of memory `times` times with so many threads; returns the seconds of the fastest time. */
double pomona_read_seconds(const uint8_t *data, int64_t bytes, int32_t threads, int32_t times);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
