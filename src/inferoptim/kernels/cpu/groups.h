// Micro-kernels over weights in groups of input channels with a scale (and a minimum) each: 4-bit and 8-bit blocks.
//
// y = sum over groups of x_scale * (scale * sum((q - zero) * x) + minimum * sum(x)), x the quantised inputs of the group.
// The sums of a group are integers, exact in every instruction set; what follows is the same float32 operations in the
// same order for every number of rows.
#pragma once
#include "kernels.h"

namespace io {

// Sixteen scales or minima.
static inline v16f load_scales(const char* p, bool half) {
    if (!half) return load<v16f>((const float*)p);
#if defined(__AVX512F__)
    return (v16f)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
    v16f r;
    const __m256 a = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), b = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p + 1));
    std::memcpy(&r, &a, 32);
    std::memcpy((char*)&r + 32, &b, 32);
    return r;
#else
    v16f r;
    for (int i = 0; i < 16; ++i) r[i] = half_to_float(load<uint16_t>((const uint16_t*)p + i));
    return r;
#endif
}

// Adds one group of one row to the row's sums: `a` and `c` hold the integer sums of 32 outputs as floats.
struct GroupScales {
    v16f scale[2], minimum[2];
    bool has_minimum;

    GroupScales(const Linear& w, const char* group) : has_minimum(w.has_minimum) {
        const size_t half_way = w.scale_bytes() / 2;
        for (int i = 0; i < 2; ++i) {
            scale[i] = load_scales(group + half_way * i, w.half);
            minimum[i] = has_minimum ? load_scales(group + w.scale_bytes() + half_way * i, w.half) : v16f{};
        }
    }
    void add(v16f (&total)[2], v16f a, v16f c, float x_scale, int32_t x_sum) const {
        const v16f s = splat(x_scale);
        total[0] = madd(a, scale[0] * s, total[0]);
        total[1] = madd(c, scale[1] * s, total[1]);
        if (!has_minimum) return;
        const v16f m = splat(x_scale * (float)x_sum);
        total[0] = madd(minimum[0], m, total[0]);
        total[1] = madd(minimum[1], m, total[1]);
    }
};

#if defined(IO_VNNI)
template <int MR, int BITS>
static __attribute__((noinline)) void kernel_groups(v16f (&acc)[MR][2], const Inputs& in, const Linear& w, size_t row, int panel,
                                                    Ahead ahead) {
    const int kp = w.k_padded, group = w.group, groups = kp / group;
    const size_t head = w.head_bytes();
    const char* at = w.packed + w.panel_bytes() * panel;
    const int8_t* a = in.q + row * kp;
    const __m512i low_half = _mm512_set1_epi8(15);
    v16f total[MR][2];
    IO_EACH_ROW total[i][0] = total[i][1] = v16f{};
    for (int g = 0; g < groups; ++g) {
        const GroupScales scales(w, at);
        const char* p = at + head;
        if (MR <= 2) {
            ask_for_page(at, (int)w.group_bytes());
        } else {
            for (int i = 0; i < ahead.step; i += 64) _mm_prefetch(ahead.at + i, _MM_HINT_T1);
            ahead.at += ahead.step;
        }
        at += w.group_bytes();
        __m512i sum[MR][2];
        IO_EACH_ROW sum[i][0] = sum[i][1] = _mm512_set1_epi32(-w.zero * in.sum[(row + i) * groups + g]);
        for (int k = 0; k < group; k += 8, p += 8 * PANEL * BITS / 8, a += 8) {
            __m512i w0, w1, v0, v1;  // channels k.. and k + 4.., of the first and the last 16 outputs
            if (BITS == 4) {
                const __m512i both0 = _mm512_load_si512(p), both1 = _mm512_load_si512(p + 64);
                w0 = both0 & low_half, w1 = both1 & low_half;
                v0 = _mm512_srli_epi16(both0, 4) & low_half, v1 = _mm512_srli_epi16(both1, 4) & low_half;
            } else {
                w0 = _mm512_load_si512(p), w1 = _mm512_load_si512(p + 64);
                v0 = _mm512_load_si512(p + 128), v1 = _mm512_load_si512(p + 192);
            }
            IO_EACH_ROW {
                int32_t first, second;
                std::memcpy(&first, a + (size_t)i * kp, 4);
                std::memcpy(&second, a + (size_t)i * kp + 4, 4);
                const __m512i x = _mm512_set1_epi32(first), y = _mm512_set1_epi32(second);
                dot4(sum[i][0], w0, x);
                dot4(sum[i][1], w1, x);
                dot4(sum[i][0], v0, y);
                dot4(sum[i][1], v1, y);
            }
        }
        IO_EACH_ROW scales.add(total[i], (v16f)_mm512_cvtepi32_ps(sum[i][0]), (v16f)_mm512_cvtepi32_ps(sum[i][1]),
                               in.scale[(row + i) * groups + g], in.sum[(row + i) * groups + g]);
    }
    IO_EACH_ROW acc[i][0] = total[i][0], acc[i][1] = total[i][1];
}
#else

