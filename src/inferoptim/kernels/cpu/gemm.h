// Matrix products y[M, N] = x[M, K] . w[N, K]^T over packed weights, from one row to thousands.
//
// Weights lie in panels of 32 outputs, one after the other, so that a step reads each panel front to back once:
//   float32, int8 (portable)   [K][32]
//   bfloat16                   [K / 2][32][2]       the layout of the bfloat16 dot product
//   int8 (VNNI)                [K / 4][32][4] as w + 128: the dot product wants one unsigned side, and the surplus
//                              128 * sum(x) is taken off by starting every sum at -128 * sum(x)
// A micro-kernel computes MR rows x 32 outputs in registers. The order of additions depends on K alone, so a row's
// result is the same to the bit whatever rows are computed beside it.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <vector>

#include "vector.h"

namespace io {

enum Kind : int32_t { F32 = 0, BF16 = 1, INT8_DYNAMIC = 2, INT8_WEIGHT_ONLY = 3 };
constexpr int PANEL = 32;

struct Linear {
    Kind kind = F32;
    int n = 0, k = 0;              // as in the model
    int panels = 0, k_padded = 0;  // as packed
    int group = 0;                 // int8 dynamic: input channels that share an activation scale
    void* packed = nullptr;        // 64-byte aligned
    size_t bytes = 0;
    std::vector<float> scale;  // int8: per output, padded to whole panels
    std::vector<float> bias;   // padded, empty if none
    ~Linear() { std::free(packed); }
};

static inline int largest_group(int k) {
    for (int g : {64, 32, 96, 128})  // of 64: larger groups broke the quality gate on the default model
        if (k % g == 0) return g;
    return (k + 3) / 4 * 4;
}

static inline bool vnni(const Linear& w) {
#if defined(IO_VNNI)
    return w.kind == INT8_DYNAMIC;
#else
    (void)w;
    return false;
#endif
}
static inline bool pairs(const Linear& w) { return w.kind == BF16; }

// Row r of the packed matrix is row order[r] of the source, or a row of zeros where order[r] < 0.
static void pack(Linear& w, const void* source, const std::vector<int>& order) {
    const size_t element = w.kind == F32 ? 4 : w.kind == BF16 ? 2 : 1;
    w.panels = ((int)order.size() + PANEL - 1) / PANEL;
    const int step = vnni(w) ? 4 : pairs(w) ? 2 : 1;
    w.group = w.kind == INT8_DYNAMIC ? largest_group(w.k) : w.k;
    w.k_padded = w.kind == INT8_DYNAMIC ? (w.k + w.group - 1) / w.group * w.group : (w.k + step - 1) / step * step;
    w.bytes = (size_t)w.panels * PANEL * w.k_padded * element;
    w.packed = std::aligned_alloc(64, (w.bytes + 63) / 64 * 64);
    for (int p = 0; p < w.panels; ++p)
        for (int j = 0; j < PANEL; ++j) {
            const size_t r = (size_t)p * PANEL + j;
            const int row = r < order.size() ? order[r] : -1;
            for (int k = 0; k < w.k_padded; ++k) {
                const size_t at = ((size_t)p * w.k_padded + k / step * step) * PANEL + (size_t)j * step + k % step;
                const bool real = row >= 0 && k < w.k;
                const size_t from = (size_t)row * w.k + k;
                if (w.kind == F32) ((float*)w.packed)[at] = real ? ((const float*)source)[from] : 0.0f;
                else if (w.kind == BF16) ((uint16_t*)w.packed)[at] = real ? ((const uint16_t*)source)[from] : 0;
                else {
                    const int q = real ? ((const int8_t*)source)[from] : 0;
                    if (vnni(w)) ((uint8_t*)w.packed)[at] = (uint8_t)(q + 128);
                    else ((int8_t*)w.packed)[at] = (int8_t)q;
                }
            }
        }
}

// The inputs of a product in every form that a kernel may read.
struct Inputs {
    const float* x;        // float32 [rows, k]
    const float* own;      // int8 dynamic without VNNI: the quantised integers, as floats
    const uint16_t* half;  // bfloat16 [rows, k_padded]
    const int8_t* q;       // int8 [rows, k_padded]
    const float* scale;    // float32 [rows, groups]
    const int32_t* start;  // -128 * sum(q) of the group
};

// Room for converted inputs of the widest layer, reused from product to product.
struct Rows {
    std::vector<float> own;
    std::vector<uint16_t> half;
    std::vector<int8_t> q;
    std::vector<float> scale;
    std::vector<int32_t> start;

