// What a processor has, asked of itself, and code for a processor with given features: the functions between POMONA_BEGIN
// and POMONA_END.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>

namespace pomona {

// Also that the system keeps the registers: bits of XCR0. Compilers' own answer needs an initialization that not all do.
struct Processor {
    bool avx2 = false, avxvnni = false, avx512 = false;
    Processor() {
        unsigned a = 0, b = 0, c = 0, d = 0;
        if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return;  // XGETBV
        unsigned kept = 0, high = 0;
        __asm__ volatile("xgetbv" : "=a"(kept), "=d"(high) : "c"(0));
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
        avx2 = (kept & 0x06) == 0x06 && (b >> 5 & 1) && (b >> 8 & 1);  // and BMI2
        avx512 = avx2 && (kept & 0xe6) == 0xe6 && (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1) &&
                 (c >> 11 & 1);  // F, DQ, BW, VL, VNNI
        avxvnni = avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
    }
};

}  // namespace pomona
#endif

#define POMONA_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define POMONA_BEGIN(features) POMONA_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define POMONA_END POMONA_PRAGMA(clang attribute pop)
#else
#define POMONA_BEGIN(features) POMONA_PRAGMA(GCC push_options) POMONA_PRAGMA(GCC target(features))
#define POMONA_END POMONA_PRAGMA(GCC pop_options)
#endif
