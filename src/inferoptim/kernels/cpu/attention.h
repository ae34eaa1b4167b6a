// Causal attention over a paged cache, for any mix of query lengths.
//
// A query head group shares its KV head (GQA), so a sequence's work for one KV head is a list of (query, head) pairs.
// Few pairs (a decode): dot products along the head, sixteen keys at a time. Many pairs (a prompt, a verification):
// sixteen pairs stand in the lanes of a vector and every key is read once for all of them, with a running softmax over
// tiles of keys that begin at multiples of TILE whatever the chunk, so that chunking does not change a result.
#pragma once
#include <vector>

#include "vector.h"

namespace io {

constexpr int TILE = 64;
constexpr int FEW = 4;  // pairs whose sums fit the registers together

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
    const float* q[16];
    float* out[16];
    int32_t low[16], high[16];
};

struct Scratch {
    std::vector<float> q, k, v, o, score;
    void reserve(int dim, int longest) {
        q.resize((size_t)dim * 16);
        o.resize((size_t)dim * 16);
        k.resize((size_t)dim * TILE);
        v.resize((size_t)dim * TILE);
        const size_t scores = std::max((size_t)FEW * (longest + 32), (size_t)TILE * 16);
        if (score.size() < scores) score.resize(scores);
    }
};

static inline void range_of(const Pairs& p, int begin, int end, int& first, int& last) {
    first = p.low[begin], last = p.high[begin];
    for (int i = begin + 1; i < end; ++i) {
        first = p.low[i] < first ? p.low[i] : first;
        last = p.high[i] > last ? p.high[i] : last;
    }
}

// Sixteen keys of one head as floats [16][dim]; what lies past `n` repeats the last one.
template <class E>
static inline void widen_keys(const Cache& c, int token, int n, int head, float* out) {
    for (int t = 0; t < 16; ++t) {
        const E* from = (const E*)c.k + c.at(token + (t < n ? t : n - 1), head);
        for (int d = 0; d < c.dim; d += 16) store(out + (size_t)t * c.dim + d, widen(from + d));
    }
}

// Pairs [begin, begin + G) against the whole context: scores, softmax, weighted values.
template <class E, int G>
static void attend_few(const Pairs& p, int begin, const Cache& c, int head, float softmax_scale, Scratch& s) {
    const int dim = c.dim;
    int first, last;
    range_of(p, begin, begin + G, first, last);
    const int n = last - first, whole = (n + 15) / 16 * 16;
    float* score = s.score.data();  // [G][whole]
    v16f top[G];
    for (int g = 0; g < G; ++g) top[g] = splat(-1e30f);
    const v16i lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int t = 0; t < n; t += 16) {
        const int rest = n - t;
        widen_keys<E>(c, first + t, rest, head, s.k.data());
        v16f k_scale = splat(1.0f);
        if (sizeof(E) == 1)
            for (int i = 0; i < 16; ++i) k_scale[i] = c.k_scale[c.scale_at(first + t + (i < rest ? i : rest - 1), head)];
        for (int g = 0; g < G; ++g) {
            v16f sum[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) sum[i] = v16f{};
            for (int d = 0; d < dim; d += 16) {
                const v16f q = load<v16f>(p.q[begin + g] + d);
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) sum[i] += q * load<v16f>(s.k.data() + (size_t)i * dim + d);
            }
            const v16i token = lane + splat((int32_t)(first + t));
            const v16i visible = (token >= splat(p.low[begin + g])) & (token < splat(p.high[begin + g]));
            const v16f x = select(visible, reduce_add_16(sum) * k_scale * softmax_scale, splat(-1e30f));
            store(score + (size_t)g * whole + t, x);
            top[g] = vmax(top[g], x);
        }
    }
    float inverse[G];
    for (int g = 0; g < G; ++g) {
        const v16f most = splat(reduce_max(top[g]));
        v16f total = {};
        float* row = score + (size_t)g * whole;
        for (int t = 0; t < whole; t += 16) {
            const v16f e = vexp(load<v16f>(row + t) - most);  // what is not visible stands at -1e30: exactly 0
            store(row + t, e);
            total += e;
        }
        inverse[g] = 1.0f / reduce_add(total);
        if (sizeof(E) == 1)
            for (int t = 0; t < n; ++t) row[t] *= c.v_scale[c.scale_at(first + t, head)];
    }
    int d = 0;
    for (; d + 64 <= dim; d += 64) {
        v16f sum[G][4];
        for (int g = 0; g < G; ++g) sum[g][0] = sum[g][1] = sum[g][2] = sum[g][3] = v16f{};
        for (int t = 0; t < n; ++t) {
            const E* from = (const E*)c.v + c.at(first + t, head) + d;
            const v16f v0 = widen(from), v1 = widen(from + 16), v2 = widen(from + 32), v3 = widen(from + 48);
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g) {
                const v16f weight = splat(score[(size_t)g * whole + t]);
                sum[g][0] += weight * v0;
                sum[g][1] += weight * v1;
                sum[g][2] += weight * v2;
                sum[g][3] += weight * v3;
            }
        }
        for (int g = 0; g < G; ++g)
            for (int i = 0; i < 4; ++i) store(p.out[begin + g] + d + 16 * i, sum[g][i] * inverse[g]);
    }
    for (; d < dim; d += 16)
        for (int g = 0; g < G; ++g) {
            v16f sum = {};
            for (int t = 0; t < n; ++t)
                sum += widen((const E*)c.v + c.at(first + t, head) + d) * score[(size_t)g * whole + t];
            store(p.out[begin + g] + d, sum * inverse[g]);
        }
}

