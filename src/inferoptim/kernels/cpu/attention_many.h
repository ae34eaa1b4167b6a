// Attention of many pairs (a prompt): sixteen pairs stand in the lanes, and a tile is prepared once for all of them.
#pragma once
#include "attention_tiles.h"

namespace io {

// What the blocks of sixteen pairs have seen so far, and what they may see.
struct Lanes {
    v16i low[MOST / 16], high[MOST / 16];
    v16f top[MOST / 16];
    int first[MOST / 16], last[MOST / 16];  // of what any pair sees
    int from[MOST / 16], to[MOST / 16];     // what every pair sees

    bool some(int b, int t0) const { return first[b] < t0 + TILE && last[b] > t0; }
    bool all(int b, int t0) const { return from[b] <= t0 && to[b] >= t0 + TILE; }
};

// s.k, s.v = the tile's keys and values as rows of floats.
template <class E>
static void lay_out(const Tile<E>& tile, int dim, Scratch& s) {
    for (int t = 0; t < tile.n; ++t)
        for (int d = 0; d < dim; d += 16) {
            store(s.k.data() + (size_t)t * dim + d, widen(tile.k[t] + d));
            store(s.v.data() + (size_t)t * dim + d, widen(tile.v[t] + d));
        }
}

// One tile for the sixteen pairs of block b, one to a lane.
template <class E>
static void tile_lanes(const Tile<E>& tile, Lanes& l, int b, int t0, int dim, Scratch& s) {
    float *S = s.score.data(), *O = s.o.data() + (size_t)b * dim * 16, *T = s.total.data() + b * 256;
    const float* Q = s.q.data() + (size_t)b * dim * 16;
    v16f most = l.top[b];
    for (int j = 0; j < tile.n; j += 8) {  // past n: rows that nobody sees
        const float* row = s.k.data() + (size_t)j * dim;
        v16f sum[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) sum[i] = v16f{};
        for (int d = 0; d < dim; ++d) {
            const v16f x = load<v16f>(Q + d * 16);
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) sum[i] = madd(x, splat(row[(size_t)i * dim + d]), sum[i]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            const v16f x = select(sees(splat((int32_t)(t0 + j + i)), l.low[b], l.high[b]), sum[i] * s.factor[j + i], NOTHING);
            store(S + (j + i) * 16, x);
            most = vmax(most, x);
        }
    }
    const v16f shrink = vexp(l.top[b] - most);
    l.top[b] = most;
    for (int i = 0; i < 16; ++i) store(T + 16 * i, load<v16f>(T + 16 * i) * shrink);
    for (int j = 0; j < tile.n; ++j) {
        const v16f e = weight_of<false>(load<v16f>(S + j * 16), most);
        store(T + 16 * (j % 16), load<v16f>(T + 16 * (j % 16)) + e);
        store(S + j * 16, sizeof(E) == 1 ? e * s.v_scale[j] : e);
    }
    for (int d = 0; d < dim; d += 16) {
        v16f sum[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) sum[i] = load<v16f>(O + (d + i) * 16) * shrink;
        for (int t = 0; t < tile.n; ++t) {
            const v16f e = load<v16f>(S + t * 16);
            const float* x = s.v.data() + (size_t)t * dim + d;
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) sum[i] = madd(e, splat(x[i]), sum[i]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) store(O + (d + i) * 16, sum[i]);
    }
}

#if defined(IO_BF16_DOT)
// Values as rows of pairs (two tokens, one dimension) in the order of `unpack`; keys, if int8, as k + 128, turned by sixteens:
// [16 keys] of four channels, then of the next four.
template <class E>
static void lay_out_half(const Tile<E>& tile, int dim, Scratch& s) {
    for (int t = 0; t < tile.n; t += 2)
        for (int d = 0; d < dim; d += 32) {
            const __m512i a = (__m512i)half_32(tile.v[t] + d), b = (__m512i)half_32(tile.v[t + 1] + d);
            float* to = s.v.data() + (size_t)(t / 2) * dim + d;
            store(to, _mm512_unpacklo_epi16(a, b));
            store(to + 16, _mm512_unpackhi_epi16(a, b));
        }
    if constexpr (sizeof(E) == 1)
        for (int t = 0; t < tile.n; t += 16)
            for (int d = 0; d < dim; d += 64) {
                v16f row[16];
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) row[i] = (v16f)unsigned_64(tile.k[t + i] + d);
                transpose_16(row);
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) store(s.k.data() + (size_t)t * (dim / 4) + (d / 4 + i) * 16, row[i]);
            }
}

