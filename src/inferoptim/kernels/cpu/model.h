// A decoder packed for this processor, and its step.
//
// A step is a list of phases, each a number of independent tasks (see plan.h and pool.h). Few rows (decodes): every product is
// split by outputs, so that each weight is read once, by one thread. Many rows (prompts): rows are split into blocks
// that go through everything between two attentions at once, and threads meet only around attention.
// Activations are float32 between operators.
#pragma once
#include <memory>

#include "desk.h"
#include "interface.h"
#include "plan.h"

namespace io {

struct Model {
    ModelSource s;
    Arena arena;
    std::vector<std::unique_ptr<Layer>> layers;
    Linear head;
    Array<float> final_norm;
    Array<float> x, normal, qkv, mixed, product;
    Rows in;
    std::vector<Desk> desks;
    Array<int32_t> slot_of;
    std::vector<size_t> slot_start;
    Plan plan;
    Pool pool;  // the last member, so the first to go: its threads read of the others

    explicit Model(const ModelSource& source)
        : s(source), desks(std::max(source.threads, 1)), pool(source.threads, [this](int thread) { desks[thread].ahead.read(); }) {
        final_norm.assign(s.final_norm, s.final_norm + s.hidden);
    }

    size_t width() const { return (size_t)(s.heads + 2 * s.kv_heads) * s.head_dim; }
    Widths widths() const {
        const Layer& one = *layers[0];  // all alike
        return {(int)layers.size(), s.heads, s.kv_heads, s.head_dim, pool.threads(), s.prompt_rows, s.prompt_block, s.tasks,
                one.o.panels, one.gate_up.panels, one.down.panels, head.panels};
    }

    // Packs a layer's weights, panels in parallel. Returns the bytes that a step reads of it.
    int64_t take(Linear& w, const LinearSource& source, bool interleave_halves = false) {
        std::vector<int> order;
        if (interleave_halves) {  // gate and up alternate by 16 outputs: one panel holds both factors of 16 products
            const int half = source.n / 2;
            for (int i = 0; i < half; i += 16)
                for (int part = 0; part < 2; ++part)
                    for (int j = i; j < i + 16; ++j) order.push_back(j < half ? part * half + j : -1);
        } else
            for (int i = 0; i < source.n; ++i) order.push_back(i);
        lay_out_linear(w, source, order.size(), arena);
        pool.run({w.panels}, [&](int, int, int panel) { pack_panel(w, source, order, panel); });
        order.resize((size_t)w.panels * PANEL, -1);
        auto gather = [&](const float* from, Array<float>& to) {
            if (!from) return;
            to.assign(order.size(), 0.0f);
            for (size_t i = 0; i < order.size(); ++i)
                if (order[i] >= 0) to[i] = from[order[i]];
        };
        if (w.kind != GROUPS) gather((const float*)source.scale, w.scale);
        gather(source.bias, w.bias);
        return (int64_t)w.bytes + 4 * w.scale.size();
    }

    void run(const Step& b) {
        if (b.steps == 1) return run_once(b);
        Step step = b;
        const int n = b.sequences;
        std::vector<int32_t> ids(b.token_ids, b.token_ids + n), positions(b.positions, b.positions + n);
        std::vector<int32_t> slots(b.slots, b.slots + n), context(b.context, b.context + n);
        step.token_ids = ids.data(), step.positions = positions.data(), step.slots = slots.data(), step.context = context.data();
        for (int i = 0; i < b.steps; ++i, step.chosen += n) {
            run_once(step);
            if (i + 1 == b.steps) return;
            for (int q = 0; q < n; ++q) {
                ids[q] = (int32_t)step.chosen[q];
                const int at = ++positions[q];
                ++context[q];
                slots[q] = b.tables[(size_t)q * b.table_width + at / b.block_size] * b.block_size + at % b.block_size;
            }
        }
    }

    void run_once(const Step& b) {
        plan.make(b, widths());
        reserve(b);
        find_slots(b);
        pool.run(plan.counts, [&](int thread, int phase, int task) {
            work(b, thread, phase, task);
            if (!plan.few) return desks[thread].ahead.forget();
            const int next = plan.coming[phase];
            desks[thread].ahead.look(next, plan.coming[next], [&](int number) { return share(number, thread); });
        });
        if (!b.greedy) return;
        for (int r = 0; r < b.rows; ++r) {
            std::pair<float, int64_t> top{-INFINITY, 0};
            for (auto& desk : desks) {
                const auto& other = desk.best[r];
                if (other.first > top.first || (other.first == top.first && other.second < top.second)) top = other;
            }
            b.chosen[r] = top.second;
        }
    }

