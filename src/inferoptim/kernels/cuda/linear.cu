// Products of a few rows with a weight matrix, on tensor cores: y = x @ weight.T for up to 32 rows of x.
//
// Reading the weights is all the work, so everything serves to keep that stream full. A warp takes 16 rows of weights
// and loads them from memory straight into the registers that the tensor core multiplies: the order of the features
// inside a product is free, so each lane takes 16 bytes of a row that lie together, and the same features of x. The first
// weights are asked for before the wait for the preceding kernel (programmatic dependent launch).
//
// `up_to_8`: a block of threads takes 16 rows of weights, its warps share the features out among themselves.
// `up_to_32`: x would then be read too often. A block takes 64 rows and some chunks of the features; the blocks of a
// cluster share the features out and send their sums to the block that adds them up, always in the same order.
//
// An RMSNorm before the product costs one factor a row, applied to the sums at the end: x is multiplied by the norm's
// weight and rounded to bfloat16 as ever, and its squares are summed on the way.
//
// Defined by the compiling side: KIND (below), TILES (up_to_32), FP8 (weights are float8_e4m3fn), BLOCKS (blocks that
// share a multiprocessor). Legend: M rows of x, N rows of weights, K features.

#define PLAIN 0     // out[m, n] = y
#define RESIDUAL 1  // out[m, n] += y
#define SWIGLU 2    // out[m, i] = silu(y[m, i]) * y[m, N / 2 + i]
#define ROTATE 3    // y is queries, keys, values: the first two rotated; queries to out, the others into the cache

#include "tensor.cuh"
#include "float8.cuh"

#define NORM (KIND != RESIDUAL)
#define MULTIPLIES (NORM || FP8)  // x is multiplied by something before the product
#define BYTES (FP8 ? 1 : 2)       // of a weight
#define LANE_K (16 / BYTES)       // features in the 16 bytes of weights that a lane loads
#define STEP_K (4 * LANE_K)       // features in such a load of a warp

struct Arguments {  // `_Arguments` in linear.py
    const unsigned char* weight;  // [N, K]
    const float* scale;           // [N], of float8 weights
    const bf16* x;                // [M, K]
    const bf16* norm;             // [K], of an RMSNorm before the product
    bf16* out;
    // the rest but for sizes: of KIND ROTATE
    const float* table;    // [positions, D]: cosines, then sines
    const int* rows;       // [M]; -1 = padding
    const int* positions;  // [rows]
    const int* limits;     // [rows]: from here on a row writes nothing
    const int* blocks;     // [rows, blocks_stride]
    const bf16* bias;      // [N], or none
    bf16* k;               // [B, P, Hkv, D]
    bf16* v;
    int M, N, K, tiles, blocks_stride, block_size, heads, kv_heads, head_dim;
    float eps;
};

// Weight rows come in pairs whose sums meet: gate and up, the two halves of a head. WIDTH pairs to a block.
template <int WIDTH>
__device__ __forceinline__ int weight_row(const Arguments& a, int pair, int second) {
    if (KIND == SWIGLU) return pair + second * (a.N / 2);
    if (KIND == ROTATE) {
        int half = a.head_dim / 2;
        return pair / half * a.head_dim + pair % half + second * half;
    }
    return pair / WIDTH * (2 * WIDTH) + pair % WIDTH + second * WIDTH;
}

template <int WIDTH>
__device__ __forceinline__ const unsigned char* weight_at(const Arguments& a, int pair, int second) {
    // rows past the end are read as the last one, and their sums dropped
    return a.weight + (u64)min(weight_row<WIDTH>(a, pair, second), a.N - 1) * a.K * BYTES;
}

struct Place {  // where a pair's sums of row m go, and what else they need
    float scale1, scale2, add1, add2, cos, sin;
    bf16 *first, *second;  // or nowhere
};

