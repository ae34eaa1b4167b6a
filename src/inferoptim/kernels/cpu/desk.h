// A layer as packed, and what one thread works on.
#pragma once
#include "ahead.h"
#include "attention.h"
#include "rows.h"

namespace io {

struct Layer {
    Linear qkv, o, gate_up, down;
    Array<float> input_norm, post_norm, q_norm, k_norm;
    int window = 0;
};

// What one thread writes on.
struct Desk {
    Rows in;
    Array<float> normal, product;
    Scratch attention;
    std::vector<std::pair<float, int64_t>> best;  // greedy: per row, over the outputs that this thread computed
    int prepared = -1;                            // phase whose inputs lie in `in`
    alignas(64) WhileWaiting ahead;
};

}  // namespace io
