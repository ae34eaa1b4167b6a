// A whole decoder step in one call: embedding, layers, output head, over a varlen batch of sequences.
//
// Few rows (decodes): every product is split over the threads by outputs, so that each weight is read once, by one
// thread. Many rows (prompts): rows are split over the threads, which then meet only around attention.
// Activations are float32 between operators.
#include <algorithm>
#include <memory>
#include <string>

#include "attention.h"
#include "gemm.h"
#include "pool.h"

using namespace io;

extern "C" {

struct LinearSource {  // row-major [n, k] as torch holds it
    int32_t kind, n, k;
    const void* weight;
    const float* scale;  // int8 only
    const float* bias;   // or null
};

struct LayerSource {
    LinearSource qkv, o, gate_up, down;
    const float *input_norm, *post_norm, *q_norm, *k_norm;  // the last two may be null
    int32_t window;                                         // 0: none
};

struct ModelSource {
    int32_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, threads;
    float eps;
    int32_t embedding_type;  // 0 float32, 1 bfloat16
    const void* embedding;   // [vocab, hidden]; the caller keeps it alive
    const float* final_norm;
};

struct Step {
    int32_t tokens, sequences, rows, table_width, block_size, kv_type, longest, greedy;
    const int32_t *token_ids, *slots, *query_start, *context, *tables, *logit_rows;
    const float *cos, *sin;  // [tokens, head_dim / 2]
    void* const* k;          // one pointer a layer
    void* const* v;
    float* const* k_scale;
    float* const* v_scale;
    float* logits;    // [rows, vocab], unless greedy
    int64_t* chosen;  // [rows], if greedy
};

}  // extern "C"

namespace {

struct Layer {
    Linear qkv, o, gate_up, down;
    std::vector<float> input_norm, post_norm, q_norm, k_norm;
    int window = 0;
};

void take(Linear& w, const LinearSource& s, bool interleave_halves = false) {
    w.kind = (Kind)s.kind;
    w.n = s.n;
    w.k = s.k;
    std::vector<int> order;
    if (interleave_halves) {  // gate and up alternate by 16 outputs: one panel holds both factors of 16 products
        const int half = s.n / 2;
        for (int i = 0; i < half; i += 16)
            for (int part = 0; part < 2; ++part)
                for (int j = i; j < i + 16; ++j) order.push_back(j < half ? part * half + j : -1);
    } else
        for (int i = 0; i < s.n; ++i) order.push_back(i);
    pack(w, s.weight, order);
    order.resize((size_t)w.panels * PANEL, -1);
    auto gather = [&](const float* from, std::vector<float>& to) {
        if (!from) return;
        to.assign(order.size(), 0.0f);
        for (size_t i = 0; i < order.size(); ++i)
            if (order[i] >= 0) to[i] = from[order[i]];
    };
    gather(s.scale, w.scale);
    gather(s.bias, w.bias);
}

struct Model {
    ModelSource s;
    Pool pool;
    std::vector<std::unique_ptr<Layer>> layers;
    Linear head;
    std::vector<float> final_norm;
    std::vector<float> x, normal, qkv, mixed, product;
    Rows in;
    std::vector<Scratch> scratch;
    std::vector<int32_t> slot_of;
    std::vector<size_t> slot_start;
    std::vector<std::vector<std::pair<float, int64_t>>> best;  // greedy: per thread and row

    explicit Model(const ModelSource& source) : s(source), pool(source.threads), scratch(pool.threads()), best(pool.threads()) {
        final_norm.assign(s.final_norm, s.final_norm + s.hidden);
    }

    struct Range {
        size_t row0, row1;
    };
    Range share(size_t n, int thread) const {
        const size_t t = pool.threads();
        return {n * thread / t, n * (thread + 1) / t};
    }

    void rms_norm(const float* x, const float* weight, int n, float* out) const {
        v16f sums = {};
        int i = 0;
        for (; i + 16 <= n; i += 16) {
            const v16f a = load<v16f>(x + i);
            sums += a * a;
        }
        float sum = reduce_add(sums);
        for (; i < n; ++i) sum += x[i] * x[i];
        const float r = 1.0f / std::sqrt(sum / n + s.eps);
        for (i = 0; i + 16 <= n; i += 16) store(out + i, load<v16f>(x + i) * r * load<v16f>(weight + i));
        for (; i < n; ++i) out[i] = x[i] * r * weight[i];
    }

