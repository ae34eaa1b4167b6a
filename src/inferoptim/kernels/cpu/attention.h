// Causal attention over a paged cache, for any mix of query lengths.
//
// The query heads of a group share their KV head (GQA), so a sequence's work for one KV head is a list of (query, head)
// pairs, over tiles of keys with a running softmax. Few pairs (a decode): sixteen keys stand in the lanes of a vector.
// Many pairs (a prompt): sixteen pairs do, and a tile is prepared once for all of them. Both make the same operations
// in the same order for each pair, and tiles begin at multiples of TILE whatever the chunk: neither chunking nor
// speculation nor the company in the batch changes a bit of the result.
//
// HALF: products of bfloat16 (two a lane and instruction) into float32 sums, for models in bfloat16 where it pays. Over an
// int8 cache the queries are rounded to int8 too, a scale each, and multiply the keys as integers (four a lane).
#pragma once
#include "attention_few.h"
#include "attention_many.h"

namespace io {

template <class E>
static void attend(const Pairs& p, bool half, const Cache& c, int head, float softmax_scale, Scratch& s) {
    int first = p.low[0], last = p.high[0];
    for (int i = 1; i < p.count; ++i) first = std::min(first, p.low[i]), last = std::max(last, p.high[i]);
    const bool few = p.count <= FEW;
#if defined(IO_BF16_DOT)
    if constexpr (sizeof(E) < 4)
        if (half && c.dim % (sizeof(E) == 1 ? 64 : 32) == 0) {
            softmax_scale *= 1.44269504f;  // exponents of two
            if (few) return attend_few<E, true>(p, first, last, c, head, softmax_scale, s);
            return attend_lanes<E, true>(p, first, last, c, head, softmax_scale, s);
        }
#endif
    (void)half;
    if (few) attend_few<E, false>(p, first, last, c, head, softmax_scale, s);
    else attend_lanes<E, false>(p, first, last, c, head, softmax_scale, s);
}

}  // namespace io
