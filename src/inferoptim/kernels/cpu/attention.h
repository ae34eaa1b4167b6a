// Causal attention over a paged cache, for any mix of query lengths.
//
// A query head group shares its KV head (GQA), so a sequence's work for one KV head is a list of (query, head) pairs.
// Few pairs (a decode): dot products along the head, one key at a time. Many pairs (a prompt, a verification): sixteen
// pairs stand in the lanes of a vector and every key is read once for all of them, with a running softmax over tiles of
// keys that begin at multiples of TILE whatever the chunk, so that chunking does not change a result.
#pragma once
#include <vector>

#include "vector.h"

namespace io {

constexpr int TILE = 64;

// One layer's cache and one sequence's way through it.
struct Cache {
    const void* data;
    const float* scale;  // per (slot, head), or null
    int32_t type;        // 0 float32, 1 bfloat16, 2 int8
    int heads, dim, block_size;

    void read(const int32_t* table, int token, int head, float* out) const {
        const size_t slot = (size_t)table[token / block_size] * block_size + token % block_size;
        const size_t at = (slot * heads + head) * dim;
        if (type == 0) std::memcpy(out, (const float*)data + at, dim * sizeof(float));
        else if (type == 1)
            for (int d = 0; d < dim; d += 16) store(out + d, widen((const uint16_t*)data + at + d));
        else {
            const float s = scale[slot * heads + head];
            for (int d = 0; d < dim; d += 16) store(out + d, widen((const int8_t*)data + at + d) * s);
        }
    }
};

struct Scratch {
    std::vector<float> q, k, v, o, score;
    void reserve(int dim, int longest) {
        q.resize((size_t)dim * 16);
        o.resize((size_t)dim * 16);
        k.resize((size_t)dim * TILE);
        v.resize((size_t)dim * TILE);
        if (score.size() < (size_t)longest + TILE * 16) score.resize((size_t)longest + TILE * 16);
    }
};

// One query of one head against tokens [from, to).
static void attend_one(const float* q, const Cache& k, const Cache& v, const int32_t* table, int head, int from, int to,
                       float softmax_scale, Scratch& s, float* out) {
    const int dim = k.dim;
    float* score = s.score.data();
    float top = -1e30f;
    for (int t = from; t < to; ++t) {
        k.read(table, t, head, s.k.data());
        v16f sum = {};
        for (int d = 0; d < dim; d += 16) sum += load<v16f>(q + d) * load<v16f>(s.k.data() + d);
        score[t - from] = reduce_add(sum) * softmax_scale;
        top = score[t - from] > top ? score[t - from] : top;
    }
    const int n = to - from, whole = (n + 15) / 16 * 16;
    for (int t = n; t < whole; ++t) score[t] = -1e30f;
    v16f total = {};
    for (int t = 0; t < whole; t += 16) {
        const v16f e = vexp(load<v16f>(score + t) - top);
        store(score + t, e);
        total += e;
    }
    const float inverse = 1.0f / reduce_add(total);
    float* o = s.o.data();
    std::memset(o, 0, dim * sizeof(float));
    for (int t = 0; t < n; ++t) {
        v.read(table, t + from, head, s.v.data());
        for (int d = 0; d < dim; d += 16) store(o + d, load<v16f>(o + d) + load<v16f>(s.v.data() + d) * score[t]);
    }
    for (int d = 0; d < dim; d += 16) store(out + d, load<v16f>(o + d) * inverse);
}

// Up to 16 (query, head) pairs; pair i sees tokens [from[i], to[i]). q[i], out[i]: dim floats each.
static void attend_lanes(int pairs, const float* const* q, float* const* out, const int32_t* from, const int32_t* to,
                         const Cache& k, const Cache& v, const int32_t* table, int head, float softmax_scale, Scratch& s) {
    const int dim = k.dim;
    float *Q = s.q.data(), *O = s.o.data(), *K = s.k.data(), *V = s.v.data(), *S = s.score.data();
    int first = to[0], last = 0;
    v16i low = {}, high = {};
    for (int i = 0; i < pairs; ++i) {
        low[i] = from[i];
        high[i] = to[i];
        first = from[i] < first ? from[i] : first;
        last = to[i] > last ? to[i] : last;
    }
    for (int d = 0; d < dim; ++d)
        for (int i = 0; i < 16; ++i) Q[d * 16 + i] = i < pairs ? q[i][d] * softmax_scale : 0.0f;
    std::memset(O, 0, (size_t)dim * 16 * sizeof(float));
    v16f top = splat(-1e30f), total = {};
    for (int t0 = first / TILE * TILE; t0 < last; t0 += TILE) {
        const int begin = t0 < first ? first : t0, end = t0 + TILE < last ? t0 + TILE : last, n = end - begin;
        for (int j = 0; j < n; ++j) {
            k.read(table, begin + j, head, K + (size_t)j * dim);
            v.read(table, begin + j, head, V + (size_t)j * dim);
        }
        v16f tile_top = top;
        int j = 0;
        for (; j + 8 <= n; j += 8) {
            v16f sum[8] = {};
            for (int d = 0; d < dim; ++d) {
                const v16f x = load<v16f>(Q + d * 16);
                for (int i = 0; i < 8; ++i) sum[i] += x * K[(size_t)(j + i) * dim + d];
            }
            for (int i = 0; i < 8; ++i) store(S + (j + i) * 16, sum[i]);
        }
        for (; j < n; ++j) {
            v16f sum = {};
            for (int d = 0; d < dim; ++d) sum += load<v16f>(Q + d * 16) * K[(size_t)j * dim + d];
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
            for (int i = 0; i < 16; ++i) sum[i] = load<v16f>(O + (d + i) * 16) * shrink;
            for (j = 0; j < n; ++j) {
                const v16f e = load<v16f>(S + j * 16);
                const float* x = V + (size_t)j * dim + d;
                for (int i = 0; i < 16; ++i) sum[i] += e * x[i];
            }
            for (int i = 0; i < 16; ++i) store(O + (d + i) * 16, sum[i]);
        }
    }
    for (int i = 0; i < pairs; ++i)
        for (int d = 0; d < dim; ++d) out[i][d] = O[d * 16 + i] / total[i];
}

}  // namespace io
