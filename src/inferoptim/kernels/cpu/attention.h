// Causal attention over a paged cache, for any mix of query lengths.
//
// The query heads of a group share their KV head (GQA), so a sequence's work for one KV head is a list of (query, head)
// pairs, over tiles of keys with a running softmax. Few pairs (a decode): sixteen keys stand in the lanes of a vector.
// Many pairs (a prompt): sixteen pairs do, and a tile is prepared once for all of them. Both make the same operations
// in the same order for each pair, and tiles begin at multiples of TILE whatever the chunk: neither chunking nor
// speculation nor the company in the batch changes a bit of the result.
//
// HALF: products of bfloat16 (two a lane and instruction) into float32 sums, for models in bfloat16 where it pays.
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

// Weights of the next product, asked of memory a few lines at a time while it would idle.
struct Stream {
    const char *at = nullptr, *end = nullptr;
    size_t lines = 0;  // of one call

    void fetch() {
#if defined(__x86_64__)
        for (size_t i = 0; i < lines && at < end; ++i, at += 64) _mm_prefetch(at, _MM_HINT_T1);
#endif
    }
};

struct Scratch {
    Stream stream;
    std::vector<float> q, o, k, v, score, weight, total;
    float factor[TILE], v_scale[TILE];
    void reserve(int dim) {
        for (auto* a : {&q, &o}) a->resize((size_t)dim * MOST);
        for (auto* a : {&k, &v}) a->resize((size_t)dim * TILE);
        score.resize(TILE * 16);
        weight.resize(TILE * 16);
        total.resize(16 * MOST);
    }
};

static const v16f NOTHING = splat(-1e30f);  // score of a key that a pair does not see
static inline v16f seen_exp(v16f x, v16f top) { return select(x > splat(-1e29f), vexp(x - top), v16f{}); }
static inline v16i sees(const v16i& token, v16i low, v16i high) { return (token >= low) & (token < high); }

#if defined(IO_BF16_DOT)
static inline v16f dot2(v16f sum, v16u a, v16u b) {
    return (v16f)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
static inline void to_half(const float* from, uint16_t* to) {  // sixteen
    const __m256bh h = _mm512_cvtneps_pbh(_mm512_loadu_ps(from));
    std::memcpy(to, &h, 32);
}
static inline v16u half_32(const uint16_t* p) { return load<v16u>(p); }
static inline v16u half_32(const int8_t* p) {  // exact: bfloat16 holds every integer up to 256
    return (v16u)_mm512_cvtne2ps_pbh((__m512)widen(p + 16), (__m512)widen(p));
}
#endif
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
        for (int j = 0; j < TILE; ++j) {
            const int token = t0 + std::min(j, real - 1);
            const size_t at = c.at(token, head);
            k[j] = (const E*)c.k + at;
            v[j] = (const E*)c.v + at;
            s.factor[j] = softmax_scale * (sizeof(E) == 1 ? c.k_scale[c.scale_at(token, head)] : 1.0f);
            s.v_scale[j] = sizeof(E) == 1 ? c.v_scale[c.scale_at(token, head)] : 1.0f;
        }
    }
};

// ---- few pairs ---------------------------------------------------------------------------------------------------

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

// ---- many pairs --------------------------------------------------------------------------------------------------

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

template <class E>
static void attend(const Pairs& p, bool half, const Cache& c, int head, float softmax_scale, Scratch& s) {
    int first = p.low[0], last = p.high[0];
    for (int i = 1; i < p.count; ++i) first = std::min(first, p.low[i]), last = std::max(last, p.high[i]);
    const bool few = p.count <= FEW;
#if defined(IO_BF16_DOT)
    if constexpr (sizeof(E) < 4)
        if (half && c.dim % 32 == 0) {
            if (few) return attend_few<E, true>(p, first, last, c, head, softmax_scale, s);
            return attend_lanes<E, true>(p, first, last, c, head, softmax_scale, s);
        }
#endif
    (void)half;
    if (few) attend_few<E, false>(p, first, last, c, head, softmax_scale, s);
    else attend_lanes<E, false>(p, first, last, c, head, softmax_scale, s);
}

}  // namespace io
