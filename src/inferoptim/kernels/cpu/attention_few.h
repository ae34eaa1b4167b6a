// Attention of few pairs (a decode): sixteen keys stand in the lanes of a vector.
#pragma once
#include "attention_tiles.h"

namespace io {

// s.k = the tile's keys with tokens in the lanes: [dim][TILE] floats, or [dim / 2][TILE] pairs of bfloat16.
template <class E, bool HALF>
static void turn_keys(const Tile<E>& tile, int dim, Scratch& s, Soon& soon) {
    for (int j = 0; j < tile.n; j += 16) {
        soon.fetch(16);
        s.stream.fetch();
        for (int d = 0; d < dim; d += HALF ? 32 : 16) {
            v16f row[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) {
#if defined(IO_BF16_DOT)
                if constexpr (HALF) row[i] = (v16f)half_32(tile.k[j + i] + d);
                else
#endif
                    row[i] = widen(tile.k[j + i] + d);
            }
            transpose_16(row);
            float* to = s.k.data() + (size_t)(HALF ? d / 2 : d) * TILE + j;
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) store(to + (size_t)i * TILE, row[i]);
        }
    }
}

// score[g][TILE] = q . k, for G pairs.
template <bool HALF, int G>
static void score_few(const Scratch& s, int begin, int dim, float* score) {
    v16f sum[G][4];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) sum[g][0] = sum[g][1] = sum[g][2] = sum[g][3] = v16f{};
    const float* q = s.q.data() + (size_t)begin * dim;
    const int n = HALF ? dim / 2 : dim;
    for (int d = 0; d < n; ++d) {
        const float* k = s.k.data() + (size_t)d * TILE;
        const v16f k0 = load<v16f>(k), k1 = load<v16f>(k + 16), k2 = load<v16f>(k + 32), k3 = load<v16f>(k + 48);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
#if defined(IO_BF16_DOT)
            if constexpr (HALF) {
                const v16u x = splat_u(load<uint32_t>(q + (size_t)g * dim + d));
                sum[g][0] = dot2(sum[g][0], (v16u)k0, x);
                sum[g][1] = dot2(sum[g][1], (v16u)k1, x);
                sum[g][2] = dot2(sum[g][2], (v16u)k2, x);
                sum[g][3] = dot2(sum[g][3], (v16u)k3, x);
                continue;
            }
#endif
            const v16f x = splat(q[(size_t)g * dim + d]);
            sum[g][0] = madd(k0, x, sum[g][0]);
            sum[g][1] = madd(k1, x, sum[g][1]);
            sum[g][2] = madd(k2, x, sum[g][2]);
            sum[g][3] = madd(k3, x, sum[g][3]);
        }
    }
    for (int g = 0; g < G; ++g)
        for (int i = 0; i < 4; ++i) store(score + g * TILE + 16 * i, sum[g][i]);
}

// Adds the tile's weighted values to the sums of G pairs, after shrinking these. HALF keeps the order of `unpack`.
template <class E, bool HALF, int G>
static void add_values_few(const Tile<E>& tile, const float* weight, const float* shrink, int begin, int dim, Scratch& s) {
    constexpr int STEP = HALF ? 32 : 16;
    for (int d = 0; d < dim; d += STEP) {
        v16f sum[G][2];
        float* o = s.o.data() + (size_t)begin * dim + d;
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
            sum[g][0] = load<v16f>(o + (size_t)g * dim) * shrink[g];
            if (HALF) sum[g][1] = load<v16f>(o + (size_t)g * dim + 16) * shrink[g];
        }
        for (int t = 0; t < tile.n; t += 2) {
#if defined(IO_BF16_DOT)
            if constexpr (HALF) {
                const __m512i a = (__m512i)half_32(tile.v[t] + d), b = (__m512i)half_32(tile.v[t + 1] + d);
                const v16u low = (v16u)_mm512_unpacklo_epi16(a, b), high = (v16u)_mm512_unpackhi_epi16(a, b);
#pragma GCC unroll 4
                for (int g = 0; g < G; ++g) {
                    const v16u x = splat_u(load<uint32_t>((const uint16_t*)weight + g * TILE + t));
                    sum[g][0] = dot2(sum[g][0], low, x);
                    sum[g][1] = dot2(sum[g][1], high, x);
                }
                continue;
            }
#endif
            const v16f a = widen(tile.v[t] + d), b = widen(tile.v[t + 1] + d);
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g) {
                sum[g][0] = madd(splat(weight[g * TILE + t]), a, sum[g][0]);
                sum[g][0] = madd(splat(weight[g * TILE + t + 1]), b, sum[g][0]);
            }
        }
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
            store(o + (size_t)g * dim, sum[g][0]);
            if (HALF) store(o + (size_t)g * dim + 16, sum[g][1]);
        }
    }
}

