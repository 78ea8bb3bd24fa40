// AVX-VNNI, in 256 bits: what newer processors without AVX-512 have. As kernels_avx512.cpp, a group in two halves.
#include "kernels.h"
#include "target.h"

#if defined(__x86_64__)
#include <immintrin.h>
POMONA_BEGIN("avx2,avxvnni,bmi2")

namespace pomona {
namespace {

typedef __m256i Table;  // the entries twice, raised by 128

inline Table spread(const int8_t *entries) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)entries));
    return _mm256_xor_si256(table, _mm256_set1_epi8((char)0x80));
}

template <int BITS, int TOKENS, typename Integers>
inline void dot_block(const uint8_t *packed, const Table &table, const int8_t *x, int stride, const int32_t *sums, int sums_stride, Integers *dots) {
    constexpr int PARTS = 8 / BITS;
    const __m256i mask = _mm256_set1_epi8((char)((1 << BITS) - 1)), raise = _mm256_set1_epi8((char)0x80);
    __m256i total[TOKENS][2];
    for (int t = 0; t < TOKENS; t++) total[t][0] = total[t][1] = _mm256_set1_epi32(-128 * sums[(int64_t)t * sums_stride]);
#pragma GCC unroll 16
    for (int k = 0; k < BLOCK; k += PARTS * 4, packed += 64)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            __m256i raw = _mm256_loadu_si256((const __m256i *)(packed + 32 * half));
#pragma GCC unroll 4
            for (int part = 0; part < PARTS; part++) {
                __m256i weight;
                if (BITS == 8) {
                    weight = _mm256_xor_si256(raw, raise);
                } else {
                    weight = _mm256_shuffle_epi8(table, _mm256_and_si256(raw, mask));
                    raw = _mm256_srli_epi16(raw, BITS & 7);
                }
#pragma GCC unroll 4
                for (int t = 0; t < TOKENS; t++) {
                    int32_t four;
                    __builtin_memcpy(&four, x + (int64_t)t * stride + k + part * 4, 4);
                    total[t][half] = _mm256_dpbusd_avx_epi32(total[t][half], weight, _mm256_set1_epi32(four));
                }
            }
        }
    for (int t = 0; t < TOKENS; t++) __builtin_memcpy(&dots[t], total[t], sizeof dots[t]);
}

constexpr int MOST = 4;
#include "lanes.inc"

const Kernels KERNELS = POMONA_KERNELS("avxvnni");

}  // namespace
}  // namespace pomona
POMONA_END

namespace pomona {
// For every processor, as it asks what this one has.
const Kernels *avxvnni_kernels() { return Processor().avxvnni ? &KERNELS : nullptr; }

}  // namespace pomona
#else
namespace pomona {
const Kernels *avxvnni_kernels() { return nullptr; }
}  // namespace pomona
#endif
