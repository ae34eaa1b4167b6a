// How a step is cut into phases and tasks.
#pragma once
#include "attention.h"
#include "interface.h"

namespace io {

enum class Do { EMBED, PREPARE_QKV, QKV, ATTENTION, PREPARE_O, O, PREPARE_GATE_UP, GATE_UP, PREPARE_DOWN, DOWN, BLOCK, NORM, HEAD };

struct Phase {
    Do what;
    int layer;
};

// A piece of attention: some pairs of one sequence, for some KV heads.
struct Piece {
    int sequence, head0, head1, pair0, pairs;
};

constexpr size_t ALONE = 4;  // up to so many rows, each thread converts a product's inputs for itself

// The share i of n things among `parts`.
static inline size_t part(size_t n, size_t i, size_t parts) { return n * i / parts; }

// The shape of the model, as far as the cut depends on it, and how to cut.
struct Widths {
    int layers, heads, kv_heads, head_dim, threads;
    int prompt_rows;   // from so many rows for each thread on, threads share out rows and not outputs
    int prompt_block;  // of these, how many go through a layer together
    int tasks;         // pieces of a product for each thread
    int o_panels, gate_up_panels, down_panels, head_panels;

    // Heads whose outputs fill whole panels together.
    int heads_a_unit() const { return head_dim % PANEL ? 2 : 1; }
    int panels_a_unit() const { return heads_a_unit() * head_dim / PANEL; }
    int units() const { return (heads + 2 * kv_heads + heads_a_unit() - 1) / heads_a_unit(); }
};

struct Plan {
    std::vector<Phase> phases;
    std::vector<int> counts;  // tasks of each phase
    std::vector<int> coming;  // few rows: of each phase, the one after it that reads weights; after the last, the next step's first
    std::vector<Piece> pieces;
    std::vector<char> wanted;  // many rows: blocks that hold a row whose logits are asked for
    size_t blocks = 0;
    bool few = true, alone = true;

    // The phases of a step and how many tasks each has.
    void make(const Step& b, const Widths& w) {
        const size_t tokens = b.tokens;
        few = tokens < (size_t)w.prompt_rows * w.threads;
        alone = tokens <= ALONE;
        phases.clear();
        counts.clear();
        auto add = [&](Do what, int layer, size_t tasks) {
            phases.push_back({what, layer});
            counts.push_back((int)tasks);
        };
        pieces_of(b, w);
        auto parts = [&](size_t n) { return std::min(n, (size_t)(w.threads == 1 ? 1 : w.tasks * w.threads)); };
        const size_t rows = alone ? 0 : parts(tokens);
        const int last = w.layers - 1;
        if (few) {
            add(Do::EMBED, 0, 1);
            for (int i = 0; i <= last; ++i) {
                add(Do::PREPARE_QKV, i, rows);
                add(Do::QKV, i, parts(w.units()));
                add(Do::ATTENTION, i, pieces.size());
                add(Do::PREPARE_O, i, rows);
                add(Do::O, i, parts(w.o_panels));
                add(Do::PREPARE_GATE_UP, i, rows);
                add(Do::GATE_UP, i, parts(w.gate_up_panels));
                add(Do::PREPARE_DOWN, i, rows);
                add(Do::DOWN, i, parts(w.down_panels));
            }
        } else {
            const size_t t = w.threads;
            blocks = ((tokens + w.prompt_block - 1) / w.prompt_block + t - 1) / t * t;
            wanted.assign(blocks, 0);
            for (int r = 0; r < b.rows; ++r)
                for (size_t i = 0; i < blocks; ++i)
                    if ((size_t)b.logit_rows[r] >= block_start(i, tokens) && (size_t)b.logit_rows[r] < block_start(i + 1, tokens))
                        wanted[i] = 1;
            add(Do::BLOCK, -1, blocks);
            for (int i = 0; i <= last; ++i) {
                add(Do::ATTENTION, i, pieces.size());
                add(Do::BLOCK, i, blocks);
            }
        }
        add(Do::NORM, 0, parts(b.rows));
        add(Do::HEAD, 0, b.rows ? parts(w.head_panels) : 0);
        coming.clear();
        if (!few) return;
        coming.resize(phases.size());
        int next = 0;
        for (int twice = 0; twice < 2; ++twice)
            for (int i = (int)phases.size() - 1; i >= 0; --i) {
                coming[i] = next;
                if (counts[i] && reads_weights(phases[i].what)) next = i;
            }
    }
    static bool reads_weights(Do what) {
        return what == Do::QKV || what == Do::O || what == Do::GATE_UP || what == Do::DOWN || what == Do::HEAD;
    }
    // Blocks begin at multiples of eight rows: whole tiles.
    size_t block_start(size_t i, size_t tokens) const { return std::min(tokens, part((tokens + 7) / 8, i, blocks) * 8); }

    void pieces_of(const Step& b, const Widths& w) {
        const int group = w.heads / w.kv_heads;
        const bool whole = b.sequences >= 2 * w.threads;  // enough sequences: one thread takes all heads of one
        pieces.clear();
        for (int q = 0; q < b.sequences; ++q) {
            const int pairs = (b.query_start[q + 1] - b.query_start[q]) * group;
            for (int p = 0; p < pairs; p += MOST) {
                const int n = std::min(MOST, pairs - p), step = whole && pairs <= MOST ? w.kv_heads : 1;
                for (int h = 0; h < w.kv_heads; h += step) pieces.push_back({q, h, h + step, p, n});
            }
        }
    }
};

}  // namespace io
