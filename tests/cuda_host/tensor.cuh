// The kernels' `tensor.cuh` for a CPU: every thread of a cluster is a fiber, and what threads do together (products of the
// tensor cores, shuffles, barriers) happens when the last of them has come. `run` is in run.cpp.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <vector>

typedef uint32_t u32;
typedef uint64_t u64;
typedef uint16_t u16;
typedef uint16_t bf16;  // its bits

#define __device__
#define __forceinline__ inline
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // blocks with static shared memory run one after another
using std::max;
using std::min;

struct uint3_ { u32 x, y, z; };
struct uint4 { u32 x, y, z, w; };
struct Fiber;
struct Barrier {
    u32 expected = 0, count = 0, rounds = 0;
    std::vector<Fiber*> waiting;
    u32 arrive();           // the round that this thread has arrived in
    void wait(u32 round);   // until it is over
    void arrive_and_wait() { wait(arrive()); }
};
struct Warp {
    Barrier barrier;
    u32 words[32][6];
};
struct Block {
    Barrier barrier;
    std::vector<Warp> warps;
    std::map<u32, Barrier> named;
    std::vector<unsigned char> memory;
};
struct Cluster {
    Barrier barrier;
    std::vector<Block> blocks;
};
struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    Cluster* cluster;
    u32 rank;  // of its block in the cluster
    uint3_ thread, block;
    u32 round;  // of the cluster's barrier
    // What hopper.cuh puts off until this thread waits for it.
    u32 groups;
    std::deque<std::pair<u32, std::function<void()>>> products;  // by group
    std::vector<std::function<void()>> stores;
};
extern Fiber* running;
extern uint3_ grid;

#define threadIdx (running->thread)
#define blockIdx (running->block)
#define gridDim grid
inline Block& own_block() { return running->cluster->blocks[running->rank]; }
inline Warp& own_warp() { return own_block().warps[threadIdx.x / 32]; }
inline void __syncthreads() { own_block().barrier.arrive_and_wait(); }
inline void __threadfence() {}

struct Quad { u32 a, b, c, d; };
inline Quad load_fresh(const void* p) { Quad q; memcpy(&q, p, 16); return q; }
inline Quad load_weights(const void* p) { return load_fresh(p); }
inline void load_fresh(const void* p, u32& a, u32& b) { memcpy(&a, p, 4); memcpy(&b, (const char*)p + 4, 4); }
inline float load_fresh(const float* p) { return *p; }
inline float __ldcg(const float* p) { return *p; }
inline Quad load_shared(const unsigned char* p) { return load_fresh((const void*)p); }
inline int atomicAdd(int* at, int n) { int before = *at; *at += n; return before; }

inline void let_next_start() {}
inline void wait_for_previous() {}
typedef unsigned char* Shared;
inline Shared shared_address(const void* p) { return (Shared)p; }
#define DYNAMIC_SHARED(name) unsigned char* name = own_block().memory.data()
inline void copy_async(Shared to, const void* from, bool valid) { valid ? memcpy(to, from, 16) : memset(to, 0, 16); }
inline void end_of_copies() {}
template <int PENDING> inline void wait_for_copies() {}

inline u32 cluster_rank() { return running->rank; }
inline u32 cluster_size() { return running->cluster->blocks.size(); }
inline void cluster_arrive() { running->round = running->cluster->barrier.arrive(); }
inline void cluster_wait() { running->cluster->barrier.wait(running->round); }
inline Shared of_peer(Shared local, u32 rank) {
    return running->cluster->blocks[rank].memory.data() + (local - own_block().memory.data());
}
inline void store_peer(Shared to, float a) { memcpy(to, &a, 4); }
inline void store_peer(Shared to, float a, float b) { store_peer(to, a); store_peer(to + 4, b); }

inline float __uint_as_float(u32 x) { float f; memcpy(&f, &x, 4); return f; }
inline u32 float_bits(float f) { u32 x; memcpy(&x, &f, 4); return x; }
inline float __int_as_float(int x) { return __uint_as_float((u32)x); }
inline float to_float(bf16 x) { return __uint_as_float((u32)x << 16); }
inline bf16 to_bf16(float f) {  // to nearest, ties to even
    u32 x = float_bits(f);
    if (std::isnan(f)) return 0x7fff;
    return (bf16)((x + 0x7fff + (x >> 16 & 1)) >> 16);
}
inline u32 pack(float low, float high) { return to_bf16(low) | (u32)to_bf16(high) << 16; }
inline float low_of(u32 x) { return to_float((bf16)x); }
inline float high_of(u32 x) { return to_float((bf16)(x >> 16)); }
inline u32 times(u32 a, u32 b) { return pack(low_of(a) * low_of(b), high_of(a) * high_of(b)); }
inline float exp2_of(float x) { return std::exp2(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline u32 __byte_perm(u32 a, u32 b, u32 chosen) {
    u64 both = (u64)b << 32 | a;
    u32 out = 0;
    for (int i = 0; i < 4; i++) out |= (u32)(both >> 8 * (chosen >> 4 * i & 7) & 0xff) << 8 * i;
    return out;
}
inline float __shfl_xor_sync(u32, float x, int by) {
    Warp& warp = own_warp();
    u32 lane = threadIdx.x % 32;
    warp.words[lane][0] = float_bits(x);
    warp.barrier.arrive_and_wait();
    float out = __uint_as_float(warp.words[lane ^ by][0]);
    warp.barrier.arrive_and_wait();
    return out;
}

// Operands and sums of mma.m16n8k16: which lane holds what is in the PTX manual.
inline void multiply(float* sum, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    Warp& warp = own_warp();
    u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const u32 mine[6] = {a0, a1, a2, a3, b0, b1};
    memcpy(warp.words[lane], mine, sizeof mine);
    warp.barrier.arrive_and_wait();
    for (u32 i = 0; i < 4; i++) {
        u32 column = 2 * t + i % 2;
        for (u32 k = 0; k < 8; k++) {  // pairs of features
            u32 a = warp.words[g * 4 + k % 4][i / 2 + k / 4 * 2], b = warp.words[column * 4 + k % 4][4 + k / 4];
            sum[i] += low_of(a) * low_of(b) + high_of(a) * high_of(b);
        }
    }
    warp.barrier.arrive_and_wait();
}
