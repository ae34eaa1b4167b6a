// A few threads that live as long as the model. Inside a step they meet at spinning barriers (a step has hundreds of
// phases of microseconds); between steps they sleep, so that nobody else's threads are fought.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace io {

static inline void pause_cpu() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

class Pool {
  public:
    explicit Pool(int threads) : threads_(threads < 1 ? 1 : threads) {
        for (int t = 1; t < threads_; ++t) workers_.emplace_back([this, t] { work(t); });
    }
    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
            generation_.fetch_add(1);
        }
        wake_.notify_all();
        for (auto& w : workers_) w.join();
    }
    int threads() const { return threads_; }

    // Runs job(thread) on every thread; returns when all have finished.
    void run(const std::function<void(int)>& job) {
        job_ = &job;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            generation_.fetch_add(1);
        }
        wake_.notify_all();
        job(0);
        barrier();
    }

    // All threads of a job wait for each other. Spins, then yields: with more threads than cores a spin never ends.
    void barrier() {
        if (threads_ == 1) return;
        const unsigned phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.fetch_add(1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
            if (spins < 20000) pause_cpu();
            else std::this_thread::yield();
        }
    }

  private:
    void work(int thread) {
        unsigned seen = 0;
        for (;;) {
            // the next step usually follows within a few hundred microseconds: stay awake that long, then sleep
            for (int spins = 0; spins < 4000 && generation_.load(std::memory_order_acquire) == seen; ++spins) pause_cpu();
            if (generation_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return generation_.load() != seen; });
            }
            seen = generation_.load(std::memory_order_acquire);
            if (stop_) return;
            (*job_)(thread);
            barrier();
        }
    }

    const int threads_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<unsigned> generation_{0};
    std::atomic<unsigned> phase_{0};
    std::atomic<int> arrived_{0};
    const std::function<void(int)>* job_ = nullptr;
    bool stop_ = false;
};

}  // namespace io