template <int WIDTH>
__device__ __forceinline__ Place place(const Arguments& a, int pair, int m) {
    int n1 = weight_row<WIDTH>(a, pair, 0), n2 = weight_row<WIDTH>(a, pair, 1), N = a.N;
    bool valid1 = n1 < N && m < a.M, valid2 = n2 < N && m < a.M;
    Place p = {1.0f, 1.0f, 0.0f, 0.0f, 1.0f, 0.0f, nullptr, nullptr};
    if (FP8) {
        p.scale1 = valid1 ? LIFT * a.scale[n1] : 0.0f;
        p.scale2 = valid2 ? LIFT * a.scale[n2] : 0.0f;
    }
    if (KIND == SWIGLU) {
        if (valid2) p.first = a.out + (u64)m * (N / 2) + n1;
    } else if (KIND != ROTATE) {
        if (valid1) p.first = a.out + (u64)m * N + n1;
        if (valid2) p.second = a.out + (u64)m * N + n2;
        if (KIND == RESIDUAL) {
            p.add1 = valid1 ? to_float(*p.first) : 0.0f;
            p.add2 = valid2 ? to_float(*p.second) : 0.0f;
        }
    } else if (valid2) {
        int row = a.rows[m], safe = max(row, 0), position = a.positions[safe];
        bool writes = row >= 0 && position < a.limits[safe];
        position = writes ? position : 0;
        int D = a.head_dim, head = n1 / D, j = n1 % D;
        if (a.bias) {
            p.add1 = to_float(a.bias[n1]);
            p.add2 = to_float(a.bias[n2]);
        }
        if (head < a.heads + a.kv_heads) {
            p.cos = a.table[(u64)position * D + j];
            p.sin = a.table[(u64)position * D + D / 2 + j];
        }
        if (head < a.heads) {
            p.first = a.out + (u64)m * a.heads * D + n1;
        } else if (writes) {
            int block = a.blocks[(u64)safe * a.blocks_stride + position / a.block_size];
            u64 slot = (u64)block * a.block_size + position % a.block_size;
            bool is_key = head < a.heads + a.kv_heads;
            int kv = head - a.heads - (is_key ? 0 : a.kv_heads);
            p.first = (is_key ? a.k : a.v) + (slot * a.kv_heads + kv) * D + j;
        }
        p.second = p.first ? p.first + D / 2 : nullptr;
    }
    return p;
}

__device__ __forceinline__ void put(const Arguments& a, const Place& p, float y1, float y2, float squares) {
    float factor = NORM ? rsqrtf(squares / a.K + a.eps) : 1.0f;
    y1 = y1 * factor * p.scale1 + p.add1;
    y2 = y2 * factor * p.scale2 + p.add2;
    if (KIND == SWIGLU) y1 = y1 / (1.0f + __expf(-y1)) * y2;
    if (KIND == ROTATE) {
        float turned = y1 * p.cos - y2 * p.sin;
        y2 = y2 * p.cos + y1 * p.sin;
        y1 = turned;
    }
    if (p.first) *p.first = to_bf16(y1);
    if (p.second) *p.second = to_bf16(y2);
}

__device__ __forceinline__ float sum_of_squares(const Quad& q) {
    u32 words[4] = {q.a, q.b, q.c, q.d};
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float even = __uint_as_float(words[i] << 16), odd = __uint_as_float(words[i] & 0xffff0000u);
        sum += even * even + odd * odd;
    }
    return sum;
}

// Eight features of x a lane, times the norm's weights and, for float8 weights, 2^60.
__device__ __forceinline__ Quad scaled(const Quad& x, const Quad& by) {
    return {times(x.a, by.a), times(x.b, by.b), times(x.c, by.c), times(x.d, by.d)};
}
__device__ __forceinline__ Quad factors(const Quad& norm) {
    const u32 lift = 0x5d805d80u;  // 2^60, twice
    if (!FP8) return norm;
    if (!NORM) return {lift, lift, lift, lift};
    return {times(norm.a, lift), times(norm.b, lift), times(norm.c, lift), times(norm.d, lift)};
}