    void reserve(const Step& b) {
        const size_t t = b.tokens, rows = b.rows;
        size_t widest = head.k_padded, groups = widest / std::max(head.group, 1);
        for (auto& layer : layers)
            for (const Linear* w : {&layer->qkv, &layer->o, &layer->gate_up, &layer->down}) {
                widest = std::max(widest, (size_t)w->k_padded);
                groups = std::max(groups, (size_t)w->k_padded / w->group);
            }
        auto grow = [](Array<float>& a, size_t n) {
            if (a.size() < n) a.resize(n);
        };
        grow(x, t * s.hidden);
        grow(normal, std::max(plan.few ? t : 0, rows) * s.hidden);
        grow(qkv, t * width());
        grow(mixed, t * s.heads * s.head_dim);
        if (plan.few) grow(product, t * s.intermediate);
        in.reserve(std::max(plan.few && !plan.alone ? t : 0, rows), widest, groups);
        for (auto& desk : desks) {
            const size_t own = plan.few ? std::min(t, ALONE) : s.prompt_block + 8;
            desk.in.reserve(own, widest, groups);
            grow(desk.normal, own * s.hidden);
            if (!plan.few) grow(desk.product, own * s.intermediate);
            desk.attention.reserve(s.head_dim);
            desk.best.assign(b.greedy ? rows : 0, {-INFINITY, 0});
            desk.prepared = -1;
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

    void work(const Step& b, int thread, int number, int task) {
        const Phase& phase = plan.phases[number];
        const int count = plan.counts[number];
        const size_t tokens = b.tokens;
        Desk& desk = desks[thread];
        const Layer& layer = *layers[std::max(phase.layer, 0)];
        const size_t row0 = part(tokens, task, count), row1 = part(tokens, task + 1, count);
        switch (phase.what) {
            case Do::EMBED:
                for (size_t t = 0; t < tokens; ++t) embed(b.token_ids[t], x.data() + t * s.hidden);
                break;
            case Do::PREPARE_QKV: prepare_normal(layer.qkv, layer.input_norm, row0, row1); break;
            case Do::PREPARE_O: prepare(in, layer.o, mixed.data(), row0, row1); break;
            case Do::PREPARE_GATE_UP: prepare_normal(layer.gate_up, layer.post_norm, row0, row1); break;
            case Do::PREPARE_DOWN: prepare(in, layer.down, product.data(), row0, row1); break;
            case Do::QKV: {
                const Inputs from = inputs(desk, number, layer.qkv, &layer.input_norm, nullptr, tokens);
                const Widths w = widths();
                const int u0 = (int)part(w.units(), task, count), u1 = (int)part(w.units(), task + 1, count);
                qkv_product(b, layer, phase.layer, from, 0, tokens, u0, u1);
                break;
            }
            case Do::ATTENTION: attention(b, layer, phase.layer, plan.pieces[task], desk.attention); break;
            case Do::O: {
                const Inputs from = inputs(desk, number, layer.o, nullptr, mixed.data(), tokens);
                add_product(layer.o, from, 0, tokens, task, count);
                break;
            }
            case Do::GATE_UP: {
                const Inputs from = inputs(desk, number, layer.gate_up, &layer.post_norm, nullptr, tokens);
                gate_up_product(layer.gate_up, from, product.data(), tokens, task, count);
                break;
            }
            case Do::DOWN: {
                const Inputs from = inputs(desk, number, layer.down, nullptr, product.data(), tokens);
                add_product(layer.down, from, 0, tokens, task, count);
                break;
            }
            case Do::BLOCK: block(b, desk, phase.layer, task); break;
            case Do::NORM:
                for (size_t r = part(b.rows, task, count); r < part(b.rows, task + 1, count); ++r) {
                    float* out = normal.data() + r * s.hidden;
                    rms_norm(x.data() + (size_t)b.logit_rows[r] * s.hidden, final_norm.data(), s.hidden, s.eps, out);
                    prepare_row(in, head, out, r);
                }
                break;
            case Do::HEAD: output(b, desk, (int)part(head.panels, task, count), (int)part(head.panels, task + 1, count)); break;
        }
    }

    // The weights of a thread's own tasks of a phase.
    Span share(int number, int thread) const {
        const Phase& phase = plan.phases[number];
        const Layer& layer = *layers[phase.layer];
        const size_t count = plan.counts[number], threads = pool.threads();
        auto panels = [&](const Linear& w, size_t units, int a_unit) {
            auto at = [&](size_t t) {
                return w.packed + w.panel_bytes() * std::min((int)part(units, part(count, t, threads), count) * a_unit, w.panels);
            };
            return Span{at(thread), at(thread + 1)};
        };
        const Widths w = widths();
        switch (phase.what) {
            case Do::QKV: return panels(layer.qkv, w.units(), w.panels_a_unit());
            case Do::O: return panels(layer.o, w.o_panels, 1);
            case Do::GATE_UP: return panels(layer.gate_up, w.gate_up_panels, 1);
            case Do::DOWN: return panels(layer.down, w.down_panels, 1);
            default: return panels(head, w.head_panels, 1);
        }
    }

    // ---- few rows: a product's inputs, converted together or by each thread for itself ----------------------------

    void prepare(Rows& to, const Linear& w, const float* from, size_t row0, size_t row1) const {
        for (size_t r = row0; r < row1; ++r) prepare_row(to, w, from + r * w.k, r);
    }
    void prepare_normal(const Linear& w, const Array<float>& weight, size_t row0, size_t row1) {
        for (size_t r = row0; r < row1; ++r)
            rms_norm(x.data() + r * s.hidden, weight.data(), s.hidden, s.eps, normal.data() + r * s.hidden);
        prepare(in, w, normal.data(), row0, row1);
    }
    // Of the norm of x by `norm`, or of the rows `from`.
    Inputs inputs(Desk& desk, int number, const Linear& w, const Array<float>* norm, const float* from, size_t tokens) {
        if (!plan.alone) return in.with(norm ? normal.data() : from);
        if (norm) from = desk.normal.data();
        if (desk.prepared != number) {
            if (norm)
                for (size_t r = 0; r < tokens; ++r)
                    rms_norm(x.data() + r * s.hidden, norm->data(), s.hidden, s.eps, desk.normal.data() + r * s.hidden);
            prepare(desk.in, w, from, 0, tokens);
            desk.prepared = number;
        }
        return desk.in.with(from);
    }

    // ---- many rows: one block through everything between two attentions -------------------------------------------

    void block(const Step& b, Desk& desk, int after, int task) {
        const size_t row0 = plan.block_start(task, b.tokens), rows = plan.block_start(task + 1, b.tokens) - row0;
        if (!rows) return;
        const bool last = after + 1 == (int)layers.size();
        if (last && !plan.wanted[task]) return;  // nobody reads what the last layer makes of the other rows
        const size_t hidden = s.hidden;
        float *at = x.data() + row0 * hidden, *normal_rows = desk.normal.data();
        auto norm = [&](const Array<float>& weight) {
            for (size_t r = 0; r < rows; ++r) rms_norm(at + r * hidden, weight.data(), s.hidden, s.eps, normal_rows + r * hidden);
        };
        if (after < 0) {
            for (size_t r = 0; r < rows; ++r) embed(b.token_ids[row0 + r], at + r * hidden);
        } else {
            const Layer& layer = *layers[after];
            const float* heads = mixed.data() + row0 * layer.o.k;
            prepare(desk.in, layer.o, heads, 0, rows);
            add_product(layer.o, desk.in.with(heads), row0, rows, 0, 1);
            norm(layer.post_norm);
            prepare(desk.in, layer.gate_up, normal_rows, 0, rows);
            gate_up_product(layer.gate_up, desk.in.with(normal_rows), desk.product.data(), rows, 0, 1);
            prepare(desk.in, layer.down, desk.product.data(), 0, rows);
            add_product(layer.down, desk.in.with(desk.product.data()), row0, rows, 0, 1);
        }
        if (last) return;
        const Layer& next = *layers[after + 1];
        norm(next.input_norm);
        prepare(desk.in, next.qkv, normal_rows, 0, rows);
        qkv_product(b, next, after + 1, desk.in.with(normal_rows), row0, rows, 0, widths().units());
    }

    // ---- the products; their rows stand from row0 on in x and qkv --------------------------------------------------

    void qkv_product(const Step& b, const Layer& layer, int index, const Inputs& from, size_t row0, size_t rows, int u0, int u1) {
        const int dim = s.head_dim, a_unit = widths().heads_a_unit(), panels = widths().panels_a_unit();
        gemm(from, layer.qkv, rows, u0 * panels, std::min(u1 * panels, layer.qkv.panels), [&](size_t r, int panel, v16f a, v16f c) {
            put(qkv.data() + (row0 + r) * width(), panel * PANEL, (int)width(), a, c);
        }, [&](size_t r, int panel) { return qkv.data() + (row0 + r) * width() + panel * PANEL; });
        const int last = std::min(u1 * a_unit, s.heads + 2 * s.kv_heads);
        for (size_t t = row0; t < row0 + rows; ++t)
            for (int h = u0 * a_unit; h < last; ++h) {
                float* p = qkv.data() + t * width() + (size_t)h * dim;
                const int key = h - s.heads, value = key - s.kv_heads;
                if (value < 0) {
                    const Array<float>& norm = key < 0 ? layer.q_norm : layer.k_norm;
                    if (!norm.empty()) rms_norm(p, norm.data(), dim, s.eps, p);
                    const size_t angle = (size_t)b.positions[t] * (dim / 2);
                    rotate(p, b.cos + angle, b.sin + angle, dim);
                }
                const size_t slot = (size_t)b.slots[t] * s.kv_heads;
                if (value >= 0) write_head(b.kv_type, b.v[index], b.v_scale ? b.v_scale[index] : nullptr, slot + value, p, dim);
                else if (key >= 0) write_head(b.kv_type, b.k[index], b.k_scale ? b.k_scale[index] : nullptr, slot + key, p, dim);
            }
    }

    void add_product(const Linear& w, const Inputs& from, size_t row0, size_t rows, int task, int count) {
        float* to = x.data() + row0 * s.hidden;
        gemm(from, w, rows, (int)part(w.panels, task, count), (int)part(w.panels, task + 1, count),
             [&](size_t r, int panel, v16f a, v16f c) { add_to(to + r * s.hidden, panel * PANEL, a, c); },
             [&](size_t r, int panel) { return to + r * s.hidden + panel * PANEL; });
    }

    void gate_up_product(const Linear& w, const Inputs& from, float* out, size_t rows, int task, int count) {
        gemm(from, w, rows, (int)part(w.panels, task, count), (int)part(w.panels, task + 1, count),
             [&](size_t r, int panel, v16f gate, v16f up) {
                 const int at = panel * 16, n = s.intermediate - at;
                 float* to = out + r * s.intermediate + at;
                 const v16f y = silu(gate) * up;
                 if (n >= 16) store(to, y);
                 else
                     for (int j = 0; j < n; ++j) to[j] = y[j];
             }, [&](size_t r, int panel) { return out + r * s.intermediate + panel * 16; });
    }

    void attention(const Step& b, const Layer& layer, int index, const Piece& piece, Scratch& scratch) {
        const int group = s.heads / s.kv_heads, dim = s.head_dim;
        const float scale = 1.0f / std::sqrt((float)dim);
        const bool half = s.embedding_type == 1 && bf16_dot_pays();
        const int first = b.query_start[piece.sequence], n = b.query_start[piece.sequence + 1] - first;
        const int context = b.context[piece.sequence];
        const Cache cache{b.k[index], b.v[index], b.k_scale ? b.k_scale[index] : nullptr, b.v_scale ? b.v_scale[index] : nullptr,
                          s.kv_heads, dim, slot_of.data() + slot_start[piece.sequence]};
        for (int h = piece.head0; h < piece.head1; ++h) {
            Pairs pairs;
            pairs.count = piece.pairs;
            for (int i = 0; i < pairs.count; ++i) {
                const int query = (piece.pair0 + i) / group, at = h * group + (piece.pair0 + i) % group;
                pairs.q[i] = qkv.data() + (first + query) * width() + (size_t)at * dim;
                pairs.out[i] = mixed.data() + ((size_t)(first + query) * s.heads + at) * dim;
                pairs.high[i] = context - n + query + 1;
                pairs.low[i] = layer.window ? std::max(0, pairs.high[i] - layer.window) : 0;
            }
            if (b.kv_type == 0) attend<float>(pairs, half, cache, h, scale, scratch);
            else if (b.kv_type == 1) attend<uint16_t>(pairs, half, cache, h, scale, scratch);
            else attend<int8_t>(pairs, half, cache, h, scale, scratch);
        }
    }

    void output(const Step& b, Desk& desk, int panel0, int panel1) {
        const Inputs from = in.with(normal.data());
        if (!b.greedy) {
            gemm(from, head, b.rows, panel0, panel1, [&](size_t r, int panel, v16f a, v16f c) {
                put(b.logits + r * (size_t)s.vocab, panel * PANEL, s.vocab, a, c);
            }, [](size_t, int) { return (float*)nullptr; });
            return;
        }
        gemm(from, head, b.rows, panel0, panel1, [&](size_t r, int panel, v16f a, v16f c) {
            auto& top = desk.best[r];
            if (!(reduce_max(vmax(a, c)) >= top.first)) return;
            for (int j = 0; j < PANEL; ++j) {
                const int id = panel * PANEL + j;
                const float value = j < 16 ? a[j] : c[j - 16];
                if (id < s.vocab && (value > top.first || (value == top.first && id < top.second))) top = {value, id};
            }
        }, [](size_t, int) { return (float*)nullptr; });
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
};

}  // namespace io