// score[block][key][16] = q . k * factor, NOTHING where ALL is not given and a pair does not see the key.
// In functions of their own, so that the compiler keeps every sum in a register.
template <class E, int B, bool ALL>
static __attribute__((noinline)) void score_half(const Tile<E>& tile, const Lanes& l, int b, int t0, int dim, v16f (&most)[B], Scratch& s) {
    constexpr bool BYTES = sizeof(E) == 1;
    const float* Q = s.q.data() + (size_t)b * dim * 16;
    for (int j = 0; j < tile.n; j += 8) {  // past n: rows that nobody sees
        const float* turned = s.k.data() + (size_t)(j / 16 * 16) * (dim / 4) + j % 16;
        const uint32_t* row[8];
        for (int i = 0; i < 8; ++i) row[i] = (const uint32_t*)tile.k[j + i];
        __m512i sum[B][8];  // integers, or (bfloat16) floats
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i)
#pragma GCC unroll 2
            for (int c = 0; c < B; ++c) sum[c][i] = BYTES ? _mm512_loadu_si512(s.q_start + 16 * (b + c)) : _mm512_setzero_si512();
        for (int d = 0; d < dim / (BYTES ? 4 : 2); ++d) {
            v16u x[B];
#pragma GCC unroll 2
            for (int c = 0; c < B; ++c) x[c] = load<v16u>(Q + (size_t)c * dim * 16 + d * 16);
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                const v16u key = splat_u(BYTES ? load<uint32_t>(turned + d * 16 + i) : load<uint32_t>(row[i] + d));
#pragma GCC unroll 2
                for (int c = 0; c < B; ++c)
                    if constexpr (BYTES) dot4(sum[c][i], (__m512i)key, (__m512i)x[c]);
                    else sum[c][i] = (__m512i)dot2((v16f)sum[c][i], x[c], key);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i)
#pragma GCC unroll 2
            for (int c = 0; c < B; ++c) {
                v16f x = BYTES ? (v16f)_mm512_cvtepi32_ps(sum[c][i]) * load<v16f>(s.q_scale + 16 * (b + c)) : (v16f)sum[c][i];
                x *= s.factor[j + i];
                if (!ALL) x = select(sees(splat((int32_t)(t0 + j + i)), l.low[b + c], l.high[b + c]), x, NOTHING);
                store(s.score.data() + c * TILE * 16 + (j + i) * 16, x);
                most[c] = (v16f)_mm512_max_ps((__m512)most[c], (__m512)x);
            }
    }
}

// s.weight[t / 2] = the weights of tokens t and t + 1 for sixteen pairs; their sums go to T, shrunk before.
template <class E, bool ALL>
static __attribute__((noinline)) void weigh_half(int n, v16f top, v16f shrink, const float* S, float* T, float* W, const Scratch& s) {
    const __m512i alternate = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                               20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int i = 0; i < 16; i += 2) {
        v16f total[2] = {load<v16f>(T + 16 * i) * shrink, load<v16f>(T + 16 * i + 16) * shrink};
        for (int j = i; j < n; j += 16) {
            v16f e[2];
#pragma GCC unroll 2
            for (int c = 0; c < 2; ++c) {
                const v16f x = load<v16f>(S + (j + c) * 16);
                e[c] = ALL ? vexp2(x - top) : weight_of<true>(x, top);
                total[c] += e[c];
                if (sizeof(E) == 1) e[c] *= s.v_scale[j + c];
            }
            const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)e[1], (__m512)e[0]);
            store(W + j * 8, _mm512_permutexvar_epi16(alternate, both));
        }
        store(T + 16 * i, total[0]);
        store(T + 16 * i + 16, total[1]);
    }
}