#if defined(__AVX2__)
// 4 bits: a byte product sum of two stays below 2 * 15 * 127, so that sixteen bits hold eight of them.
template <int MR>
static inline void integers_4(const Linear& w, const char* p, const int8_t* a, size_t stride, int32_t (&out)[MR][PANEL]) {
    const __m256i low_half = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int part = 0; part < 4; ++part) {  // eight outputs at a time
        __m256i sum[MR];
        IO_EACH_ROW sum[i] = _mm256_setzero_si256();
        for (int k = 0; k < w.group; k += 32) {
            __m256i short_sum[MR];
            IO_EACH_ROW short_sum[i] = _mm256_setzero_si256();
            for (int j = k; j < k + 32; j += 8) {
                const __m256i both = _mm256_load_si256((const __m256i*)(p + (size_t)j / 2 * PANEL + part * 32));
                const __m256i lows = both & low_half, highs = _mm256_srli_epi16(both, 4) & low_half;
                IO_EACH_ROW {
                    int32_t first, second;
                    std::memcpy(&first, a + i * stride + j, 4);
                    std::memcpy(&second, a + i * stride + j + 4, 4);
                    short_sum[i] = _mm256_add_epi16(short_sum[i], _mm256_maddubs_epi16(lows, _mm256_set1_epi32(first)));
                    short_sum[i] = _mm256_add_epi16(short_sum[i], _mm256_maddubs_epi16(highs, _mm256_set1_epi32(second)));
                }
            }
            IO_EACH_ROW sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(short_sum[i], ones));
        }
        IO_EACH_ROW store(out[i] + part * 8, sum[i]);
    }
}
#endif

// Integers as floats: below 2^24, so exact.
template <int MR, int BITS>
static inline void integers_as_floats(const Linear& w, const char* p, const float* a, size_t stride, v16f (&sum)[MR][2]) {
    IO_EACH_ROW sum[i][0] = sum[i][1] = v16f{};
    if (BITS == 8) {
        for (int k = 0; k < w.group; ++k, p += PANEL) {
            const v16f w0 = widen((const uint8_t*)p), w1 = widen((const uint8_t*)p + 16);
            IO_EACH_ROW {
                const v16f x = splat(a[i * stride + k]);
                sum[i][0] = madd(w0, x, sum[i][0]);
                sum[i][1] = madd(w1, x, sum[i][1]);
            }
        }
        return;
    }
    for (int k = 0; k < w.group; k += 2, p += PANEL) {
        const v16ub both0 = load<v16ub>(p), both1 = load<v16ub>(p + 16);
        const v16f w0 = widen(both0 & 15), w1 = widen(both1 & 15), v0 = widen(both0 >> 4), v1 = widen(both1 >> 4);
        IO_EACH_ROW {
            const v16f x = splat(a[i * stride + k]), y = splat(a[i * stride + k + 1]);
            sum[i][0] = madd(v0, y, madd(w0, x, sum[i][0]));
            sum[i][1] = madd(v1, y, madd(w1, x, sum[i][1]));
        }
    }
}

template <int MR, int BITS>
static __attribute__((noinline)) void kernel_groups(v16f (&acc)[MR][2], const Inputs& in, const Linear& w, size_t row, int panel,
                                                    Ahead) {
    const int kp = w.k_padded, groups = kp / w.group;
    const char* at = w.packed + w.panel_bytes() * panel;
    v16f total[MR][2];
    IO_EACH_ROW total[i][0] = total[i][1] = v16f{};
    for (int g = 0; g < groups; ++g, at += w.group_bytes()) {
        const GroupScales scales(w, at);
        const char* p = at + w.head_bytes();
        const size_t from = row * kp + (size_t)g * w.group;
        v16f sum[MR][2];
#if defined(__AVX2__)
        if constexpr (BITS == 4) {
            int32_t whole[MR][PANEL];
            integers_4<MR>(w, p, in.q + from, kp, whole);
            for (int i = 0; i < MR; ++i)
                for (int j = 0; j < 2; ++j) sum[i][j] = __builtin_convertvector(load<v16i>(whole[i] + 16 * j), v16f);
        } else
#endif
            integers_as_floats<MR, BITS>(w, p, in.own + from, kp, sum);
        for (int i = 0; i < MR; ++i) {
            const int32_t x_sum = in.sum[(row + i) * groups + g];
            const v16f zero = splat((float)(-w.zero * x_sum));
            scales.add(total[i], sum[i][0] + zero, sum[i][1] + zero, in.scale[(row + i) * groups + g], x_sum);
        }
    }
    IO_EACH_ROW acc[i][0] = total[i][0], acc[i][1] = total[i][1];
}
#endif

}  // namespace io
