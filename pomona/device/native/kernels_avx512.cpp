// AVX-512 VNNI: tables by vpshufb, products by vpdpbusd. Its left side is unsigned, so weights are raised by 128, and
// 128 times the sum of the block's integers is where the count begins.
#include "kernels.h"
#include "target.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if !defined(__clang__)  // in a header of GCC 12
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
POMONA_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,bmi2")

namespace pomona {
namespace {

typedef __m512i Table;  // the entries four times, raised by 128

inline Table spread(const int8_t *entries) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)entries));
    return _mm512_xor_si512(table, _mm512_set1_epi8((char)0x80));
}

template <int BITS, int TOKENS, typename Integers>
inline void dot_block(const uint8_t *packed, const Table &table, const int8_t *x, int stride, const int32_t *sums, int sums_stride, Integers *dots) {
    constexpr int PARTS = 8 / BITS;
    const __m512i mask = _mm512_set1_epi8((char)((1 << BITS) - 1)), raise = _mm512_set1_epi8((char)0x80);
    constexpr int CHAINS = TOKENS < 3 ? 4 : TOKENS < 6 ? 2 : 1;  // a product waits for the one before it in its chain
    __m512i total[TOKENS][CHAINS];
    for (int t = 0; t < TOKENS; t++) {
        for (int chain = 1; chain < CHAINS; chain++) total[t][chain] = _mm512_setzero_si512();
        total[t][0] = _mm512_set1_epi32(-128 * sums[(int64_t)t * sums_stride]);
    }
#pragma GCC unroll 16
    for (int k = 0; k < BLOCK; k += PARTS * 4) {
        __m512i raw = _mm512_loadu_si512(packed + k / (PARTS * 4) * 64);
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++) {
            __m512i weight;
            if (BITS == 8) {
                weight = _mm512_xor_si512(raw, raise);
            } else {
                weight = _mm512_shuffle_epi8(table, _mm512_and_si512(raw, mask));
                raw = _mm512_srli_epi16(raw, BITS & 7);
            }
#pragma GCC unroll 12
            for (int t = 0; t < TOKENS; t++) {
                int32_t four;
                __builtin_memcpy(&four, x + (int64_t)t * stride + k + part * 4, 4);
                __m512i &chain = total[t][(k / 4 + part) % CHAINS];
                chain = _mm512_dpbusd_epi32(chain, weight, _mm512_set1_epi32(four));
            }
        }
    }
    for (int t = 0; t < TOKENS; t++) {
        for (int chain = 1; chain < CHAINS; chain++) total[t][0] = _mm512_add_epi32(total[t][0], total[t][chain]);
        __builtin_memcpy(&dots[t], &total[t][0], sizeof dots[t]);
    }
}

constexpr int MOST = 12;
#include "lanes.inc"

const Kernels KERNELS = POMONA_KERNELS("avx512");

}  // namespace
}  // namespace pomona
POMONA_END

namespace pomona {
// For every processor, as it asks what this one has.
const Kernels *avx512_kernels() { return Processor().avx512 ? &KERNELS : nullptr; }

}  // namespace pomona
#else
namespace pomona {
const Kernels *avx512_kernels() { return nullptr; }
}  // namespace pomona
#endif