// Adds the weighted values to the sums of B blocks, after shrinking these.
template <int B>
static __attribute__((noinline)) void add_values_half(int n, const v16f (&shrink)[B], int b, int dim, Scratch& s) {
    constexpr int DIMS = 16 / B;
    for (int d = 0; d < dim; d += DIMS) {
        float* O = s.o.data() + (size_t)b * dim * 16 + d * 16;
        v16f sum[B][DIMS];
#pragma GCC unroll 16
        for (int i = 0; i < DIMS; ++i)
#pragma GCC unroll 2
            for (int c = 0; c < B; ++c) sum[c][i] = load<v16f>(O + (size_t)c * dim * 16 + i * 16) * shrink[c];
        for (int t = 0; t < n; t += 2) {
            v16u e[B];
#pragma GCC unroll 2
            for (int c = 0; c < B; ++c) e[c] = load<v16u>(s.weight.data() + c * TILE * 8 + t * 8);
            const float* x = s.v.data() + (size_t)(t / 2) * dim + d;
#pragma GCC unroll 16
            for (int i = 0; i < DIMS; ++i) {
                const v16u value = splat_u(load<uint32_t>(x + i));
#pragma GCC unroll 2
                for (int c = 0; c < B; ++c) sum[c][i] = dot2(sum[c][i], e[c], value);
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < DIMS; ++i)
#pragma GCC unroll 2
            for (int c = 0; c < B; ++c) store(O + (size_t)c * dim * 16 + i * 16, sum[c][i]);
    }
}

// One tile for B blocks of sixteen pairs from block b on.
template <class E, int B, bool ALL>
static void tile_half(const Tile<E>& tile, Lanes& l, int b, int t0, int dim, Scratch& s) {
    v16f most[B], shrink[B];
    for (int c = 0; c < B; ++c) most[c] = l.top[b + c];
    score_half<E, B, ALL>(tile, l, b, t0, dim, most, s);
    for (int c = 0; c < B; ++c) {
        shrink[c] = vexp2(l.top[b + c] - most[c]);
        l.top[b + c] = most[c];
        weigh_half<E, ALL>(tile.n, most[c], shrink[c], s.score.data() + c * TILE * 16, s.total.data() + (b + c) * 256,
                           s.weight.data() + c * TILE * 8, s);
    }
    add_values_half<B>(tile.n, shrink, b, dim, s);
}

template <class E, int B>
static void tile_half(const Tile<E>& tile, Lanes& l, int b, int t0, int dim, Scratch& s) {
    bool all = true;
    for (int c = 0; c < B; ++c) all = all && l.all(b + c, t0);
    if (all) tile_half<E, B, true>(tile, l, b, t0, dim, s);
    else tile_half<E, B, false>(tile, l, b, t0, dim, s);
}
#endif

template <class E, bool HALF>
static void attend_lanes(const Pairs& p, int first, int last, const Cache& c, int head, float softmax_scale, Scratch& s) {
    const int dim = c.dim, blocks = (p.count + 15) / 16;
    Lanes l;
    std::memset(s.total.data(), 0, 256 * blocks * sizeof(float));
    for (int b = 0; b < blocks; ++b) {
        const int n = std::min(16, p.count - 16 * b);
        l.top[b] = NOTHING;
        l.low[b] = l.high[b] = v16i{};
        l.first[b] = l.from[b] = p.low[16 * b], l.last[b] = l.to[b] = p.high[16 * b];
        for (int i = 0; i < n; ++i) {
            const int low = p.low[16 * b + i], high = p.high[16 * b + i];
            l.low[b][i] = low, l.high[b][i] = high;
            l.first[b] = std::min(l.first[b], low), l.last[b] = std::max(l.last[b], high);
            l.from[b] = std::max(l.from[b], low), l.to[b] = std::min(l.to[b], high);
        }
        // queries turned: a channel (HALF: two, as int8: four) of all sixteen together
        constexpr int EACH = !HALF ? 1 : sizeof(E) == 1 ? 4 : 2;
        float* Q = s.q.data() + (size_t)b * dim * 16;
        if constexpr (EACH == 4)
            for (int i = 0; i < 16; ++i) {
                const int at = 16 * b + i;
                if (i < n) to_bytes(p.q[at], dim, (int8_t*)s.o.data() + (size_t)at * dim, s.q_scale[at], s.q_start[at]);
                else s.q_scale[at] = 0, s.q_start[at] = 0;
            }
        for (int d = 0; d < dim; d += 16 * EACH) {
            v16f row[16] = {};
            for (int i = 0; i < n; ++i) {
                if constexpr (EACH == 4) {
                    row[i] = load<v16f>((const int8_t*)s.o.data() + (size_t)(16 * b + i) * dim + d);
                    continue;
                }
                const float* q = p.q[16 * b + i] + d;
#if defined(IO_BF16_DOT)
                if constexpr (HALF) {
                    row[i] = (v16f)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(q + 16), _mm512_loadu_ps(q));
                    continue;
                }
#endif
                row[i] = load<v16f>(q);
            }
            transpose_16(row);
            for (int i = 0; i < 16; ++i) store(Q + d / EACH * 16 + i * 16, row[i]);
        }
    }
    std::memset(s.o.data(), 0, (size_t)dim * 16 * blocks * sizeof(float));
    for (int t0 = first / TILE * TILE; t0 < last; t0 += TILE) {
        const Tile<E> tile(c, t0, last, head, softmax_scale, s);
        Soon soon{&c, t0 + TILE, last, head, sizeof(E)};
#if defined(IO_BF16_DOT)
        if constexpr (HALF) {
            lay_out_half<E>(tile, dim, s);
            for (int b = 0; b < blocks;) {
                soon.fetch(32);
                const bool here = l.some(b, t0), next = b + 1 < blocks && l.some(b + 1, t0);
                if (here && next) tile_half<E, 2>(tile, l, b, t0, dim, s), b += 2;
                else {
                    if (here) tile_half<E, 1>(tile, l, b, t0, dim, s);
                    ++b;
                }
            }
            continue;
        }
#endif
        lay_out<E>(tile, dim, s);
        for (int b = 0; b < blocks; ++b)
            if (l.some(b, t0)) tile_lanes<E>(tile, l, b, t0, dim, s);
    }
    for (int b = 0; b < blocks; ++b) {
        float *T = s.total.data() + b * 256, *O = s.o.data() + (size_t)b * dim * 16;
        for (int n = 8; n; n /= 2)
            for (int i = 0; i < n; ++i) store(T + 16 * i, load<v16f>(T + 16 * i) + load<v16f>(T + 16 * (i + n)));
        const v16f inverse = 1.0f / load<v16f>(T);
        for (int d = 0; d < dim; d += 16) {
            v16f row[16];
            for (int i = 0; i < 16; ++i) {
                // HALF: channels stand where `unpack` has put them, within each 32
                const int lane = d % 32 + i, at = HALF ? d / 32 * 32 + lane / 8 * 4 + lane / 4 % 2 * 16 + lane % 4 : d + i;
                row[i] = load<v16f>(O + at * 16) * inverse;
            }
            transpose_16(row);
            for (int i = 0; i < std::min(16, p.count - 16 * b); ++i) store(p.out[16 * b + i] + d, row[i]);
        }
    }
}

}  // namespace io
