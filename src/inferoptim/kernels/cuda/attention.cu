// Decode attention over a paged cache: one query a sequence, the query heads that share a KV head side by side.
//
// A warp takes 16 tokens of one KV head at a time, every lane straight from memory into the registers that the tensor
// core multiplies: the order of the dimensions inside a product is free, and so is that of the output's columns. Warps
// do not wait for each other until all have seen their tokens; then the block joins what they have. A context is split
// between blocks only when it is longer than LEAST tokens a block, so short ones pay no joining between blocks.
//
// Scores are queries (rows, 8 of 16 used) times keys, which leaves them where the second product wants its left operand.
//
// Defined by the compiling side: D (head size, 64 or 128), FP8 (the cache is float8_e4m3fn, one scale a token and head),
// WARPS (of a block), BLOCKS (that share a multiprocessor).

#include "tensor.cuh"
#include "float8.cuh"

#define HEADS 8     // most query heads of a KV head
#define TOKENS 16   // of a warp at a time; a KV block holds a multiple of them
#define LEAST 256   // tokens from which on a context is split between blocks
#define AHEAD (D == 64 ? 2 : 1)  // tiles of a warp under way
#define BYTES (FP8 ? 1 : 2)
#define K_PIECES (D * BYTES / 64)                    // of 16 bytes of a key a lane
#define V_BYTES (D * BYTES / 8 < 16 ? 8 : 16)        // of a value that a lane loads at once
#define V_PIECES (D * BYTES / 8 / V_BYTES)
#define V_DIMS (V_BYTES / BYTES)
#define NEVER __int_as_float(0xff800000)  // minus infinity

struct Arguments {  // `_Arguments` in attention.py
    const bf16* q;           // [S, q_stride]
    const unsigned char* k;  // [B, P, Hkv, D]
    const unsigned char* v;
    const float* k_scale;    // [B, P, Hkv], of float8
    const float* v_scale;
    const int* rows;         // [S]; -1 = nobody
    const int* positions;    // [rows]
    const int* limits;       // [rows]
    const int* blocks;       // [rows, blocks_stride]
    bf16* out;               // [S, Hq D]
    float* part;             // [S Hkv, splits, HEADS D]
    float* stat;             // [S Hkv, splits, 2 HEADS]: largest score, sum of weights
    int* count;              // [S Hkv], zero between launches
    int q_stride, blocks_stride, kv_heads, group, block_size, splits, window;
    float scale;             // includes log2(e)
};

__device__ __forceinline__ u32 word(const Quad& q, int i) { return i == 0 ? q.a : i == 1 ? q.b : i == 2 ? q.c : q.d; }

// Element e of two tokens' values, side by side.
__device__ __forceinline__ u32 pair(const Quad& first, const Quad& second, int e) {
    if (FP8) {
        u32 a = word(first, e / 4), b = word(second, e / 4);
        const u32 chosen = e % 4 == 0 ? 0x4000 : e % 4 == 1 ? 0x5010 : e % 4 == 2 ? 0x6020 : 0x7030;
        return widen(__byte_perm(a, b, chosen));
    }
    return __byte_perm(word(first, e / 2), word(second, e / 2), e % 2 ? 0x7632 : 0x5410);
}

struct Tile {
    Quad k[2][K_PIECES];  // of tokens g and g + 8
    Quad v[4][V_PIECES];  // of tokens 2t, 2t + 1, 2t + 8, 2t + 9
    float k_scale[4], v_scale[4];  // of these
};

__device__ __forceinline__ void load_tile(Tile& tile, const Arguments& a, const int* table, int head, int start, int end) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    u64 first = (u64)table[start / a.block_size] * a.block_size + start % a.block_size;
    const Quad zero = {0, 0, 0, 0};
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const unsigned char* from = a.k + ((first + n * 8 + g) * a.kv_heads + head) * D * BYTES + t * 16;
        bool valid = start + n * 8 + g < end;
#pragma unroll
        for (int i = 0; i < K_PIECES; i++) tile.k[n][i] = valid ? load_fresh(from + i * 64) : zero;
    }