    void rotate_and_write(const Step& b, const Layer& layer, int index, size_t t) {
        const int dim = s.head_dim, half = dim / 2;
        float* row = qkv.data() + t * (size_t)(s.heads + 2 * s.kv_heads) * dim;
        const float *c = b.cos + t * half, *sn = b.sin + t * half;
        for (int h = 0; h < s.heads + s.kv_heads; ++h) {
            float* p = row + (size_t)h * dim;
            const std::vector<float>& norm = h < s.heads ? layer.q_norm : layer.k_norm;
            if (!norm.empty()) rms_norm(p, norm.data(), dim, p);
            for (int i = 0; i < half; ++i) {
                const float a = p[i], e = p[i + half];
                p[i] = a * c[i] - e * sn[i];
                p[i + half] = e * c[i] + a * sn[i];
            }
        }
        const size_t slot = b.slots[t];
        const float* k = row + (size_t)s.heads * dim;
        write(b, b.k[index], b.k_scale ? b.k_scale[index] : nullptr, slot, k);
        write(b, b.v[index], b.v_scale ? b.v_scale[index] : nullptr, slot, k + (size_t)s.kv_heads * dim);
    }

    void write(const Step& b, void* cache, float* scale, size_t slot, const float* x) const {
        const int n = s.kv_heads * s.head_dim;
        const size_t at = slot * n;
        if (b.kv_type == 0) std::memcpy((float*)cache + at, x, n * sizeof(float));
        else if (b.kv_type == 1)
            for (int i = 0; i < n; ++i) ((uint16_t*)cache)[at + i] = float_to_bf16(x[i]);
        else
            for (int h = 0; h < s.kv_heads; ++h) {
                const float* p = x + (size_t)h * s.head_dim;
                float top = 0;
                for (int d = 0; d < s.head_dim; ++d) top = std::fabs(p[d]) > top ? std::fabs(p[d]) : top;
                const float sc = top / 127.0f, divisor = sc == 0 ? 1.0f : sc;
                scale[slot * s.kv_heads + h] = sc;
                int8_t* out = (int8_t*)cache + at + (size_t)h * s.head_dim;
                for (int d = 0; d < s.head_dim; ++d) out[d] = (int8_t)std::nearbyintf(p[d] / divisor);
            }
    }

    // Tasks are (sequence, KV head, 16 pairs); each thread takes every threads-th.
    void attention(const Step& b, const Layer& layer, int index, int thread) {
        const int group = s.heads / s.kv_heads, dim = s.head_dim;
        const size_t width = (size_t)(s.heads + 2 * s.kv_heads) * dim;
        const float scale = 1.0f / std::sqrt((float)dim);
        Cache cache{b.k[index], b.v[index], b.k_scale ? b.k_scale[index] : nullptr, b.v_scale ? b.v_scale[index] : nullptr,
                    s.kv_heads, dim, nullptr};
        int task = 0;
        for (int q = 0; q < b.sequences; ++q) {
            const int first = b.query_start[q], n = b.query_start[q + 1] - first, context = b.context[q];
            const bool few = n * group <= 8;
            cache.slots = slot_of.data() + slot_start[q];
            for (int h = 0; h < s.kv_heads; ++h)
                for (int p0 = 0; p0 < n * group; p0 += 16) {
                    if (task++ % pool.threads() != thread) continue;
                    Pairs pairs;
                    pairs.count = std::min(16, n * group - p0);
                    for (int i = 0; i < pairs.count; ++i) {
                        const int query = (p0 + i) / group, at = h * group + (p0 + i) % group;
                        pairs.q[i] = qkv.data() + (first + query) * width + (size_t)at * dim;
                        pairs.out[i] = mixed.data() + ((size_t)(first + query) * s.heads + at) * dim;
                        pairs.high[i] = context - n + query + 1;
                        pairs.low[i] = layer.window ? std::max(0, pairs.high[i] - layer.window) : 0;
                    }
                    if (b.kv_type == 0) attend<float>(pairs, few, cache, h, scale, scratch[thread]);
                    else if (b.kv_type == 1) attend<uint16_t>(pairs, few, cache, h, scale, scratch[thread]);
                    else attend<int8_t>(pairs, few, cache, h, scale, scratch[thread]);
                }
        }
    }

    // The slot of every token of every sequence, looked up once for all layers and heads.
    void find_slots(const Step& b) {
        slot_start.resize(b.sequences);
        size_t total = 0;
        for (int q = 0; q < b.sequences; ++q) slot_start[q] = total, total += b.context[q];
        if (slot_of.size() < total) slot_of.resize(total);
        for (int q = 0; q < b.sequences; ++q) {
            const int32_t* table = b.tables + (size_t)q * b.table_width;
            int32_t* out = slot_of.data() + slot_start[q];
            for (int t = 0; t < b.context[q]; t += b.block_size)
                for (int i = t; i < std::min(t + b.block_size, b.context[q]); ++i)
                    out[i] = table[t / b.block_size] * b.block_size + i - t;
        }
    }

