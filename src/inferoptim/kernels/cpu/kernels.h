// Micro-kernels over dense weights, and over int8 with one scale an output: MR rows x one panel of 32 outputs, in registers.
#pragma once
#include "inputs.h"

namespace io {

// What a kernel asks memory for while it multiplies: a share of the panel that comes next.
struct Ahead {
    const char* at;
    int step;  // bytes for each step of its inner loop
};

// One or two rows only wait for memory. A core's own prefetcher has more requests under way then than instructions may,
// which wait in the first-level cache's buffers; but it stops at the end of a page, so the first lines of a page further on
// are asked for, and nothing else.
static inline void ask_for_page(const void* p, int bytes) {
    constexpr size_t PAGE = 4096, FIRST = 128;
    if (((size_t)p & (PAGE - 1)) >= std::max((size_t)bytes, FIRST)) return;
    __builtin_prefetch((const char*)p + 2 * PAGE, 0, 2);
    __builtin_prefetch((const char*)p + 2 * PAGE + 64, 0, 2);
}

// One function for each way to multiply, so that the compiler keeps every sum in a register.
#define IO_EACH_ROW _Pragma("GCC unroll 8") for (int i = 0; i < MR; ++i)

#if defined(IO_VNNI)
template <int MR>
static __attribute__((noinline)) void kernel_int8(v16f (&acc)[MR][2], const Inputs& in, const Linear& w, size_t row, int panel,
                                                  Ahead ahead) {
    const int kp = w.k_padded, group = w.group, groups = kp / group;
    const uint8_t* p = (const uint8_t*)w.packed + (size_t)panel * kp * PANEL;
    const int8_t* a = in.q + row * kp;
    v16f total[MR][2];
    IO_EACH_ROW total[i][0] = total[i][1] = v16f{};
    for (int g = 0; g < groups; ++g) {
        __m512i sum[MR][2];
        IO_EACH_ROW sum[i][0] = sum[i][1] = _mm512_set1_epi32(-128 * in.sum[(row + i) * groups + g]);
        for (int k = 0; k < group; k += 4, p += 4 * PANEL, a += 4) {
            const __m512i w0 = _mm512_load_si512(p), w1 = _mm512_load_si512(p + 64);
            if (MR <= 2) {
                ask_for_page(p, 2 * 64);
            } else {
                _mm_prefetch(ahead.at, _MM_HINT_T1);
                if (MR <= 8) _mm_prefetch(ahead.at + 64, _MM_HINT_T1);
                ahead.at += ahead.step;
            }
            IO_EACH_ROW {
                int32_t four;
                std::memcpy(&four, a + (size_t)i * kp, 4);
                const __m512i x = _mm512_set1_epi32(four);
                dot4(sum[i][0], w0, x);
                dot4(sum[i][1], w1, x);
            }
        }
        IO_EACH_ROW {
            const float s = in.scale[(row + i) * groups + g];
            total[i][0] = madd((v16f)_mm512_cvtepi32_ps(sum[i][0]), splat(s), total[i][0]);
            total[i][1] = madd((v16f)_mm512_cvtepi32_ps(sum[i][1]), splat(s), total[i][1]);
        }
    }
    IO_EACH_ROW acc[i][0] = total[i][0], acc[i][1] = total[i][1];
}
#else
// The products and sums of a group are integers below 2^24: exact in float32.
template <int MR>
static __attribute__((noinline)) void kernel_int8(v16f (&acc)[MR][2], const Inputs& in, const Linear& w, size_t row, int panel) {
    const int kp = w.k_padded, group = w.group, groups = kp / group;
    const int8_t* p = (const int8_t*)w.packed + (size_t)panel * kp * PANEL;
    const float* a = in.own + row * kp;
    v16f total[MR][2];
    IO_EACH_ROW total[i][0] = total[i][1] = v16f{};
    for (int g = 0; g < groups; ++g) {
        v16f sum[MR][2];
        IO_EACH_ROW sum[i][0] = sum[i][1] = v16f{};
        for (int k = 0; k < group; ++k, p += PANEL, ++a) {
            const v16f w0 = widen(p), w1 = widen(p + 16);
            IO_EACH_ROW {
                const v16f x = splat(a[(size_t)i * kp]);
                sum[i][0] = madd(w0, x, sum[i][0]);
                sum[i][1] = madd(w1, x, sum[i][1]);
            }
        }
        IO_EACH_ROW {
            const float s = in.scale[(row + i) * groups + g];
            total[i][0] = madd(sum[i][0], splat(s), total[i][0]);
            total[i][1] = madd(sum[i][1], splat(s), total[i][1]);
        }
    }
    IO_EACH_ROW acc[i][0] = total[i][0], acc[i][1] = total[i][1];
}
#endif

#if defined(IO_BF16_DOT)
template <int MR>
static __attribute__((noinline)) void kernel_bf16_dot(v16f (&acc)[MR][2], const Inputs& in, const Linear& w, size_t row, int panel) {
    const int kp = w.k_padded;
    const uint16_t* p = (const uint16_t*)w.packed + (size_t)panel * kp * PANEL;
    const uint16_t* a = in.half + row * kp;
    __m512 sum[MR][2];
    IO_EACH_ROW sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    for (int k = 0; k < kp; k += 2, p += 2 * PANEL, a += 2) {
        const __m512bh w0 = (__m512bh)_mm512_load_si512(p), w1 = (__m512bh)_mm512_load_si512(p + 32);
        IO_EACH_ROW {
            int32_t two;
            std::memcpy(&two, a + (size_t)i * kp, 4);
            const __m512bh x = (__m512bh)_mm512_set1_epi32(two);
            sum[i][0] = _mm512_dpbf16_ps(sum[i][0], w0, x);
            sum[i][1] = _mm512_dpbf16_ps(sum[i][1], w1, x);
        }
    }
    IO_EACH_ROW acc[i][0] = (v16f)sum[i][0], acc[i][1] = (v16f)sum[i][1];
}
#endif

// Weights of any type, widened to float32 as they come; inputs in float32.
template <int MR, Kind KIND>
static __attribute__((noinline)) void kernel_float(v16f (&acc)[MR][2], const Inputs& in, const Linear& w, size_t row, int panel) {
    const int K = w.k;
    const float* a = in.x + row * K;
    v16f sum[MR][2];
    IO_EACH_ROW sum[i][0] = sum[i][1] = v16f{};
    const size_t at = (size_t)panel * w.k_padded * PANEL;
#define IO_MULTIPLY_ADD(w0, w1, k)                   \
    IO_EACH_ROW {                                    \
        const v16f x = splat(a[(size_t)i * K + (k)]); \
        sum[i][0] = madd(w0, x, sum[i][0]);          \
        sum[i][1] = madd(w1, x, sum[i][1]);          \
    }
    if (KIND == BF16) {
        const uint16_t* p = (const uint16_t*)w.packed + at;
        int k = 0;
        for (; k + 2 <= K; k += 2, p += 2 * PANEL) {
            const v16u both0 = load<v16u>(p), both1 = load<v16u>(p + 32);
            const v16f even0 = (v16f)(both0 << 16), even1 = (v16f)(both1 << 16);
            IO_MULTIPLY_ADD(even0, even1, k)
            const v16f odd0 = (v16f)(both0 & 0xffff0000u), odd1 = (v16f)(both1 & 0xffff0000u);
            IO_MULTIPLY_ADD(odd0, odd1, k + 1)
        }
        if (k < K) {
            const v16f last0 = (v16f)(load<v16u>(p) << 16), last1 = (v16f)(load<v16u>(p + 32) << 16);
            IO_MULTIPLY_ADD(last0, last1, k)
        }
    } else if (KIND == F32) {
        // In parts of 64 inputs: a sum of 1 536 products in one go loses a digit more than torch's blocked one does.
        const float* p = (const float*)w.packed + at;
        v16f total[MR][2];
        IO_EACH_ROW total[i][0] = total[i][1] = v16f{};
        for (int k = 0; k < K;) {
            for (const int end = k + 64 < K ? k + 64 : K; k < end; ++k, p += PANEL) {
                const v16f w0 = load<v16f>(p), w1 = load<v16f>(p + 16);
                IO_MULTIPLY_ADD(w0, w1, k)
            }
            IO_EACH_ROW {
                total[i][0] += sum[i][0], total[i][1] += sum[i][1];
                sum[i][0] = sum[i][1] = v16f{};
            }
        }
        IO_EACH_ROW sum[i][0] = total[i][0], sum[i][1] = total[i][1];
    } else {
        const int8_t* p = (const int8_t*)w.packed + at;
        for (int k = 0; k < K; ++k, p += PANEL) {
            const v16f w0 = widen(p), w1 = widen(p + 16);
            IO_MULTIPLY_ADD(w0, w1, k)
        }
    }
#undef IO_MULTIPLY_ADD
    IO_EACH_ROW acc[i][0] = sum[i][0], acc[i][1] = sum[i][1];
}

}  // namespace io
