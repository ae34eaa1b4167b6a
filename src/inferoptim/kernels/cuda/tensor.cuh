// What the kernels share: words of memory, the tensor cores' product, float8 as bfloat16.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short bf16;  // its bits

// float8's bits in bfloat16's places mean 2^-120 times the value; x is given 2^60 of that, the sums the rest.
#define LIFT 1152921504606846976.0f

struct Quad { u32 a, b, c, d; };

__device__ __forceinline__ Quad load_weights(const void* p) {
    Quad q;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(q.a), "=r"(q.b), "=r"(q.c), "=r"(q.d) : "l"(p));
    return q;
}

// Past the first-level cache: written by a kernel that may have ended while this one was already running.
__device__ __forceinline__ Quad load_fresh(const void* p) {
    Quad q;
    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(q.a), "=r"(q.b), "=r"(q.c), "=r"(q.d) : "l"(p));
    return q;
}

__device__ __forceinline__ Quad load_shared(const unsigned char* p) {
    uint4 q = *(const uint4*)p;
    return {q.x, q.y, q.z, q.w};
}

__device__ __forceinline__ void copy_async(u32 to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0));
}

__device__ __forceinline__ void multiply(float* sum, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 times(u32 a, u32 b) {
    u32 out;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
}

// Two float8 in the high bytes of the halves of a word, as two bfloat16 of 2^-120 times their value.
__device__ __forceinline__ u32 widen(u32 high) { return (high & 0x80008000u) | ((high >> 4) & 0x07f007f0u); }
__device__ __forceinline__ u32 widen_low(u32 word) { return widen(__byte_perm(word, 0, 0x1404)); }   // elements 0, 1
__device__ __forceinline__ u32 widen_high(u32 word) { return widen(__byte_perm(word, 0, 0x3424)); }  // elements 2, 3

__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ bf16 to_bf16(float x) {
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %1;" : "=r"(out) : "f"(x));
    return (bf16)out;
}