    // prepare() each row of `from`, then multiply; `together` = threads share rows and split outputs.
    template <class Out>
    void multiply(const Linear& w, const float* from, Range rows, bool together, int thread, const Out& out) {
        if (w.kind == BF16 || w.kind == INT8_DYNAMIC) {
            const Range mine = together ? share(rows.row1, thread) : rows;
            for (size_t r = mine.row0; r < mine.row1; ++r) prepare_row(in, w, from + r * w.k, r);
        }
        if (thread == 0 || !together) in_x(from);
        if (together) {
            pool.barrier();
            const Range panels = share(w.panels, thread);
            gemm(in, w, 0, rows.row1, (int)panels.row0, (int)panels.row1, out);
            pool.barrier();
        } else {
            gemm(in, w, rows.row0, rows.row1, 0, w.panels, out);
            pool.barrier();  // `in` has room for one product at a time: nobody may prepare the next one yet
        }
    }
    void in_x(const float* from) { in.x = from; }

    void run(const Step& b) {
        reserve(b);
        find_slots(b);
        pool.run([&](int thread) { work(b, thread); });
        if (b.greedy)
            for (int r = 0; r < b.rows; ++r) {
                auto top = best[0][r];
                for (auto& other : best)
                    if (other[r].first > top.first || (other[r].first == top.first && other[r].second < top.second)) top = other[r];
                b.chosen[r] = top.second;
            }
    }

    void reserve(const Step& b) {
        const size_t t = b.tokens, rows = std::max(b.tokens, b.rows);
        const int q = s.heads * s.head_dim;
        int widest = head.k_padded, groups = widest / std::max(head.group, 1);
        for (auto& layer : layers)
            for (const Linear* w : {&layer->qkv, &layer->o, &layer->gate_up, &layer->down}) {
                widest = std::max(widest, w->k_padded);
                groups = std::max(groups, w->k_padded / w->group);
            }
        auto grow = [](std::vector<float>& a, size_t n) {
            if (a.size() < n) a.resize(n);
        };
        grow(x, t * s.hidden);
        grow(normal, rows * s.hidden);
        grow(qkv, t * (size_t)(s.heads + 2 * s.kv_heads) * s.head_dim);
        grow(mixed, t * q);
        grow(product, t * s.intermediate);
        in.reserve(rows, widest, groups);
        for (auto& one : scratch) one.reserve(s.head_dim, b.longest + 16);
        for (auto& one : best) one.assign(b.greedy ? b.rows : 0, {-INFINITY, 0});
    }

    void work(const Step& b, int thread) {
        const size_t tokens = b.tokens, hidden = s.hidden;
        const bool together = tokens < (size_t)48 * pool.threads();
        const Range mine = share(tokens, thread);
        const Range rows = together ? Range{0, tokens} : mine;
        const size_t width = (size_t)(s.heads + 2 * s.kv_heads) * s.head_dim;
        for (size_t t = mine.row0; t < mine.row1; ++t) embed(b.token_ids[t], x.data() + t * hidden);
        for (size_t i = 0; i < layers.size(); ++i) {
            const Layer& layer = *layers[i];
            for (size_t t = mine.row0; t < mine.row1; ++t)
                rms_norm(x.data() + t * hidden, layer.input_norm.data(), s.hidden, normal.data() + t * hidden);
            meet(together);
            multiply(layer.qkv, normal.data(), rows, together, thread, [&](size_t r, int panel, v16f a, v16f c) {
                put(qkv.data() + r * width, panel * PANEL, (int)width, a, c);
            });
            for (size_t t = mine.row0; t < mine.row1; ++t) rotate_and_write(b, layer, (int)i, t);
            pool.barrier();
            attention(b, layer, (int)i, thread);
            pool.barrier();
            auto add = [&](size_t r, int panel, v16f a, v16f c) { add_to(x.data() + r * hidden, panel * PANEL, a, c); };
            multiply(layer.o, mixed.data(), rows, together, thread, add);
            for (size_t t = mine.row0; t < mine.row1; ++t)
                rms_norm(x.data() + t * hidden, layer.post_norm.data(), s.hidden, normal.data() + t * hidden);
            meet(together);
            multiply(layer.gate_up, normal.data(), rows, together, thread, [&](size_t r, int panel, v16f gate, v16f up) {
                const int at = panel * 16, n = s.intermediate - at;
                float* to = product.data() + r * s.intermediate + at;
                const v16f y = silu(gate) * up;
                if (n >= 16) store(to, y);
                else
                    for (int j = 0; j < n; ++j) to[j] = y[j];
            });
            multiply(layer.down, product.data(), rows, together, thread, add);
        }
        pool.barrier();
        output(b, thread);
    }

