// Attention of many pairs (a prompt): sixteen pairs stand in the lanes, and a tile is prepared once for all of them.
#pragma once
#include "attention_tiles.h"

namespace io {

// s.k = the tile's keys as rows (HALF over a bfloat16 cache reads them in place); s.v = its values as rows of floats,
// or as rows of pairs (two tokens, one dimension) in the order of `unpack`.
template <class E, bool HALF>
static void lay_out(const Tile<E>& tile, int dim, Scratch& s) {
    for (int t = 0; t < tile.n; t += HALF ? 2 : 1)
        for (int d = 0; d < dim; d += HALF ? 32 : 16) {
#if defined(IO_BF16_DOT)
            if constexpr (HALF) {
                const __m512i a = (__m512i)half_32(tile.v[t] + d), b = (__m512i)half_32(tile.v[t + 1] + d);
                float* to = s.v.data() + (size_t)(t / 2) * dim + d;
                store(to, _mm512_unpacklo_epi16(a, b));
                store(to + 16, _mm512_unpackhi_epi16(a, b));
                if (sizeof(E) == 1)
                    for (int j = t; j < t + 2; ++j)
                        store((uint16_t*)(s.k.data() + (size_t)j * (dim / 2)) + d, half_32(tile.k[j] + d));
                continue;
            }
#endif
            store(s.k.data() + (size_t)t * dim + d, widen(tile.k[t] + d));
            store(s.v.data() + (size_t)t * dim + d, widen(tile.v[t] + d));
        }
}

// One tile for the sixteen pairs of block b, one to a lane.
template <class E, bool HALF>
static void tile_lanes(const Tile<E>& tile, v16i low, v16i high, int b, int t0, int dim, v16f& top, Scratch& s) {
    float *S = s.score.data(), *O = s.o.data() + (size_t)b * dim * 16, *T = s.total.data() + b * 256;
    const float* Q = s.q.data() + (size_t)b * dim * 16;
    v16f most = top;
    for (int j = 0; j < tile.n; j += 8) {  // past n: rows that nobody sees
        const void* row[8];
        for (int i = 0; i < 8; ++i) {
            row[i] = s.k.data() + (size_t)(j + i) * (HALF ? dim / 2 : dim);
            if (HALF && sizeof(E) == 2) row[i] = tile.k[j + i];
        }
        v16f sum[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) sum[i] = v16f{};
        for (int d = 0; d < (HALF ? dim / 2 : dim); ++d) {
            const v16f x = load<v16f>(Q + d * 16);
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
#if defined(IO_BF16_DOT)
                if constexpr (HALF) sum[i] = dot2(sum[i], (v16u)x, splat_u(load<uint32_t>((const uint32_t*)row[i] + d)));
                else
#endif
                    sum[i] = madd(x, splat(((const float*)row[i])[d]), sum[i]);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            const v16f x = select(sees(splat((int32_t)(t0 + j + i)), low, high), sum[i] * s.factor[j + i], NOTHING);
            store(S + (j + i) * 16, x);
            most = vmax(most, x);
        }
    }
    const v16f shrink = vexp(top - most);
    top = most;
    for (int i = 0; i < 16; ++i) store(T + 16 * i, load<v16f>(T + 16 * i) * shrink);
    for (int j = 0; j < tile.n; ++j) {
        const v16f e = seen_exp(load<v16f>(S + j * 16), top);
        store(T + 16 * (j % 16), load<v16f>(T + 16 * (j % 16)) + e);
        store(S + j * 16, sizeof(E) == 1 ? e * s.v_scale[j] : e);
    }
#if defined(IO_BF16_DOT)
    if constexpr (HALF)
        for (int t = 0; t < tile.n; t += 2) {
            const __m256i a = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(S + t * 16));
            const __m256i c = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(S + t * 16 + 16));
            const __m512i both = _mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(c), 16));
            store(s.weight.data() + t * 8, both);
        }
