// What attention reads: one sequence's keys and values, tile by tile out of the pages, and where a thread works on them.
#pragma once
#include <algorithm>
#include <vector>

#include "vector.h"

namespace io {

constexpr int TILE = 64;
constexpr int MOST = 64;  // pairs of one call
constexpr int FEW = 12;   // up to so many, keys stand in the lanes

// One layer's keys and values, and where one sequence's tokens lie in them.
struct Cache {
    const void *k, *v;
    const float *k_scale, *v_scale;  // int8: per (slot, head), else null
    int heads, dim;
    const int32_t* slots;  // of each token of the sequence

    size_t at(int token, int head) const { return ((size_t)slots[token] * heads + head) * dim; }
    size_t scale_at(int token, int head) const { return (size_t)slots[token] * heads + head; }
};

// Pair i: query q[i] (dim floats) sees tokens [low[i], high[i]) and writes out[i].
struct Pairs {
    int count;
    const float* q[MOST];
    float* out[MOST];
    int32_t low[MOST], high[MOST];
};

struct Scratch {
    Array<float> q, o, k, v, score, weight, total;
    alignas(64) float factor[TILE], v_scale[TILE];
    alignas(64) float q_scale[MOST];    // of queries rounded to int8
    alignas(64) int32_t q_start[MOST];  // -128 * their sum: what the sums of products start at, since keys come as k + 128
    void reserve(int dim) {
        for (auto* a : {&q, &o}) a->resize((size_t)dim * MOST);
        for (auto* a : {&k, &v}) a->resize((size_t)dim * TILE);
        score.resize(TILE * 32);
        weight.resize(TILE * 16);
        total.resize(16 * MOST);
    }
};

static const v16f NOTHING = splat(-1e30f);  // score of a key that a pair does not see
static inline v16i sees(const v16i& token, v16i low, v16i high) { return (token >= low) & (token < high); }

// A query as int8.
static inline void to_bytes(const float* q, int dim, int8_t* out, float& scale, int32_t& start) {
    v16f most = {}, sum = {};
    for (int d = 0; d < dim; d += 16) most = vmax(most, vabs(load<v16f>(q + d)));
    scale = reduce_max(most) / 127.0f;
    const float divisor = scale == 0 ? 1.0f : scale;
    for (int d = 0; d < dim; d += 16) {
        const v16f whole = vround(load<v16f>(q + d) / divisor);
        sum += whole;
        store_byte(out + d, whole);
    }
    start = -128 * (int32_t)reduce_add(sum);
}

#if defined(IO_BF16_DOT)
static inline v16f dot2(v16f sum, v16u a, v16u b) {
    return (v16f)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
static inline void to_half(const float* from, uint16_t* to) {  // sixteen
    const __m256bh h = _mm512_cvtneps_pbh(_mm512_loadu_ps(from));
    std::memcpy(to, &h, 32);
}
static inline __m512i unsigned_64(const int8_t* p) {  // k + 128
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8((char)0x80));
}
// 2^x to 3e-6, relative: what is left of it once the weight is a bfloat16 is 4e-3. 1 at 0, exactly.
static inline v16f vexp2(v16f x) {
    const v16f f = (v16f)_mm512_reduce_ps((__m512)x, 1);  // x - floor(x)
    v16f y = splat(0.01342669f);
    y = madd(y, f, splat(0.05224247f));
    y = madd(y, f, splat(0.24128021f));
    y = madd(y, f, splat(0.69304484f));
    y = madd(y, f, splat(1.0f));
    return (v16f)_mm512_scalef_ps((__m512)y, (__m512)x);  // times 2^floor(x)
}
static inline v16u half_32(const uint16_t* p) { return load<v16u>(p); }
static inline v16u half_32(const int8_t* p) {  // exact: bfloat16 holds every integer up to 256
    return (v16u)_mm512_cvtne2ps_pbh((__m512)widen(p + 16), (__m512)widen(p));
}
#endif
// e^x, or 2^x where scores are exponents of two.
template <bool HALF>
static inline v16f exponential(v16f x) {
#if defined(IO_BF16_DOT)
    if constexpr (HALF) return vexp2(x);
#endif
    return vexp(x);
}
// The weight of a key that scored x; 0 of one that is not seen.
template <bool HALF>
static inline v16f weight_of(v16f x, v16f top) { return select(x > splat(-1e29f), exponential<HALF>(x - top), v16f{}); }
static inline v16u splat_u(uint32_t x) { return (v16u)splat((int32_t)x); }

// Tokens whose keys and values are wanted soon: asked of memory a few at a time, in step with the work on others.
struct Soon {
    const Cache* c;
    int token, last, head, size;  // size: bytes of an element

    void fetch(int count) {
#if defined(__x86_64__)
        for (; count > 0 && token < last; --count, ++token) {
            const size_t at = c->at(token, head) * size;
            for (int i = 0; i < c->dim * size; i += 64) {
                _mm_prefetch((const char*)c->k + at + i, _MM_HINT_T1);
                _mm_prefetch((const char*)c->v + at + i, _MM_HINT_T1);
            }
        }
#endif
    }
};

// Rows of one tile's keys and values; past the end the last one is repeated, which nobody sees.
template <class E>
struct Tile {
    const E *k[TILE], *v[TILE];
    int n;  // rows, even

    Tile(const Cache& c, int t0, int last, int head, float softmax_scale, Scratch& s) {
        const int real = std::min(TILE, last - t0);
        n = (real + 1) / 2 * 2;
        const size_t row = (size_t)c.heads * c.dim;
        const E *k0 = (const E*)c.k + (size_t)head * c.dim, *v0 = (const E*)c.v + (size_t)head * c.dim;
        for (int j = 0; j < TILE; ++j) {
            const size_t slot = c.slots[t0 + std::min(j, real - 1)];
            k[j] = k0 + slot * row;
            v[j] = v0 + slot * row;
            if (sizeof(E) == 1) {
                const size_t at = slot * c.heads + head;
                s.factor[j] = softmax_scale * c.k_scale[at];
                s.v_scale[j] = c.v_scale[at];
            } else {
                s.factor[j] = softmax_scale;
                s.v_scale[j] = 1.0f;
            }
        }
    }
};

}  // namespace io
