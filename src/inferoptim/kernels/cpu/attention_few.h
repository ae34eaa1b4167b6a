// Attention of few pairs (a decode): sixteen keys stand in the lanes of a vector.
#pragma once
#include "attention_tiles.h"

namespace io {

// score[g][0..16) += the products of sixteen keys' turned channels with G queries; from zero at the first.
template <bool HALF, int G>
static inline void multiply_turned(const v16f* row, const float* q, int dim, float* score, bool first) {
    v16f sum[G];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) sum[g] = first ? v16f{} : load<v16f>(score + g * TILE);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
#if defined(IO_BF16_DOT)
            if constexpr (HALF) sum[g] = dot2(sum[g], (v16u)row[i], splat_u(load<uint32_t>(q + (size_t)g * dim + i)));
            else
#endif
                sum[g] = madd(row[i], splat(q[(size_t)g * dim + i]), sum[g]);
        }
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) store(score + g * TILE, sum[g]);
}

#if defined(IO_BF16_DOT)
// The same for int8: s.score holds integers, and a turned row four channels of each key.
static void score_tile_bytes(const Tile<int8_t>& tile, int pairs, int dim, Scratch& s, Soon& soon) {
    for (int j = 0; j < tile.n; j += 16) {
        soon.fetch(16);
        for (int d = 0; d < dim; d += 64) {
            v16f row[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) row[i] = (v16f)unsigned_64(tile.k[j + i] + d);
            transpose_16(row);
            for (int g = 0; g < pairs; ++g) {
                int32_t* score = (int32_t*)s.score.data() + g * TILE + j;
                const char* q = (const char*)(s.q.data() + (size_t)g * dim) + d;
                // two sums, since an instruction waits for the one before
                __m512i even = d ? _mm512_loadu_si512(score) : _mm512_set1_epi32(s.q_start[g]), odd = _mm512_setzero_si512();
#pragma GCC unroll 8
                for (int i = 0; i < 16; i += 2) {
                    dot4(even, (__m512i)row[i], _mm512_set1_epi32(load<int32_t>(q + 4 * i)));
                    dot4(odd, (__m512i)row[i + 1], _mm512_set1_epi32(load<int32_t>(q + 4 * i + 4)));
                }
                _mm512_storeu_si512(score, _mm512_add_epi32(even, odd));
            }
        }
    }
}
#endif

// s.score[pair][TILE] = q . k. Sixteen keys are turned so that they stand in the lanes, and multiplied while in registers.
template <class E, bool HALF>
static inline __attribute__((always_inline)) void score_tile(const Tile<E>& tile, int pairs, int dim, Scratch& s, Soon& soon) {
    constexpr int STEP = HALF ? 32 : 16;
    for (int j = 0; j < tile.n; j += 16) {
        soon.fetch(16);
        for (int d = 0; d < dim; d += STEP) {
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
            const float* q = s.q.data() + (HALF ? d / 2 : d);
            float* score = s.score.data() + j;
            int g = 0;
            for (; g + 3 <= pairs; g += 3, q += 3 * dim, score += 3 * TILE) multiply_turned<HALF, 3>(row, q, dim, score, d == 0);
            for (; g < pairs; ++g, q += dim, score += TILE) multiply_turned<HALF, 1>(row, q, dim, score, d == 0);
        }
    }
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
    float *score = s.score.data() + begin * TILE, *weight = s.weight.data(), shrink[G];
    const v16i lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int g = 0; g < G; ++g) {
        v16f x[4], most = NOTHING;
        for (int i = 0; i < 4; ++i) {
            const v16i seen = sees(lane + splat((int32_t)(t0 + 16 * i)), splat(p.low[begin + g]), splat(p.high[begin + g]));
            v16f product = load<v16f>(score + g * TILE + 16 * i);
#if defined(IO_BF16_DOT)
            if constexpr (HALF && sizeof(E) == 1)
                product = (v16f)_mm512_cvtepi32_ps((__m512i)product) * splat(s.q_scale[begin + g]);
#endif
            x[i] = select(seen, product * load<v16f>(s.factor + 16 * i), NOTHING);
            most = vmax(most, x[i]);
        }
        const float before = top[begin + g];
        const float now = top[begin + g] = std::max(before, reduce_max(most));
        shrink[g] = exponential<HALF>(splat(before - now))[0];
        v16f total = load<v16f>(s.total.data() + 16 * (begin + g)) * shrink[g];
        for (int i = 0; i < 4; ++i) {
            const v16f e = weight_of<HALF>(x[i], splat(now));
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
        if constexpr (HALF && sizeof(E) == 1)
            to_bytes(p.q[i], dim, (int8_t*)(s.q.data() + (size_t)i * dim), s.q_scale[i], s.q_start[i]);
        else if constexpr (HALF)
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
#if defined(IO_BF16_DOT)
        if constexpr (HALF && sizeof(E) == 1) score_tile_bytes(tile, p.count, dim, s, soon);
        else
#endif
            score_tile<E, HALF>(tile, p.count, dim, s, soon);
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
