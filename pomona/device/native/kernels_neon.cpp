// NEON with dot products (ARMv8.2): tables by tbl, products by sdot, which take signs on both sides.
#include "kernels.h"
#include "target.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(__clang__)
POMONA_BEGIN("dotprod")
#else
POMONA_BEGIN("+dotprod")
#endif

namespace pomona {
namespace {

typedef int8x16_t Table;

inline Table spread(const int8_t *entries) { return vld1q_s8(entries); }

template <int BITS, int TOKENS, typename Integers>
inline void dot_block(const uint8_t *packed, const Table &table, const int8_t *x, int stride, const int32_t *, int, Integers *dots) {
    constexpr int PARTS = 8 / BITS;
    const uint8x16_t mask = vdupq_n_u8((1 << BITS) - 1);
    int32x4_t total[TOKENS][4];  // four lanes of the group each
    for (int t = 0; t < TOKENS; t++)
        for (int quarter = 0; quarter < 4; quarter++) total[t][quarter] = vdupq_n_s32(0);
    for (int k = 0; k < BLOCK; k += PARTS * 4, packed += 64)
        for (int quarter = 0; quarter < 4; quarter++) {
            uint8x16_t raw = vld1q_u8(packed + 16 * quarter);
            for (int part = 0; part < PARTS; part++) {
                int8x16_t weight = vreinterpretq_s8_u8(raw);
                if constexpr (BITS < 8) {
                    weight = vqtbl1q_s8(table, vandq_u8(raw, mask));
                    raw = vshrq_n_u8(raw, BITS);
                }
                for (int t = 0; t < TOKENS; t++) {
                    int32_t four;
                    __builtin_memcpy(&four, x + (int64_t)t * stride + k + part * 4, 4);
                    total[t][quarter] = vdotq_s32(total[t][quarter], weight, vreinterpretq_s8_s32(vdupq_n_s32(four)));
                }
            }
        }
    for (int t = 0; t < TOKENS; t++) __builtin_memcpy(&dots[t], total[t], sizeof dots[t]);
}

constexpr int MOST = 4;
#include "lanes.inc"

const Kernels KERNELS = POMONA_KERNELS("neon");

}  // namespace
}  // namespace pomona
POMONA_END

namespace pomona {
// For every processor, as it asks what this one has. All of Apple's have it.
const Kernels *neon_kernels() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & (1UL << 20) ? &KERNELS : nullptr;  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
    return &KERNELS;
#else
    return nullptr;
#endif
}

}  // namespace pomona
#else
namespace pomona {
const Kernels *neon_kernels() { return nullptr; }
}  // namespace pomona
#endif
