// What compute capability 9.0 alone has, said in PTX: copies of boxes of a matrix, barriers that count their bytes,
// products of a warpgroup with operands in shared memory. `tests/cuda_host` has another file of this name for a CPU.
#pragma once
#include "tensor.cuh"

// A matrix and the boxes that it is copied in, as the driver encodes them; 128-byte rows of a box are swizzled in
// shared memory: bits 4-6 of an address are changed by its bits 7-9. What lies outside the matrix is read as zero and
// not written.
struct alignas(64) TensorMap { u64 opaque[16]; };

#define DYNAMIC_SHARED_ALIGNED(name) extern __shared__ __align__(1024) unsigned char name[]  // as swizzled boxes want it

// ---- barriers in shared memory; a wait is for the end of the round of that parity ----
__device__ __forceinline__ void barrier_init(Shared barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barriers_visible() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void barrier_arrive_expecting(Shared barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive_at(Shared barrier, u32 rank) {  // that of a block of the cluster
    asm volatile(
        "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(barrier),
        "r"(rank)
        : "memory");
}
__device__ __forceinline__ void barrier_wait(Shared barrier, u32 parity) {
    asm volatile(
        "{ .reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra over;\n"
        "bra again;\n"
        "over: }" ::"r"(barrier), "r"(parity)
        : "memory");
}

// ---- copies of boxes: (x, y) is the box's first column and row ----
__device__ __forceinline__ void load_box(Shared to, const TensorMap& map, int x, int y, Shared barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(&map), "r"(x), "r"(y), "r"(barrier)
        : "memory");
}
// To the same place in each block of the cluster whose bit is set, whose own barrier is told.
__device__ __forceinline__ void load_box_for(unsigned short blocks, Shared to, const TensorMap& map, int x, int y, Shared barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(&map), "r"(x), "r"(y), "r"(barrier), "h"(blocks)
        : "memory");
}
__device__ __forceinline__ void store_box(const TensorMap& map, int x, int y, Shared from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(x), "r"(y),
                 "r"(from)
                 : "memory");
}
__device__ __forceinline__ void end_of_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait_until_stores_have_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ __forceinline__ void wait_for_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
// What this thread wrote into shared memory is there for copies of boxes that begin after the next barrier.
__device__ __forceinline__ void show_to_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- warpgroups ----
__device__ __forceinline__ void warpgroup_barrier(u32 id, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
template <int COUNT>
__device__ __forceinline__ void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT>
__device__ __forceinline__ void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }

// A matrix in shared memory whose rows are 128 swizzled bytes, each eight of them 1024 bytes. An address' high bits name the
// block of the cluster, and do not belong here.
__device__ __forceinline__ u64 operand(Shared at) {
    return (u64)1 << 62 | (u64)(1024 >> 4) << 32 | (u64)1 << 16 | (at & 0x3ffff) >> 4;
}

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
__device__ __forceinline__ void keep_order(float* sums) {  // reads of the sums stay behind the wait for them
#pragma unroll
    for (int i = 0; i < 128; i++) asm volatile("" : "+f"(sums[i])::"memory");
}

#define SUM4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define SUM16(i) SUM4(i), SUM4(i + 4), SUM4(i + 8), SUM4(i + 12)
#define SUM64(i) SUM16(i), SUM16(i + 16), SUM16(i + 32), SUM16(i + 48)
#define PRODUCT(TYPE)                                                                                                   \
    asm volatile(                                                                                                       \
        "{ .reg .pred add; setp.ne.b32 add, %130, 0;\n"                                                                 \
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE " {"                                                \
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,"     \
        "%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,"   \
        "%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,"   \
        "%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,"   \
        "%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"            \
        "}, %128, %129, add, 1, 1, 0, 0; }"                                                                             \
        : SUM64(0), SUM64(64)                                                                                           \
        : "l"(a), "l"(b), "r"(add))

// sums [64, 256] (+)= a [64, 16] @ b [256, 16].T; which thread holds what is in the PTX manual.
template <bool HALF>  // float16, or bfloat16
__device__ __forceinline__ void multiply_tile(float* sums, u64 a, u64 b, int add) {
    if (HALF)
        PRODUCT("f16");
    else
        PRODUCT("bf16");
}

// Four matrices of 8 x 8, each lane giving the address of a row and two elements of each.
__device__ __forceinline__ void store_matrices(Shared to, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

template <bool HALF>
__device__ __forceinline__ u32 pack16(float low, float high) {
    if (!HALF) return pack(low, high);
    u32 out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
__device__ __forceinline__ float reciprocal(float x) {
    float out;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}
