// What Python hands over: plain structures of addresses (native.py mirrors them field by field).
#pragma once
#include "linear.h"

namespace io {

struct LayerSource {
    LinearSource qkv, o, gate_up, down;
    const float *input_norm, *post_norm, *q_norm, *k_norm;  // the last two may be null
    int32_t window;                                         // 0: none
};

struct ModelSource {
    int32_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, threads;
    int32_t prompt_rows, prompt_block, tasks;  // how a step is cut, see plan.h
    float eps;
    int32_t embedding_type;  // 0 float32, 1 bfloat16
    const void* embedding;   // [vocab, hidden]; the caller keeps it alive
    const float* final_norm;
};

struct Step {
    int32_t tokens, sequences, rows, table_width, block_size, kv_type, greedy;
    int32_t steps;  // > 1: greedy decodes, one token a sequence, each step from the token that the one before chose
    const int32_t *token_ids, *positions, *slots, *query_start, *context, *tables, *logit_rows;
    const float *cos, *sin;  // [position, head_dim / 2]
    void* const* k;          // one pointer a layer
    void* const* v;
    float* const* k_scale;
    float* const* v_scale;
    float* logits;    // [rows, vocab], unless greedy
    int64_t* chosen;  // [steps, rows], if greedy
};

}  // namespace io