// All pairs at once, one to a lane.
template <class E>
static void attend_lanes(const Pairs& p, const Cache& c, int head, float softmax_scale, Scratch& s) {
    const int dim = c.dim;
    float *Q = s.q.data(), *O = s.o.data(), *K = s.k.data(), *V = s.v.data(), *S = s.score.data();
    int first, last;
    range_of(p, 0, p.count, first, last);
    v16i low = {}, high = {};
    for (int i = 0; i < p.count; ++i) low[i] = p.low[i], high[i] = p.high[i];
    for (int d = 0; d < dim; ++d)
        for (int i = 0; i < 16; ++i) Q[d * 16 + i] = i < p.count ? p.q[i][d] * softmax_scale : 0.0f;
    std::memset(O, 0, (size_t)dim * 16 * sizeof(float));
    v16f top = splat(-1e30f), total = {};
    for (int t0 = first / TILE * TILE; t0 < last; t0 += TILE) {
        const int begin = t0 < first ? first : t0, end = t0 + TILE < last ? t0 + TILE : last, n = end - begin;
        for (int j = 0; j < n; ++j) {
            const size_t at = c.at(begin + j, head);
            const float ks = sizeof(E) == 1 ? c.k_scale[c.scale_at(begin + j, head)] : 1.0f;
            const float vs = sizeof(E) == 1 ? c.v_scale[c.scale_at(begin + j, head)] : 1.0f;
            for (int d = 0; d < dim; d += 16) {
                store(K + (size_t)j * dim + d, widen((const E*)c.k + at + d) * ks);
                store(V + (size_t)j * dim + d, widen((const E*)c.v + at + d) * vs);
            }
        }
        v16f tile_top = top;
        int j = 0;
        for (; j + 8 <= n; j += 8) {
            v16f sum[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) sum[i] = v16f{};
            for (int d = 0; d < dim; ++d) {
                const v16f x = load<v16f>(Q + d * 16);
#pragma GCC unroll 8
                for (int i = 0; i < 8; ++i) sum[i] += x * splat(K[(size_t)(j + i) * dim + d]);
            }
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) store(S + (j + i) * 16, sum[i]);
        }
        for (; j < n; ++j) {
            v16f sum = {};
            for (int d = 0; d < dim; ++d) sum += load<v16f>(Q + d * 16) * splat(K[(size_t)j * dim + d]);
            store(S + j * 16, sum);
        }
        for (j = 0; j < n; ++j) {
            const v16i t = splat((int32_t)(begin + j)), visible = (t >= low) & (t < high);
            const v16f x = select(visible, load<v16f>(S + j * 16), splat(-1e30f));
            store(S + j * 16, x);
            tile_top = vmax(tile_top, x);
        }
        const v16f shrink = vexp(top - tile_top);
        top = tile_top;
        total *= shrink;
        for (j = 0; j < n; ++j) {
            const v16f x = load<v16f>(S + j * 16);
            const v16f e = select(x > splat(-1e29f), vexp(x - top), v16f{});
            store(S + j * 16, e);
            total += e;
        }
        for (int d = 0; d < dim; d += 16) {
            v16f sum[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) sum[i] = load<v16f>(O + (d + i) * 16) * shrink;
            for (j = 0; j < n; ++j) {
                const v16f e = load<v16f>(S + j * 16);
                const float* x = V + (size_t)j * dim + d;
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) sum[i] += e * splat(x[i]);
            }
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) store(O + (d + i) * 16, sum[i]);
        }
    }
    for (int i = 0; i < p.count; ++i)
        for (int d = 0; d < dim; ++d) p.out[i][d] = O[d * 16 + i] / total[i];
}

// `few`: by dot products (the choice depends on the sequence's query length alone, not on its neighbours).
template <class E>
static void attend(const Pairs& p, bool few, const Cache& c, int head, float softmax_scale, Scratch& s) {
    if (!few) return attend_lanes<E>(p, c, head, softmax_scale, s);
    for (int i = 0; i < p.count; i += FEW) switch (p.count - i) {
            case 1: attend_few<E, 1>(p, i, c, head, softmax_scale, s); break;
            case 2: attend_few<E, 2>(p, i, c, head, softmax_scale, s); break;
            case 3: attend_few<E, 3>(p, i, c, head, softmax_scale, s); break;
            default: attend_few<E, 4>(p, i, c, head, softmax_scale, s); break;
        }
}

}  // namespace io