    void meet(bool together) {
        if (together) pool.barrier();
    }

    void put(float* row, int at, int n, v16f a, v16f c) const {
        if (at + PANEL <= n) {
            store(row + at, a);
            store(row + at + 16, c);
            return;
        }
        for (int j = 0; j < 16; ++j) {
            if (at + j < n) row[at + j] = a[j];
            if (at + 16 + j < n) row[at + 16 + j] = c[j];
        }
    }
    void add_to(float* row, int at, v16f a, v16f c) const {
        if (at + PANEL <= s.hidden) {
            store(row + at, load<v16f>(row + at) + a);
            store(row + at + 16, load<v16f>(row + at + 16) + c);
            return;
        }
        for (int j = 0; j < 16; ++j) {
            if (at + j < s.hidden) row[at + j] += a[j];
            if (at + 16 + j < s.hidden) row[at + 16 + j] += c[j];
        }
    }

    void embed(int32_t id, float* out) const {
        const size_t at = (size_t)id * s.hidden;
        if (s.embedding_type == 0) std::memcpy(out, (const float*)s.embedding + at, s.hidden * sizeof(float));
        else
            for (int i = 0; i < s.hidden; ++i) out[i] = bf16_to_float(((const uint16_t*)s.embedding)[at + i]);
    }

    void output(const Step& b, int thread) {
        const size_t hidden = s.hidden;
        const Range mine = share(b.rows, thread);
        for (size_t r = mine.row0; r < mine.row1; ++r)
            rms_norm(x.data() + (size_t)b.logit_rows[r] * hidden, final_norm.data(), s.hidden, normal.data() + r * hidden);
        pool.barrier();
        const Range rows{0, (size_t)b.rows};
        if (!b.greedy) {
            multiply(head, normal.data(), rows, true, thread, [&](size_t r, int panel, v16f a, v16f c) {
                put(b.logits + r * (size_t)s.vocab, panel * PANEL, s.vocab, a, c);
            });
            return;
        }
        auto& top = best[thread];
        multiply(head, normal.data(), rows, true, thread, [&](size_t r, int panel, v16f a, v16f c) {
            auto& t = top[r];
            if (!(reduce_max(vmax(a, c)) > t.first)) return;  // panels ascend: the lowest id wins a tie
            for (int j = 0; j < PANEL; ++j) {
                const int id = panel * PANEL + j;
                const float value = j < 16 ? a[j] : c[j - 16];
                if (id < s.vocab && value > t.first) t = {value, id};
            }
        });
    }
};

}  // namespace

extern "C" {

void* io_create(const ModelSource* source) { return new Model(*source); }

// Packs a layer's weights; the sources are not needed afterwards. Returns the bytes that it takes.
int64_t io_add_layer(void* model, const LayerSource* source) {
    Model& m = *(Model*)model;
    auto layer = std::make_unique<Layer>();
    take(layer->qkv, source->qkv);
    take(layer->o, source->o);
    take(layer->gate_up, source->gate_up, true);
    take(layer->down, source->down);
    auto copy = [](std::vector<float>& to, const float* from, int n) {
        if (from) to.assign(from, from + n);
    };
    copy(layer->input_norm, source->input_norm, m.s.hidden);
    copy(layer->post_norm, source->post_norm, m.s.hidden);
    copy(layer->q_norm, source->q_norm, m.s.head_dim);
    copy(layer->k_norm, source->k_norm, m.s.head_dim);
    layer->window = source->window;
    int64_t bytes = 0;
    for (const Linear* w : {&layer->qkv, &layer->o, &layer->gate_up, &layer->down}) bytes += (int64_t)w->bytes + 4 * w->scale.size();
    m.layers.push_back(std::move(layer));
    return bytes;
}

int64_t io_set_head(void* model, const LinearSource* source) {
    Model& m = *(Model*)model;
    take(m.head, *source);
    return (int64_t)m.head.bytes + 4 * m.head.scale.size();
}

void io_run(void* model, const Step* step) { ((Model*)model)->run(*step); }
void io_destroy(void* model) { delete (Model*)model; }
int32_t io_abi() { return 1; }
const char* io_isa() {
#if defined(IO_VNNI) && defined(IO_BF16_DOT)
    return "avx512-vnni-bf16";
#elif defined(IO_VNNI)
    return "avx512-vnni";
#elif defined(__AVX2__)
    return "avx2";
#else
    return "portable";
#endif
}

}  // extern "C"
