// The product of a prompt's many rows with the gate and up weights, and SwiGLU on its sums: out = silu(x @ gate.T) * (x @ up.T).
//
// Tensor cores are all the work. A block takes 128 rows of x and 128 columns of out: one warp has boxes of x, gate and up
// copied into a ring of stages; two warpgroups multiply from there, 64 rows each, gate and up beside each other as the
// 256 columns of one product, so a column's gate and up end in the same thread. Two blocks of a cluster take two tiles of
// rows of the same columns: one has the gate weights copied to both, the other the up weights. Blocks stay and go from tile
// to tile, so that the next one's copies run while this one's sums are put away.
//
// Defined by the compiling side: FLOAT16 (float16 instead of bfloat16).

#include "hopper.cuh"

#define CLUSTER 2       // blocks
#define STAGES 4        // all that fits beside a tile of out
#define GROUP 16        // pairs of row tiles gone through before the next columns: what they read stays in the second-level cache
#define ROWS 128        // of x, of a tile
#define COLUMNS 128     // of out
#define DEPTH 64        // features of a step: 128 bytes
#define BOX_BYTES (128 * DEPTH * 2)
#define STAGE_BYTES (3 * BOX_BYTES)  // x, gate, up
#define STORE_BYTES (64 * 64 * 2)    // of a box of out
#define WARPGROUPS 2                 // that multiply

struct Arguments {  // `_Arguments` in prompts.py
    TensorMap x, weight, out;
    int row_pairs;  // of tiles: CLUSTER * ROWS rows
    int column_tiles, steps, columns;
};

struct Tile { int row, column; };
__device__ __forceinline__ Tile tile_at(const Arguments& a, int i) {
    int all = GROUP * a.column_tiles, first = i / all * GROUP, pairs = min(GROUP, a.row_pairs - first), in = i % all;
    return {((first + in % pairs) * CLUSTER + (int)cluster_rank()) * ROWS, in / pairs * COLUMNS};
}

struct Ring {
    Shared stages, full, empty;
    u32 slot = 0, parity = 0;
    __device__ __forceinline__ Shared stage() const { return stages + slot * STAGE_BYTES; }
    __device__ __forceinline__ Shared filled() const { return full + slot * 8; }
    __device__ __forceinline__ Shared freed(u32 at) const { return empty + at * 8; }
    __device__ __forceinline__ void next() {
        if (++slot == STAGES) slot = 0, parity ^= 1;
    }
};

__device__ __forceinline__ void copy_in(const Arguments& a, Ring ring) {
    wait_for_previous();
    u32 rank = cluster_rank();
    for (int i = blockIdx.x / CLUSTER; i < a.row_pairs * a.column_tiles; i += gridDim.x / CLUSTER) {
        Tile tile = tile_at(a, i);
        for (int step = 0; step < a.steps; step++, ring.next()) {
            barrier_wait(ring.freed(ring.slot), ring.parity ^ 1);
            barrier_arrive_expecting(ring.filled(), STAGE_BYTES);
            Shared to = ring.stage();
            load_box(to, a.x, step * DEPTH, tile.row, ring.filled());
            load_box_for(3, to + (1 + rank) * BOX_BYTES, a.weight, step * DEPTH, tile.column + rank * a.columns, ring.filled());
        }
    }
}

// Every multiplying warp of the cluster says so of a stage before it is filled again: what one block copies goes to both.
__device__ __forceinline__ void release(Shared freed, u32 lane) {
    if (lane < CLUSTER) barrier_arrive_at(freed, lane);
}

// silu(gate) * up of two columns, with one reciprocal of both denominators: exponentials and reciprocals are what this costs.
__device__ __forceinline__ u32 swiglu(float gate1, float gate2, float up1, float up2) {
    const float minus_log2e = -1.4426950408889634f, most = 60.0f;  // 2^60 squared is finite
    float below1 = 1.0f + exp2_of(min(gate1 * minus_log2e, most)), below2 = 1.0f + exp2_of(min(gate2 * minus_log2e, most));
    float both = reciprocal(below1 * below2);
    return pack16<FLOAT16>(gate1 * up1 * (below2 * both), gate2 * up2 * (below1 * both));
}

