// AVX2: tables by vpshufb, products by vpmaddubsw on |x| and the weight with the sign of x, which cannot saturate.
#include "kernels.h"
#include "target.h"

#if defined(__x86_64__)
#include <immintrin.h>
POMONA_BEGIN("avx2,bmi2")

namespace pomona {
namespace {

typedef __m256i Table;  // the entries twice

inline Table spread(const int8_t *entries) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)entries));
}

template <int BITS, int TOKENS, typename Integers>
inline void dot_block(const uint8_t *packed, const Table &table, const int8_t *x, int stride, const int32_t *, int, Integers *dots) {
    constexpr int PARTS = 8 / BITS;
    const __m256i mask = _mm256_set1_epi8((char)((1 << BITS) - 1)), ones = _mm256_set1_epi16(1);
    __m256i total[TOKENS][2];
    for (int t = 0; t < TOKENS; t++) total[t][0] = total[t][1] = _mm256_setzero_si256();
    for (int k = 0; k < BLOCK; k += PARTS * 4, packed += 64)
        for (int half = 0; half < 2; half++) {
            __m256i raw = _mm256_loadu_si256((const __m256i *)(packed + 32 * half));
            for (int part = 0; part < PARTS; part++) {
                __m256i weight = raw;
                if (BITS < 8) {
                    weight = _mm256_shuffle_epi8(table, _mm256_and_si256(raw, mask));
                    raw = _mm256_srli_epi16(raw, BITS & 7);
                }
                for (int t = 0; t < TOKENS; t++) {
                    int32_t four;
                    __builtin_memcpy(&four, x + (int64_t)t * stride + k + part * 4, 4);
                    const __m256i broadcast = _mm256_set1_epi32(four);
                    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(broadcast), _mm256_sign_epi8(weight, broadcast));
                    total[t][half] = _mm256_add_epi32(total[t][half], _mm256_madd_epi16(pairs, ones));
                }
            }
        }
    for (int t = 0; t < TOKENS; t++) __builtin_memcpy(&dots[t], total[t], sizeof dots[t]);
}

constexpr int MOST = 4;
#include "lanes.inc"

const Kernels KERNELS = POMONA_KERNELS("avx2");

}  // namespace
}  // namespace pomona
POMONA_END

namespace pomona {
// For every processor, as it asks what this one has.
const Kernels *avx2_kernels() { return Processor().avx2 ? &KERNELS : nullptr; }

}  // namespace pomona
#else
namespace pomona {
const Kernels *avx2_kernels() { return nullptr; }
}  // namespace pomona
#endif