// One tile for pairs [begin, begin + G).
template <class E, bool HALF, int G>
static void tile_few(const Tile<E>& tile, const Pairs& p, int begin, int t0, int dim, float* top, Scratch& s) {
    float *score = s.score.data(), *weight = s.weight.data(), shrink[G];
    score_few<HALF, G>(s, begin, dim, score);
    const v16i lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int g = 0; g < G; ++g) {
        v16f x[4], most = NOTHING;
        for (int i = 0; i < 4; ++i) {
            const v16i seen = sees(lane + splat((int32_t)(t0 + 16 * i)), splat(p.low[begin + g]), splat(p.high[begin + g]));
            x[i] = select(seen, load<v16f>(score + g * TILE + 16 * i) * load<v16f>(s.factor + 16 * i), NOTHING);
            most = vmax(most, x[i]);
        }
        const float before = top[begin + g];
        const float now = top[begin + g] = std::max(before, reduce_max(most));
        shrink[g] = vexp(splat(before - now))[0];
        v16f total = load<v16f>(s.total.data() + 16 * (begin + g)) * shrink[g];
        for (int i = 0; i < 4; ++i) {
            const v16f e = seen_exp(x[i], splat(now));
            total += e;
            float scaled[16];
            store(scaled, sizeof(E) == 1 ? e * load<v16f>(s.v_scale + 16 * i) : e);
#if defined(IO_BF16_DOT)
            if constexpr (HALF) {
                to_half(scaled, (uint16_t*)weight + g * TILE + 16 * i);
                continue;
            }
#endif
            std::memcpy(weight + g * TILE + 16 * i, scaled, sizeof scaled);
        }
        store(s.total.data() + 16 * (begin + g), total);
    }
    add_values_few<E, HALF, G>(tile, weight, shrink, begin, dim, s);
}

template <class E, bool HALF>
static void attend_few(const Pairs& p, int first, int last, const Cache& c, int head, float softmax_scale, Scratch& s) {
    const int dim = c.dim;
    float top[FEW];
    for (int i = 0; i < p.count; ++i) {
        top[i] = -1e30f;
#if defined(IO_BF16_DOT)
        if constexpr (HALF)
            for (int d = 0; d < dim; d += 16) to_half(p.q[i] + d, (uint16_t*)(s.q.data() + (size_t)i * dim) + d);
        else
#endif
            std::memcpy(s.q.data() + (size_t)i * dim, p.q[i], dim * sizeof(float));
    }
    std::memset(s.o.data(), 0, (size_t)dim * p.count * sizeof(float));
    std::memset(s.total.data(), 0, 16 * p.count * sizeof(float));
    for (int t0 = first / TILE * TILE; t0 < last; t0 += TILE) {
        const Tile<E> tile(c, t0, last, head, softmax_scale, s);
        // after the last tile comes the sequence's next head
        Soon soon = t0 + TILE < last ? Soon{&c, t0 + TILE, last, head, sizeof(E)}
                                     : Soon{&c, first / TILE * TILE, head + 1 < c.heads ? last : 0, head + 1, sizeof(E)};
        turn_keys<E, HALF>(tile, dim, s, soon);
        for (int i = 0; i < p.count; i += 4) switch (p.count - i) {
                case 1: tile_few<E, HALF, 1>(tile, p, i, t0, dim, top, s); break;
                case 2: tile_few<E, HALF, 2>(tile, p, i, t0, dim, top, s); break;
                case 3: tile_few<E, HALF, 3>(tile, p, i, t0, dim, top, s); break;
                default: tile_few<E, HALF, 4>(tile, p, i, t0, dim, top, s); break;
            }
    }
    for (int i = 0; i < p.count; ++i) {
        const float inverse = 1.0f / reduce_add(load<v16f>(s.total.data() + 16 * i));
        const float* o = s.o.data() + (size_t)i * dim;
        if (!HALF) {
            for (int d = 0; d < dim; d += 16) store(p.out[i] + d, load<v16f>(o + d) * inverse);
            continue;
        }
        for (int d = 0; d < dim; d += 32) {
            const v16f low = load<v16f>(o + d), high = load<v16f>(o + d + 16);
            store(p.out[i] + d, IO_SHUFFLE(low, high, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23) * inverse);
            store(p.out[i] + d + 16,
                  IO_SHUFFLE(low, high, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31) * inverse);
        }
    }
}

}  // namespace io
