// What happens to a row between the matrix products: norm, rotation, and its keys and values into the cache.
#pragma once
#include "gemm.h"

namespace io {

static inline void rms_norm(const float* x, const float* weight, int n, float eps, float* out) {
    v16f sums = {};
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const v16f a = load<v16f>(x + i);
        sums = madd(a, a, sums);
    }
    float sum = reduce_add(sums);
    for (; i < n; ++i) sum += x[i] * x[i];
    const float r = 1.0f / std::sqrt(sum / n + eps);
    for (i = 0; i + 16 <= n; i += 16) store(out + i, load<v16f>(x + i) * r * load<v16f>(weight + i));
    for (; i < n; ++i) out[i] = x[i] * r * weight[i];
}

// Turns one head in place: pair (i, i + dim / 2) by its angle.
static inline void rotate(float* p, const float* cos, const float* sin, int dim) {
    const int half = dim / 2;
    int i = 0;
    for (; i + 16 <= half; i += 16) {
        const v16f a = load<v16f>(p + i), b = load<v16f>(p + half + i);
        const v16f c = load<v16f>(cos + i), s = load<v16f>(sin + i);
        store(p + i, a * c - b * s);
        store(p + half + i, b * c + a * s);
    }
    for (; i < half; ++i) {
        const float a = p[i], b = p[i + half];
        p[i] = a * cos[i] - b * sin[i];
        p[i + half] = b * cos[i] + a * sin[i];
    }
}

// One head of one token (dim floats, a multiple of 16) into its place in a cache of float32, bfloat16 or int8.
static inline void write_head(int kv_type, void* cache, float* scale, size_t slot_head, const float* x, int dim) {
    const size_t at = slot_head * dim;
    if (kv_type == 0) {
        std::memcpy((float*)cache + at, x, dim * sizeof(float));
    } else if (kv_type == 1) {
        for (int d = 0; d < dim; d += 16) store_half((uint16_t*)cache + at + d, load<v16f>(x + d));
    } else {
        v16f most = {};
        for (int d = 0; d < dim; d += 16) most = vmax(most, vabs(load<v16f>(x + d)));
        const float s = reduce_max(most) / 127.0f, divisor = s == 0 ? 1.0f : s;
        scale[slot_head] = s;
        for (int d = 0; d < dim; d += 16) store_byte((int8_t*)cache + at + d, vround(load<v16f>(x + d) / divisor));
    }
}

}  // namespace io