#pragma unroll
    for (int n = 0; n < 4; n++) {
        int token = n / 2 * 8 + 2 * t + n % 2;
        u64 slot = (first + token) * a.kv_heads + head;
        const unsigned char* from = a.v + slot * D * BYTES + g * V_BYTES;
        bool valid = start + token < end;
#pragma unroll
        for (int i = 0; i < V_PIECES; i++) {
            tile.v[n][i] = zero;
            if (valid && V_BYTES == 16) tile.v[n][i] = load_fresh(from + i * 8 * V_BYTES);
            if (valid && V_BYTES == 8) load_fresh(from + i * 8 * V_BYTES, tile.v[n][i].a, tile.v[n][i].b);
        }
        if (FP8) {
            tile.k_scale[n] = tile.v_scale[n] = 0.0f;
            if (valid) {
                tile.k_scale[n] = load_fresh(a.k_scale + slot);
                tile.v_scale[n] = load_fresh(a.v_scale + slot);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) decode(const __grid_constant__ Arguments a) {
    __shared__ float tops[WARPS][HEADS], totals[WARPS][HEADS], sums[WARPS][HEADS][D + 4];
    __shared__ int before;
    let_next_start();
    int i = blockIdx.x, head = blockIdx.y, split = blockIdx.z;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int row = a.rows[i], safe = max(row, 0), position = a.positions[safe];
    int context = row < 0 || position >= a.limits[safe] ? 0 : position + 1;
    int begin = a.window > 0 ? max(context - a.window, 0) : 0, aligned = begin / TOKENS * TOKENS;
    int each = max(LEAST, ((context - aligned + a.splits - 1) / a.splits + TOKENS - 1) / TOKENS * TOKENS);
    int used = (context - aligned + each - 1) / each;
    int low = aligned + split * each, end = min(context, low + each);
    bf16* out = a.out + ((u64)i * a.kv_heads + head) * a.group * D;
    const int* table = a.blocks + (u64)safe * a.blocks_stride;

    // what earlier steps have written is asked for before the wait; the newest token's is not there yet
    constexpr int STRIDE = WARPS * TOKENS;
    int start = low + warp * TOKENS;
    Tile tiles[AHEAD];
#pragma unroll
    for (int n = 0; n < AHEAD; n++)
        if (start + n * STRIDE < end) load_tile(tiles[n], a, table, head, start + n * STRIDE, min(end, position));
    wait_for_previous();
    if (context == 0) {
        if (split == 0)
            for (int at = threadIdx.x; at < a.group * D; at += 32 * WARPS) out[at] = 0;
        return;
    }
    if (low >= end) return;
#pragma unroll
    for (int n = 0; n < AHEAD; n++) {
        int at = start + n * STRIDE;
        if (at < end && at + TOKENS > position) load_tile(tiles[n], a, table, head, at, end);
    }

    u32 q[D / 4];  // a lane's dimensions of query head g, in the order of its pieces of keys
#pragma unroll
    for (int n = 0; n < D / 4 / 4; n++) {
        // a piece of keys is 8 dimensions (16 in float8, two loads)
        int dim = FP8 ? (n / 2 * 4 + t) * 16 + n % 2 * 8 : (n * 4 + t) * 8;
        Quad piece = {0, 0, 0, 0};
        if (g < a.group) piece = load_fresh(a.q + (u64)i * a.q_stride + (head * a.group + g) * D + dim);
        const u32 lift = 0x5d805d80u;  // 2^60, twice
        q[4 * n] = FP8 ? times(piece.a, lift) : piece.a;
        q[4 * n + 1] = FP8 ? times(piece.b, lift) : piece.b;
        q[4 * n + 2] = FP8 ? times(piece.c, lift) : piece.c;
        q[4 * n + 3] = FP8 ? times(piece.d, lift) : piece.d;
    }
    float top = NEVER, total = 0.0f;
    float sum[D / 8][4] = {};
    auto take = [&](Tile& tile, int start) {
        float score[2][4] = {};
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int piece = 0; piece < K_PIECES; piece++) {
                Quad k = tile.k[n][piece];
                if (FP8) {
                    const u32* by = q + piece * 8;
                    multiply(score[n], by[0], 0, by[1], 0, widen_low(k.a), widen_high(k.a));
                    multiply(score[n], by[2], 0, by[3], 0, widen_low(k.b), widen_high(k.b));
                    multiply(score[n], by[4], 0, by[5], 0, widen_low(k.c), widen_high(k.c));
                    multiply(score[n], by[6], 0, by[7], 0, widen_low(k.d), widen_high(k.d));
                } else {
                    const u32* by = q + piece * 4;
                    multiply(score[n], by[0], 0, by[1], 0, k.a, k.b);
                    multiply(score[n], by[2], 0, by[3], 0, k.c, k.d);
                }
            }
        float s[4], largest = top;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            int token = start + n / 2 * 8 + 2 * t + n % 2;
            s[n] = score[n / 2][n % 2] * a.scale;
            if (FP8) s[n] *= LIFT * tile.k_scale[n];
            if (token >= end || token < begin) s[n] = NEVER;
            largest = fmaxf(largest, s[n]);
        }
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
        float fade = exp2_of(top - largest);
        top = largest;
        total *= fade;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            s[n] = exp2_of(s[n] - largest);
            total += s[n];
            if (FP8) s[n] *= LIFT * tile.v_scale[n];
        }
        u32 p0 = pack(s[0], s[1]), p1 = pack(s[2], s[3]);
#pragma unroll
        for (int piece = 0; piece < V_PIECES; piece++)
#pragma unroll
            for (int e = 0; e < V_DIMS; e++) {
                float* to = sum[piece * V_DIMS + e];
                to[0] *= fade;
                to[1] *= fade;
                multiply(to, p0, 0, p1, 0, pair(tile.v[0][piece], tile.v[1][piece], e),
                         pair(tile.v[2][piece], tile.v[3][piece], e));
            }
        if (start + AHEAD * STRIDE < end) load_tile(tile, a, table, head, start + AHEAD * STRIDE, end);
    };
    for (; start < end; start += AHEAD * STRIDE) {
#pragma unroll
        for (int n = 0; n < AHEAD; n++)
            if (start + n * STRIDE < end) take(tiles[n], start + n * STRIDE);
    }
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    if (t == 0) {
        tops[warp][g] = top;
        totals[warp][g] = total;
    }