// Eight features of 16 weight rows: the words of the tensor core, in the order of its operands.
struct Eight { u32 w[8]; };
__device__ __forceinline__ Eight eight(const Quad& low, const Quad& high, int part) {
    if (!FP8) return {low.a, high.a, low.b, high.b, low.c, high.c, low.d, high.d};
    u32 l1 = part ? low.c : low.a, l2 = part ? low.d : low.b, h1 = part ? high.c : high.a, h2 = part ? high.d : high.b;
    return {widen_low(l1), widen_low(h1), widen_high(l1), widen_high(h1),
            widen_low(l2), widen_low(h2), widen_high(l2), widen_high(h2)};
}
__device__ __forceinline__ void multiply_eight(float* sum, const Eight& e, const Quad& x) {
    multiply(sum, e.w[0], e.w[1], e.w[2], e.w[3], x.a, x.b);
    multiply(sum, e.w[4], e.w[5], e.w[6], e.w[7], x.c, x.d);
}

#ifndef TILES

#define WARPS 8
#define DEPTH (FP8 ? 4 : 8)  // loads of a warp and row under way
#define BATCH 4              // of which the features of x are fetched together
#define PARTS (FP8 ? 2 : 1)  // of eight features of x a load

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) up_to_8(const __grid_constant__ Arguments a) {
    __shared__ float sums[WARPS][8][20];  // by row of x and of weights
    __shared__ float squares[WARPS][8];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int K = a.K, rounds = (K + STEP_K * WARPS - 1) / (STEP_K * WARPS), tile = blockIdx.x;
    const unsigned char *low = weight_at<8>(a, tile * 8 + g, 0), *high = weight_at<8>(a, tile * 8 + g, 1);
    Quad w_low[DEPTH], w_high[DEPTH];
    auto feature = [&](int round) { return (round * WARPS + warp) * STEP_K + t * LANE_K; };
    auto ask = [&](int at, int round) {
        int k = feature(round);
        w_low[at] = w_high[at] = {0, 0, 0, 0};
        if (k < K) {
            w_low[at] = load_weights(low + (u64)k * BYTES);
            w_high[at] = load_weights(high + (u64)k * BYTES);
        }
    };
#pragma unroll
    for (int at = 0; at < DEPTH; at++) ask(at, at);
    let_next_start();
    wait_for_previous();

    const bf16* x = a.x + (u64)g * K;
    int p = threadIdx.x % 8, m = threadIdx.x / 8;
    for (; tile < a.tiles; tile += gridDim.x) {
        Place to;
        if (m < a.M) to = place<8>(a, tile * 8 + p, m);
        float sum[2][4] = {};
        float square = 0.0f;
        for (int round = 0; round < rounds; round += DEPTH) {
            bool last = round + DEPTH >= rounds, more = !last || tile + gridDim.x < a.tiles;
            if (last && more) {  // what is asked for from here on is the next tile's
                low = weight_at<8>(a, (tile + gridDim.x) * 8 + g, 0);
                high = weight_at<8>(a, (tile + gridDim.x) * 8 + g, 1);
            }
            int next = last ? 0 : round + DEPTH;
#pragma unroll
            for (int first = 0; first < DEPTH; first += BATCH) {
                Quad xs[BATCH][PARTS], norms[BATCH][PARTS];
#pragma unroll
                for (int i = 0; i < BATCH; i++)
#pragma unroll
                    for (int part = 0; part < PARTS; part++) {
                        int k = feature(round + first + i) + part * 8;
                        xs[i][part] = norms[i][part] = {0, 0, 0, 0};
                        if (k < K && g < a.M) {
                            xs[i][part] = load_fresh(x + k);
                            if (NORM) norms[i][part] = load_fresh(a.norm + k);
                        }
                    }
#pragma unroll
                for (int i = 0; i < BATCH; i++) {
#pragma unroll
                    for (int part = 0; part < PARTS; part++) {
                        Quad by = xs[i][part];
                        if (NORM) square += sum_of_squares(by);
                        if (MULTIPLIES) by = scaled(by, factors(norms[i][part]));
                        multiply_eight(sum[i % 2], eight(w_low[first + i], w_high[first + i], part), by);
                    }
                    if (more) ask(first + i, next + first + i);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) sums[warp][2 * t + i % 2][g + i / 2 * 8] = sum[0][i] + sum[1][i];
        if (NORM) {
            square += __shfl_xor_sync(0xffffffffu, square, 1);
            square += __shfl_xor_sync(0xffffffffu, square, 2);
            if (t == 0) squares[warp][g] = square;
        }
        __syncthreads();
        if (m < a.M) {
            float y1 = 0.0f, y2 = 0.0f, s = 0.0f;
#pragma unroll
            for (int i = 0; i < WARPS; i++) {
                y1 += sums[i][m][p];
                y2 += sums[i][m][p + 8];
                if (NORM) s += squares[i][m];
            }
            put(a, to, y1, y2, s);
        }
        if (tile + gridDim.x < a.tiles) __syncthreads();  // before the sums are written again
    }
}

#else

#define PAIRS 32  // of weight rows in a block
#define THREADS 128
#define STEPS 8                     // loads of a warp in a chunk
#define CHUNK (STEPS * STEP_K)      // features
#define X_STRIDE (CHUNK * 2 + (FP8 ? 16 : 64))  // bytes of a row of x in shared memory: eight rows meet different banks
#define X_BYTES (TILES * 8 * X_STRIDE)
#define STAGE (X_BYTES + CHUNK * 2)  // and the norm's weights
#define SUM_STRIDE (TILES * 8 + 8)   // floats of the sums of a weight row

template <int SIZE>
__device__ __forceinline__ void finish(const Arguments& a, const float* sums, const float* squares, u32 rank, int tile) {
    constexpr int OWN = PAIRS / SIZE;  // pairs that this block adds up
    bool waited = false;
    for (int at = threadIdx.x; at < OWN * a.M || !waited; at += THREADS) {
        int m = at / OWN, p = at % OWN;
        Place to = place<PAIRS>(a, tile * PAIRS + rank * OWN + p, m);  // its loads overlap the wait
        if (!waited) cluster_wait();
        waited = true;
        if (m >= a.M) break;
        float y1 = 0.0f, y2 = 0.0f, s = 0.0f;
#pragma unroll
        for (int q = 0; q < SIZE; q++) {
            y1 += sums[(q * 2 * OWN + p) * SUM_STRIDE + m];
            y2 += sums[(q * 2 * OWN + OWN + p) * SUM_STRIDE + m];
            if (NORM) s += squares[q * TILES * 8 + m];
        }
        put(a, to, y1, y2, s);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) up_to_32(const __grid_constant__ Arguments a) {
    DYNAMIC_SHARED(shared);  // sums by sender, squares by sender, one or two stages of x
    float* sums = (float*)shared;
    float* squares = sums + 2 * PAIRS * SUM_STRIDE;
    unsigned char* stages = (unsigned char*)(squares + 8 * TILES * 8);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    u32 rank = cluster_rank(), size = cluster_size();
    cluster_arrive();
    int M = a.M, K = a.K, tile = blockIdx.x / size, chunks = (K + CHUNK - 1) / CHUNK;
    int local = (warp & 1) * 16 + g, second = warp >> 1;
    const unsigned char* low = weight_at<PAIRS>(a, tile * PAIRS + local, second);
    const unsigned char* high = weight_at<PAIRS>(a, tile * PAIRS + local + 8, second);

    Quad w_low[STEPS], w_high[STEPS];
    auto ask = [&](int chunk, int step) {
        int k = chunk * CHUNK + (step * 4 + t) * LANE_K;
        w_low[step] = w_high[step] = {0, 0, 0, 0};
        if (k < K) {
            w_low[step] = load_weights(low + (u64)k * BYTES);
            w_high[step] = load_weights(high + (u64)k * BYTES);
        }
    };
#pragma unroll
    for (int step = 0; step < STEPS; step++) ask(rank, step);
    let_next_start();
    wait_for_previous();

    auto stage = [&](int chunk, int buffer) {
        Shared to = shared_address(stages + buffer * STAGE);
        constexpr int PER_ROW = CHUNK / 8;
        for (int at = threadIdx.x; at < TILES * 8 * PER_ROW; at += THREADS) {
            int m = at / PER_ROW, k = chunk * CHUNK + at % PER_ROW * 8;
            bool valid = m < M && k < K;
            copy_async(to + m * X_STRIDE + at % PER_ROW * 16, valid ? a.x + (u64)m * K + k : a.x, valid);
        }
        if (NORM && threadIdx.x < PER_ROW) {
            int k = chunk * CHUNK + threadIdx.x * 8;
            copy_async(to + X_BYTES + threadIdx.x * 16, k < K ? a.norm + k : a.norm, k < K);
        }
        end_of_copies();
    };

    float sum[TILES][4] = {};
    float square = 0.0f;
    int buffer = 0;
    if (rank < chunks) stage(rank, 0);
    for (int chunk = rank; chunk < chunks; chunk += size) {
        int next = chunk + size;
        if (next < chunks) {
            stage(next, buffer ^ 1);
            wait_for_copies<1>();
        } else {
            wait_for_copies<0>();
        }
        __syncthreads();
        const unsigned char* from = stages + buffer * STAGE;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
#pragma unroll
            for (int part = 0; part < 2 / BYTES; part++) {
                int at = (step * 4 + t) * 32 / BYTES + part * 16;
                Eight e = eight(w_low[step], w_high[step], part);
                Quad by = {0, 0, 0, 0};
                if (NORM) by = load_shared(from + X_BYTES + at);
                by = factors(by);
#pragma unroll
                for (int i = 0; i < TILES; i++) {
                    Quad x = load_shared(from + (i * 8 + g) * X_STRIDE + at);
                    if (NORM && warp == i) square += sum_of_squares(x);  // a warp sums those of eight rows
                    if (MULTIPLIES) x = scaled(x, by);
                    multiply_eight(sum[i], e, x);
                }
            }
            if (next < chunks) ask(next, step);
        }
        if (next < chunks) __syncthreads();  // before this buffer is filled again
        buffer ^= 1;
    }

    // every warp has its sums of this block's features: to the blocks that add them up
    int own = PAIRS / size;
    cluster_wait();  // they have all begun
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int p = local + half * 8;
        Shared to = of_peer(shared_address(sums + ((rank * 2 + second) * own + p % own) * SUM_STRIDE), p / own);
#pragma unroll
        for (int i = 0; i < TILES; i++)
            store_peer(to + (i * 8 + 2 * t) * 4, sum[i][2 * half], sum[i][2 * half + 1]);
    }
    if (NORM && warp < TILES) {
        square += __shfl_xor_sync(0xffffffffu, square, 1);
        square += __shfl_xor_sync(0xffffffffu, square, 2);
        for (u32 peer = t; peer < size; peer += 4)
            store_peer(of_peer(shared_address(squares + rank * TILES * 8 + warp * 8 + g), peer), square);
    }
    cluster_arrive();
    if (size == 8) finish<8>(a, sums, squares, rank, tile);
    else if (size == 4) finish<4>(a, sums, squares, rank, tile);
    else if (size == 2) finish<2>(a, sums, squares, rank, tile);
    else finish<1>(a, sums, squares, rank, tile);
}

#endif