    Inputs with(const float* x) const { return {x, own.data(), half.data(), q.data(), scale.data(), start.data()}; }

    void reserve(size_t rows, int k_padded, int groups) {
        const size_t n = rows * (size_t)k_padded;
        if (own.size() < n) own.resize(n), half.resize(n), q.resize(n);
        if (scale.size() < rows * groups) scale.resize(rows * groups), start.resize(rows * groups);
    }
};

// Intel's bfloat16 dot product runs at a quarter of the rate of its float32 multiply-add; AMD's at the full rate.
static bool bf16_dot_pays() {
#if defined(IO_BF16_DOT)
    static const bool pays = __builtin_cpu_is("amd");
    return pays;
#else
    return false;
#endif
}

// Converts row r of x (k values) into what `w` multiplies. Different rows may be prepared by different threads.
static void prepare_row(Rows& rows, const Linear& w, const float* x, size_t r) {
    const int kp = w.k_padded;
    if (w.kind == BF16) {
        if (!bf16_dot_pays()) return;
        uint16_t* out = rows.half.data() + r * kp;
#if defined(IO_BF16_DOT)
        int k = 0;
        for (; k + 16 <= w.k; k += 16) {
            const __m256bh h = _mm512_cvtneps_pbh(_mm512_loadu_ps(x + k));
            std::memcpy(out + k, &h, 32);
        }
        for (; k < w.k; ++k) out[k] = float_to_bf16(x[k]);
#else
        for (int k = 0; k < w.k; ++k) out[k] = float_to_bf16(x[k]);
#endif
        for (int k = w.k; k < kp; ++k) out[k] = 0;
        return;
    }
    if (w.kind != INT8_DYNAMIC) return;
    const int groups = kp / w.group;
    for (int g = 0; g < groups; ++g) {
        const int first = g * w.group, last = first + w.group < w.k ? first + w.group : w.k;
        v16f m = {};
        int k = first;
        for (; k + 16 <= last; k += 16) m = vmax(m, vabs(load<v16f>(x + k)));
        float top = reduce_max(m);
        for (; k < last; ++k) top = std::fabs(x[k]) > top ? std::fabs(x[k]) : top;
        const float scale = top / 127.0f, divisor = scale == 0 ? 1.0f : scale;
        int8_t* out = rows.q.data() + r * kp;
        v16f sums = {};  // of integers, exact
        for (k = first; k + 16 <= last; k += 16) {
            const v16f whole = vround(load<v16f>(x + k) / divisor);
            sums += whole;
            store_byte(out + k, whole);
        }
        int32_t sum = (int32_t)reduce_add(sums);
        for (; k < last; ++k) {
            out[k] = (int8_t)std::nearbyintf(x[k] / divisor);
            sum += out[k];
        }
        for (k = last; k < first + w.group; ++k) out[k] = 0;
        rows.scale[r * groups + g] = scale;
        rows.start[r * groups + g] = -128 * sum;
#if !defined(IO_VNNI)
        for (k = first; k < first + w.group; ++k) rows.own[r * kp + k] = (float)out[k];
#endif
    }
}

// What a kernel asks memory for while it multiplies: a share of the panel that comes next.
struct Ahead {
    const char* at;
    int step;  // bytes for each step of its inner loop
};

#if defined(IO_VNNI)
// As an instruction, because GCC copies every accumulator around the intrinsic.
static inline void dot4(__m512i& sum, __m512i w, __m512i x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
}
#endif

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
        IO_EACH_ROW sum[i][0] = sum[i][1] = _mm512_set1_epi32(in.start[(row + i) * groups + g]);
        for (int k = 0; k < group; k += 4, p += 4 * PANEL, a += 4) {
            const __m512i w0 = _mm512_load_si512(p), w1 = _mm512_load_si512(p + 64);
            _mm_prefetch(ahead.at, _MM_HINT_T1);
            if (MR <= 8) _mm_prefetch(ahead.at + 64, _MM_HINT_T1);
            ahead.at += ahead.step;
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

template <int MR>
static void kernel(v16f (&acc)[MR][2], const Inputs& in, const Linear& w, size_t row, int panel, Ahead ahead) {
    switch (w.kind) {
        case F32: return kernel_float<MR, F32>(acc, in, w, row, panel);
        case INT8_WEIGHT_ONLY: return kernel_float<MR, INT8_WEIGHT_ONLY>(acc, in, w, row, panel);
        case INT8_DYNAMIC:
#if defined(IO_VNNI)
            return kernel_int8<MR>(acc, in, w, row, panel, ahead);
#else
            return kernel_int8<MR>(acc, in, w, row, panel);
#endif
        case BF16:
#if defined(IO_BF16_DOT)
            if (bf16_dot_pays()) return kernel_bf16_dot<MR>(acc, in, w, row, panel);
#endif
            return kernel_float<MR, BF16>(acc, in, w, row, panel);
    }
}

template <int MR, class Out>
static inline void tile(const Inputs& in, const Linear& w, size_t row, int panel, Ahead ahead, const Out& out) {
    v16f acc[MR][2];
    kernel<MR>(acc, in, w, row, panel, ahead);
    const int n = panel * PANEL;
    if (!w.scale.empty()) {
        const v16f s0 = load<v16f>(w.scale.data() + n), s1 = load<v16f>(w.scale.data() + n + 16);
        for (int i = 0; i < MR; ++i) acc[i][0] *= s0, acc[i][1] *= s1;
    }
    if (!w.bias.empty()) {
        const v16f b0 = load<v16f>(w.bias.data() + n), b1 = load<v16f>(w.bias.data() + n + 16);
        for (int i = 0; i < MR; ++i) acc[i][0] += b0, acc[i][1] += b1;
    }
    for (int i = 0; i < MR; ++i) out(row + i, panel, acc[i][0], acc[i][1]);
}

// out(row, panel, first 16 outputs, last 16) for rows [0, rows) of `in` and panels [panel0, panel1).
template <class Out>
static void gemm(const Inputs& in, const Linear& w, size_t rows, int panel0, int panel1, const Out& out) {
    const size_t panel_bytes = w.bytes / w.panels, tiles = (rows + 7) / 8;
    const int step = (int)std::max((size_t)1, 2 * 64 / tiles);  // bytes an inner step of 128 bytes asks for
    for (int panel = panel0; panel < panel1; ++panel) {
        Ahead ahead{(const char*)w.packed + panel_bytes * std::min(panel + 1, w.panels - 1), step};
        size_t r = 0;
        for (; r + 8 <= rows; r += 8, ahead.at += panel_bytes / tiles) tile<8>(in, w, r, panel, ahead, out);
        switch (rows - r) {
            case 7: tile<7>(in, w, r, panel, ahead, out); break;
            case 6: tile<6>(in, w, r, panel, ahead, out); break;
            case 5: tile<5>(in, w, r, panel, ahead, out); break;
            case 4: tile<4>(in, w, r, panel, ahead, out); break;
            case 3: tile<3>(in, w, r, panel, ahead, out); break;
            case 2: tile<2>(in, w, r, panel, ahead, out); break;
            case 1: tile<1>(in, w, r, panel, ahead, out); break;
            default: break;
        }
    }
}

}  // namespace io