#pragma unroll
    for (int piece = 0; piece < V_PIECES; piece++)
#pragma unroll
        for (int e = 0; e < V_DIMS; e++)
#pragma unroll
            for (int n = 0; n < 2; n++)
                sums[warp][g][(piece * 8 + 2 * t + n) * V_DIMS + e] = sum[piece * V_DIMS + e][n];
    __syncthreads();
    u64 unit = (u64)i * a.kv_heads + head;
    for (int at = threadIdx.x; at < a.group * D; at += 32 * WARPS) {
        int h = at / D, d = at % D;
        float all = NEVER, y = 0.0f, weight = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) all = fmaxf(all, tops[w][h]);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            float factor = exp2_of(tops[w][h] - all);
            y += sums[w][h][d] * factor;
            weight += totals[w][h] * factor;
        }
        if (FP8) y *= LIFT;
        if (used == 1) {
            out[at] = to_bf16(y / weight);
        } else {
            a.part[(unit * a.splits + split) * HEADS * D + at] = y;
            if (d == 0) {
                a.stat[(unit * a.splits + split) * 2 * HEADS + h] = all;
                a.stat[(unit * a.splits + split) * 2 * HEADS + HEADS + h] = weight;
            }
        }
    }
    if (used == 1) return;
    __threadfence();
    __syncthreads();  // every thread's part is stored before one of them counts this split as done
    if (threadIdx.x == 0) before = atomicAdd(a.count + unit, 1);
    __syncthreads();
    if (before != used - 1) return;
    __threadfence();
    for (int at = threadIdx.x; at < a.group * D; at += 32 * WARPS) {  // the last one joins them
        int h = at / D;
        float all = NEVER, y = 0.0f, weight = 0.0f;
        for (int other = 0; other < used; other++) {
            const float* stat = a.stat + (unit * a.splits + other) * 2 * HEADS;
            float its = __ldcg(stat + h), larger = fmaxf(all, its);
            float mine = exp2_of(all - larger), theirs = exp2_of(its - larger);
            y = y * mine + __ldcg(a.part + (unit * a.splits + other) * HEADS * D + at) * theirs;
            weight = weight * mine + __ldcg(stat + HEADS + h) * theirs;
            all = larger;
        }
        out[at] = to_bf16(y / weight);
    }
    if (threadIdx.x == 0) a.count[unit] = 0;
}
