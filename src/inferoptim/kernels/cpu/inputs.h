// The inputs of a product, converted into what its kernel multiplies: bfloat16, or int8 with a scale a group of channels.
#pragma once
#include "linear.h"

namespace io {

// The inputs of a product in every form that a kernel may read.
struct Inputs {
    const float* x;        // float32 [rows, k]
    const float* own;      // the quantised integers as floats, for kernels without integer dot products
    const uint16_t* half;  // bfloat16 [rows, k_padded]
    const int8_t* q;       // int8 [rows, k_padded]
    const float* scale;    // float32 [rows, groups]
    const int32_t* sum;    // of q over the group
};

// Room for converted inputs of the widest layer, reused from product to product.
struct Rows {
    Array<float> own;
    Array<uint16_t> half;
    Array<int8_t> q;
    Array<float> scale;
    Array<int32_t> sum;

    Inputs with(const float* x) const { return {x, own.data(), half.data(), q.data(), scale.data(), sum.data()}; }

    void reserve(size_t rows, int k_padded, int groups) {
        const size_t n = rows * (size_t)k_padded;
        if (own.size() < n) own.resize(n), half.resize(n), q.resize(n);
        if (scale.size() < rows * groups) scale.resize(rows * groups), sum.resize(rows * groups);
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
    if (w.kind != INT8_DYNAMIC && w.kind != GROUPS) return;
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
        rows.sum[r * groups + g] = sum;
        if (!in_fours(w))
            for (k = first; k < first + w.group; ++k) rows.own[r * kp + k] = (float)out[k];
    }
}

}  // namespace io
