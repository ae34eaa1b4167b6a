// The kernels' `hopper.cuh` for a CPU. What a GPU does meanwhile is done as late as it may be: copies of boxes when every
// thread waits (one in three at once), products and stores when their thread waits for them.
#pragma once
#include "tensor.cuh"

struct alignas(64) TensorMap { u64 address, columns, rows, box_rows, unused[12]; };  // `_tensor_map` in __init__.py

#define DYNAMIC_SHARED_ALIGNED(name) DYNAMIC_SHARED(name)
inline void __syncwarp() {}

// ---- barriers ----
struct ByteBarrier {
    int expected = 0, pending = 0, bytes = 0;
    u32 rounds = 0;
    std::vector<Fiber*> waiting;
    void look();
};
extern std::map<Shared, ByteBarrier> byte_barriers;
extern std::deque<std::function<void()>> copies;
void sleep_on(std::vector<Fiber*>& waiting);

inline void barrier_init(Shared at, u32 arrivals) { byte_barriers[at] = {(int)arrivals, (int)arrivals}; }
inline void barriers_visible() {}
inline void barrier_arrive_expecting(Shared at, u32 bytes) {
    ByteBarrier& barrier = byte_barriers.at(at);
    barrier.bytes += bytes, barrier.pending--;
    barrier.look();
}
inline void barrier_arrive_at(Shared at, u32 rank) {
    ByteBarrier& barrier = byte_barriers.at(of_peer(at, rank));
    barrier.pending--;
    barrier.look();
}
inline void barrier_wait(Shared at, u32 parity) {
    ByteBarrier& barrier = byte_barriers.at(at);
    while ((barrier.rounds & 1) == parity) sleep_on(barrier.waiting);
}

// ---- copies of boxes ----
inline u32 swizzled(u32 offset) { return offset ^ (offset >> 7 & 7) << 4; }
inline void for_box(unsigned char* memory, u32 at, const TensorMap& map, int x, int y, bool in) {
    for (u32 r = 0; r < map.box_rows; r++)
        for (u32 c = 0; c < 64; c++) {
            u16* held = (u16*)(memory + swizzled(at + r * 128 + c * 2));
            bool inside = x + (int)c >= 0 && x + c < map.columns && y + (int)r >= 0 && y + r < map.rows;
            u16* there = (u16*)map.address + (u64)(y + r) * map.columns + x + c;
            if (in) *held = inside ? *there : 0;
            else if (inside) *there = *held;
        }
}
inline void load_box_for(unsigned short blocks, Shared to, const TensorMap& map, int x, int y, Shared barrier) {
    static u32 count = 0;
    for (u32 rank = 0; rank < cluster_size(); rank++) {
        if (!(blocks >> rank & 1)) continue;
        unsigned char* memory = of_peer(own_block().memory.data(), rank);
        u32 at = to - own_block().memory.data();
        Shared theirs = of_peer(barrier, rank);
        auto copy = [=, &map] {
            for_box(memory, at, map, x, y, true);
            byte_barriers.at(theirs).bytes -= map.box_rows * 128;
            byte_barriers.at(theirs).look();
        };
        if (count++ % 3) copies.push_back(copy);
        else copy();
    }
}
inline void load_box(Shared to, const TensorMap& map, int x, int y, Shared barrier) {
    load_box_for(1 << cluster_rank(), to, map, x, y, barrier);
}
inline void store_box(const TensorMap& map, int x, int y, Shared from) {
    unsigned char* memory = own_block().memory.data();
    running->stores.push_back([=, &map] { for_box(memory, from - memory, map, x, y, false); });
}
inline void end_of_stores() {}
inline void wait_for_stores() {
    for (auto& store : running->stores) store();
    running->stores.clear();
}
inline void wait_until_stores_have_read() { wait_for_stores(); }
inline void show_to_copies() {}

// ---- warpgroups ----
inline void warpgroup_barrier(u32 id, u32 threads) {
    Barrier& barrier = own_block().named[id];
    barrier.expected = threads;
    barrier.arrive_and_wait();
}
template <int> inline void fewer_registers() {}
template <int> inline void more_registers() {}

inline u64 operand(Shared at) { return (u64)1 << 62 | (u64)(1024 >> 4) << 32 | (u64)(at - own_block().memory.data()) >> 4; }
inline void products_begin() {}
inline void products_end() { running->groups++; }

// The element of a row of 16 features that a descriptor points to.
inline u16 element(const unsigned char* memory, u64 descriptor, u32 row, u32 k) {
    u32 start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
    return *(const u16*)(memory + swizzled(start + row / 8 * stride + row % 8 * 128 + k * 2));
}
template <bool HALF> float wide(u16 x);
template <> inline float wide<false>(u16 x) { return to_float(x); }
template <> inline float wide<true>(u16 x) {
    u32 exponent = x >> 10 & 31, fraction = x & 1023;
    float f = exponent == 31 ? (fraction ? NAN : INFINITY)
              : exponent     ? std::ldexp((float)(1024 + fraction), (int)exponent - 25)
                             : std::ldexp((float)fraction, -24);
    return x >> 15 ? -f : f;
}

// Each thread computes what it holds of the sums.
template <bool HALF>
inline void multiply_tile(float* sums, u64 a, u64 b, int add) {
    unsigned char* memory = own_block().memory.data();
    u32 thread = threadIdx.x % 128, row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
    auto product = [=] {
        float rows[2][16];
        for (u32 k = 0; k < 16; k++)
            for (u32 r = 0; r < 2; r++) rows[r][k] = wide<HALF>(element(memory, a, row + 8 * r, k));
        for (u32 j = 0; j < 32; j++)
            for (u32 e = 0; e < 2; e++) {
                float first = 0, second = 0;
                for (u32 k = 0; k < 16; k++) {
                    float w = wide<HALF>(element(memory, b, 8 * j + column + e, k));
                    first += rows[0][k] * w, second += rows[1][k] * w;
                }
                float* to = sums + 4 * j + e;
                to[0] = add ? to[0] + first : first;
                to[2] = add ? to[2] + second : second;
            }
    };
    running->products.push_back({running->groups, product});
}
template <int PENDING>
inline void wait_for_products() {
    auto& products = running->products;
    for (; !products.empty() && products.front().first + PENDING < running->groups; products.pop_front()) products.front().second();
}
inline void keep_order(float*) {}

inline void store_matrices(Shared to, u32 a, u32 b, u32 c, u32 d) {
    Warp& warp = own_warp();
    u32 lane = threadIdx.x % 32;
    const u32 mine[4] = {a, b, c, d};
    memcpy(warp.words[lane], mine, sizeof mine);
    warp.barrier.arrive_and_wait();
    for (u32 i = 0; i < 4; i++) memcpy(to + 4 * i, &warp.words[lane % 8 * 4 + i][lane / 8], 4);
    warp.barrier.arrive_and_wait();
}

template <bool HALF>
inline u32 pack16(float low, float high) {
    if (!HALF) return pack(low, high);
    auto half = [](float f) -> u32 {  // to nearest, ties to even
        u32 sign = float_bits(f) >> 31 << 15;
        float size = std::fabs(f);
        if (std::isnan(f)) return 0x7fff;
        if (size >= 65520.0f) return sign | 0x7c00;
        int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
        u32 steps = (u32)std::nearbyint(std::ldexp(size, 10 - exponent));  // 1024 and more from the smallest normal on
        return sign | ((u32)(exponent + 14) * 1024 + steps);
    };
    return half(low) | half(high) << 16;
}
inline float reciprocal(float x) { return 1.0f / x; }
