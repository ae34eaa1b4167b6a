// Reads a buffer with several threads and returns a checksum, so that nothing can be left out by the compiler.
// This is the fastest plain read we know how to write without per-machine tuning: eight independent
// accumulators of 64 bytes (the compiler splits them on narrower machines) hide load and add latency.
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

typedef uint64_t Lane __attribute__((vector_size(64)));
constexpr size_t kUnroll = 8;

static uint64_t read_slice(const Lane* data, size_t lanes, int passes) {
    Lane sums[kUnroll] = {};
    for (int pass = 0; pass < passes; ++pass) {
        for (size_t i = 0; i < lanes; i += kUnroll)
            for (size_t j = 0; j < kUnroll; ++j) sums[j] += data[i + j];
        asm volatile("" ::: "memory");  // every pass reads memory again
    }
    uint64_t total = 0;
    for (const Lane& sum : sums)
        for (int i = 0; i < 8; ++i) total += sum[i];
    return total;
}

// `data` is 64-byte aligned; what does not divide evenly among the threads is left out (see bytes_read).
extern "C" size_t bytes_read(size_t n_bytes, int threads) {
    const size_t granule = sizeof(Lane) * kUnroll;
    return n_bytes / threads / granule * granule * threads;
}

extern "C" uint64_t stream_read(const void* data, size_t n_bytes, int threads, int passes) {
    const size_t lanes = bytes_read(n_bytes, threads) / threads / sizeof(Lane);
    std::vector<uint64_t> sums(static_cast<size_t>(threads) * 8);  // one cache line each
    std::vector<std::thread> workers;
    for (int t = 0; t < threads; ++t)
        workers.emplace_back([=, &sums] {
            sums[static_cast<size_t>(t) * 8] = read_slice(static_cast<const Lane*>(data) + lanes * t, lanes, passes);
        });
    for (std::thread& worker : workers) worker.join();
    uint64_t total = 0;
    for (uint64_t sum : sums) total += sum;
    return total;
}
