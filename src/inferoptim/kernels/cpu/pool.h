// Threads that live as long as the model and take a step's work phase by phase, task by task.
//
// A phase begins when every task of the one before has ended; its tasks go to whoever is free. A thread that the
// system put aside between two tasks therefore holds up nobody: the others do its share, and it rejoins wherever the
// step has got to. Within a step a thread without work spins, since phases last some tens of microseconds and a yield
// may give the core away for milliseconds; it yields only when a wait grows far longer than a phase, or at once where
// there are more threads than cores. Between steps it sleeps, so that nobody else's threads are fought.
//
// Of a phase of few tasks each thread has its own run of them, which it takes first and in order; who is done helps the
// others from the last task backwards. So a thread knows which memory it will want in the next phase, and may ask for it
// while it waits.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace io {

static inline void pause_cpu() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

static inline int cores() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    return (int)std::thread::hardware_concurrency();
}

// Condition: what a thread sleeps on, as std::condition_variable. A test passes one that it can hold at any point.
template <class Condition>
class PoolOn {
  public:
    using Work = std::function<void(int thread, int phase, int task)>;
    using Wait = std::function<void(int thread)>;

    // wait(thread): called again and again by a thread that waits within a step; some tens of nanoseconds each. It may run until
    // shortly after `run` has come back, at the latest until the pool is gone.
    explicit PoolOn(int threads, Wait wait = [](int) { pause_cpu(); })
        : threads_(threads < 1 ? 1 : threads), crowded_(threads_ > cores()), patience_(crowded_ ? 500 : 20000), wait_(std::move(wait)) {
        for (int t = 1; t < threads_; ++t) workers_.emplace_back([this, t] { live(t); });
    }
    ~PoolOn() {
        stop_.store(true);
        {
            std::lock_guard<std::mutex> lock(mutex_);
        }
        wake_.notify_all();
        for (auto& w : workers_) w.join();
    }
    int threads() const { return threads_; }

    // work(thread, p, 0 .. counts[p] - 1) for each phase p in order; returns when all has been done.
    void run(const std::vector<int>& counts, const Work& work) {
        keep_apart();
        counts_ = &counts;
        work_ = &work;
        first_ = number(board_.load(std::memory_order_relaxed)) + 1;
        end_ = first_ + (uint32_t)counts.size();
        running_.store(true);
        open(first_);
        if (sleepers_.load() > 0) {
            std::lock_guard<std::mutex> lock(mutex_);
            wake_.notify_all();
        }
        take_part(0);
        running_.store(false, std::memory_order_relaxed);
    }

  private:
    // Workers stay off the core where the leader runs. Left alone on a busy machine, the scheduler wakes a worker there
    // and leaves both on one core for many milliseconds, while a neighbour of low priority has the other.
    void keep_apart() {
#if defined(__linux__)
        if (workers_.empty() || crowded_) return;
        const int here = sched_getcpu();
        cpu_set_t others;
        if (here == leader_core_ || here < 0 || sched_getaffinity(0, sizeof others, &others) != 0) return;
        leader_core_ = here;
        CPU_CLR(here, &others);
        if (CPU_COUNT(&others) < (int)workers_.size()) return;
        for (auto& w : workers_) pthread_setaffinity_np(w.native_handle(), sizeof others, &others);
#endif
    }

    // The board: number of the current phase (never reused), how many tasks it has, and those that nobody has claimed yet: a
    // set of bits, or of a phase of too many tasks (MANY) their count.
    static constexpr uint32_t BITS = 24, MANY = 255;
    static uint32_t number(uint64_t board) { return (uint32_t)(board >> 32); }
    static uint32_t unclaimed(uint64_t board) { return (uint32_t)board & ((1u << BITS) - 1); }
    static uint64_t fresh(uint32_t phase, uint32_t tasks) {
        return (uint64_t)phase << 32 | (tasks > BITS ? MANY << BITS | tasks : tasks << BITS | ((1u << tasks) - 1));
    }

    // Claims a task of the phase on the board, unless somebody else was faster; `which`: a bit, or (MANY) how many were left.
    bool claim(uint64_t& board, int thread, int& which) {
        const uint32_t tasks = (uint32_t)board >> BITS, left = unclaimed(board);
        if (tasks == MANY) {
            which = (int)left;
            return board_.compare_exchange_weak(board, board - 1, std::memory_order_acq_rel);
        }
        const uint32_t from = tasks * thread / threads_, to = tasks * (thread + 1) / threads_;
        const uint32_t own = left & ((1u << to) - (1u << from));
        which = own ? __builtin_ctz(own) : 31 - __builtin_clz(left);
        return board_.compare_exchange_weak(board, board & ~(1ull << which), std::memory_order_acq_rel);
    }

    // The first phase from `phase` on that has tasks, or the end of the step.
    void open(uint32_t phase) {
        while (phase != end_ && (*counts_)[phase - first_] == 0) ++phase;
        const uint32_t tasks = phase == end_ ? 0 : (uint32_t)(*counts_)[phase - first_];
        unfinished_.store(tasks, std::memory_order_relaxed);
        board_.store(fresh(phase, tasks));
    }

    // Tasks of the current step as they come; back when it has ended. What `run` handed over is read only while a
    // claimed task is unfinished, that is, while `run` waits.
    void take_part(int thread) {
        const bool leader = thread == 0;
        int idle = 0;
        uint64_t board = board_.load(std::memory_order_acquire);
        for (;;) {
            if (unclaimed(board) == 0) {
                if (leader ? number(board) == end_ : !running_.load(std::memory_order_relaxed)) return;
                if (++idle < patience_) wait_(thread);
                else std::this_thread::yield();
                board = board_.load(std::memory_order_acquire);
                continue;
            }
            int task;
            if (!claim(board, thread, task)) continue;
            idle = 0;
            const uint32_t phase = number(board);
            const int count = (*counts_)[phase - first_];
            if ((uint32_t)count > BITS) task = count - task;
            (*work_)(thread, (int)(phase - first_), task);
            if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) open(phase + 1);
            board = board_.load(std::memory_order_acquire);
        }
    }

    void live(int thread) {
        using clock = std::chrono::steady_clock;
        for (;;) {
            // the next step usually follows within half a millisecond: stay awake that long
            const auto until = clock::now() + std::chrono::microseconds(500);
            while (!running_.load() && !stop_.load() && clock::now() < until)
                for (int i = 0; i < 32; ++i) pause_cpu();
            if (!running_.load()) {
                std::unique_lock<std::mutex> lock(mutex_);
                sleepers_.fetch_add(1);
                // A step that runs is what wakes, not a task to claim: between two phases there is none, and who went
                // back to sleep then would miss the whole step.
                wake_.wait(lock, [&] { return running_.load() || stop_.load(); });
                sleepers_.fetch_sub(1);
            }
            if (stop_.load()) return;
            take_part(thread);
        }
    }

    const int threads_;
    const bool crowded_;  // more threads than cores
    const int patience_;  // waits before a yield; one takes 10 to 60 ns
    const Wait wait_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    Condition wake_;
    alignas(64) std::atomic<uint64_t> board_{0};
    alignas(64) std::atomic<uint32_t> unfinished_{0};
    alignas(64) std::atomic<bool> running_{false};
    std::atomic<bool> stop_{false};
    std::atomic<int> sleepers_{0};
    const std::vector<int>* counts_ = nullptr;
    const Work* work_ = nullptr;
    uint32_t first_ = 0, end_ = 0;
    int leader_core_ = -1;
};

using Pool = PoolOn<std::condition_variable>;

}  // namespace io