#endif
    for (int d = 0; d < dim; d += 16) {
        v16f sum[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) sum[i] = load<v16f>(O + (d + i) * 16) * shrink;
        for (int t = 0; t < tile.n; t += HALF ? 2 : 1) {
            const v16f e = load<v16f>(HALF ? s.weight.data() + t * 8 : S + t * 16);
            const float* x = s.v.data() + (size_t)(HALF ? t / 2 : t) * dim + d;
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) {
#if defined(IO_BF16_DOT)
                if constexpr (HALF) sum[i] = dot2(sum[i], (v16u)e, splat_u(load<uint32_t>(x + i)));
                else
#endif
                    sum[i] = madd(e, splat(x[i]), sum[i]);
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) store(O + (d + i) * 16, sum[i]);
    }
}

template <class E, bool HALF>
static void attend_lanes(const Pairs& p, int first, int last, const Cache& c, int head, float softmax_scale, Scratch& s) {
    const int dim = c.dim, blocks = (p.count + 15) / 16;
    v16i low[MOST / 16], high[MOST / 16];
    v16f top[MOST / 16];
    int from[MOST / 16], to[MOST / 16];
    std::memset(s.o.data(), 0, (size_t)dim * 16 * blocks * sizeof(float));
    std::memset(s.total.data(), 0, 256 * blocks * sizeof(float));
    for (int b = 0; b < blocks; ++b) {
        const int n = std::min(16, p.count - 16 * b);
        top[b] = NOTHING;
        low[b] = high[b] = v16i{};
        from[b] = p.low[16 * b], to[b] = 0;
        float* Q = s.q.data() + (size_t)b * dim * 16;
        std::memset(Q, 0, (size_t)dim * 16 * sizeof(float));
        for (int i = 0; i < n; ++i) {
            low[b][i] = p.low[16 * b + i], high[b][i] = p.high[16 * b + i];
            from[b] = std::min(from[b], p.low[16 * b + i]), to[b] = std::max(to[b], p.high[16 * b + i]);
            const float* q = p.q[16 * b + i];
#if defined(IO_BF16_DOT)
            if constexpr (HALF) {
                uint16_t h[16];
                for (int d = 0; d < dim; d += 16) {
                    to_half(q + d, h);
                    for (int j = 0; j < 8; ++j) std::memcpy(Q + (d / 2 + j) * 16 + i, h + 2 * j, 4);
                }
                continue;
            }
#endif
            for (int d = 0; d < dim; ++d) Q[d * 16 + i] = q[d];
        }
    }
    for (int t0 = first / TILE * TILE; t0 < last; t0 += TILE) {
        const Tile<E> tile(c, t0, last, head, softmax_scale, s);
        lay_out<E, HALF>(tile, dim, s);
        for (int b = 0; b < blocks; ++b)
            if (from[b] < t0 + TILE && to[b] > t0) tile_lanes<E, HALF>(tile, low[b], high[b], b, t0, dim, top[b], s);
    }
    for (int b = 0; b < blocks; ++b) {
        float *T = s.total.data() + b * 256, *O = s.o.data() + (size_t)b * dim * 16;
        for (int n = 8; n; n /= 2)
            for (int i = 0; i < n; ++i) store(T + 16 * i, load<v16f>(T + 16 * i) + load<v16f>(T + 16 * (i + n)));
        const v16f inverse = 1.0f / load<v16f>(T);
        for (int i = 0; i < std::min(16, p.count - 16 * b); ++i)
            for (int d = 0; d < dim; ++d) {
                const int lane = d % 16;  // HALF: d stands where `unpack` has put it
                const int to = HALF ? d / 32 * 32 + lane / 4 * 8 + d % 32 / 16 * 4 + lane % 4 : d;
                p.out[16 * b + i][to] = O[d * 16 + i] * inverse[i];
            }
    }
}

}  // namespace io