__device__ __forceinline__ void multiply(const Arguments& a, Ring ring, Shared staging, u32 warpgroup) {
    u32 thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    float sums[128];
    staging += warpgroup * 2 * STORE_BYTES;
    // Row by row of 128 bytes, chunk by chunk of 16, as the swizzle has it.
    Shared row = staging + (warp * 16 + lane % 16) * 128;
    for (int i = blockIdx.x / CLUSTER; i < a.row_pairs * a.column_tiles; i += gridDim.x / CLUSTER) {
        Tile tile = tile_at(a, i);
        u32 before = 0;
        for (int step = 0; step < a.steps; step++, ring.next()) {
            barrier_wait(ring.filled(), ring.parity);
            u64 x = operand(ring.stage() + warpgroup * (BOX_BYTES / 2)), weight = operand(ring.stage() + BOX_BYTES);
            products_begin();
#pragma unroll
            for (int k = 0; k < DEPTH / 16; k++)  // 32 bytes on in every row
                multiply_tile<FLOAT16>(sums, x + 2 * k, weight + 2 * k, step > 0 || k > 0);
            products_end();
            wait_for_products<1>();
            if (step > 0) release(ring.freed(before), lane);
            before = ring.slot;
        }
        wait_for_products<0>();
        keep_order(sums);
        release(ring.freed(before), lane);

        if (thread == 0) wait_until_stores_have_read();  // of the tile before
        warpgroup_barrier(1 + warpgroup, 128);
#pragma unroll
        for (int j = 0; j < 16; j += 2) {  // of eight columns
            const float *gate = sums + 4 * j, *up = gate + 64;
            u32 words[4];
#pragma unroll
            for (int w = 0; w < 4; w++) words[w] = swiglu(gate[2 * w], gate[2 * w + 1], up[2 * w], up[2 * w + 1]);
            u32 chunk = (j % 8 + lane / 16) ^ (lane % 8);
            store_matrices(row + j / 8 * STORE_BYTES + chunk * 16, words[0], words[1], words[2], words[3]);
        }
        show_to_copies();
        warpgroup_barrier(1 + warpgroup, 128);
        if (thread == 0) {
            store_box(a.out, tile.column, tile.row + warpgroup * 64, staging);
            store_box(a.out, tile.column + 64, tile.row + warpgroup * 64, staging + STORE_BYTES);
            end_of_stores();
        }
    }
    if (thread == 0) wait_for_stores();
}

extern "C" __global__ void __launch_bounds__(128 * (1 + WARPGROUPS), 1) gate_up(const __grid_constant__ Arguments a) {
    DYNAMIC_SHARED_ALIGNED(shared);
    Shared base = shared_address(shared), staging = base + STAGES * STAGE_BYTES;
    Ring ring{base, staging + WARPGROUPS * 2 * STORE_BYTES, staging + WARPGROUPS * 2 * STORE_BYTES + 8 * STAGES};
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < STAGES; i++) {
            barrier_init(ring.full + 8 * i, 1);
            barrier_init(ring.empty + 8 * i, CLUSTER * WARPGROUPS * 4);
        }
        barriers_visible();
    }
    __syncthreads();
    cluster_arrive();
    cluster_wait();
    if (threadIdx.x < 128) {
        fewer_registers<40>();
        if (threadIdx.x == 0) copy_in(a, ring);
        __syncwarp();
    } else {
        more_registers<232>();
        multiply(a, ring, staging, threadIdx.x / 128 - 1);
        __syncwarp();
    }
    cluster_arrive();  // until nobody tells this block's barriers anything any more
    cluster_wait();
    let_next_start();
}
