/* The device runtime's C interface. Nothing here reads a file: all arrays belong to the caller, outlive the session, and
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

typedef struct PomonaSession PomonaSession;

/* The names of the instruction sets that this processor runs, best first, separated by commas. */
const char *pomona_instruction_sets(void);

/* Room for `context` tokens and the threads that compute. Null where there is no memory for it, or `set` is no
 * instruction set of this processor; an empty `set` takes the best. */
PomonaSession *pomona_open(const PomonaModel *, int32_t context, int32_t threads, const char *set);
void pomona_close(PomonaSession *);

/* Runs `count` more tokens. Writes the logits [vocab_size] after the last one, or after each [count][vocab_size].
 * 0: done; 1: the context has no room, and nothing was done. */
int32_t pomona_advance(PomonaSession *, const int32_t *tokens, int32_t count, int32_t every, float *logits);

/* How many tokens are kept, and to forget all after the first `length`. */
int32_t pomona_length(const PomonaSession *);
void pomona_forget(PomonaSession *, int32_t length);

/* For tests and benches: one product, out [tokens][outputs] = x [tokens][size] times the matrix, on one thread. */
int32_t pomona_product(const PomonaMatrix *, const float *x, int32_t size, int32_t tokens, const char *set, float *out);

/* For benches: reads `bytes` of memory `times` times with so many threads; returns the seconds of the fastest time. */
double pomona_read_seconds(const uint8_t *data, int64_t bytes, int32_t threads, int32_t times);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
