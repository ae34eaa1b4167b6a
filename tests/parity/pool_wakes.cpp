// A worker of the pool that looks whether it is wanted between two phases, when there is no task to claim: made to happen.
// Prints, for each step, in how many of its later phases the worker took part.
#include <cstdio>

#include "pool.h"

static std::atomic<int> permits{1};  // looks that the worker may take before it must wait; the first one sends it to sleep
static std::atomic<int> looks{0};    // that it has taken
static std::atomic<bool> asleep{false}, over{false};

template <class Until>
static void wait_until(const Until& until) {
    while (!until()) std::this_thread::yield();
}

// Sleeps as std::condition_variable does, but looks only when it is let.
struct Held {
    std::condition_variable real;
    void notify_all() { real.notify_all(); }
    template <class Wanted>
    void wait(std::unique_lock<std::mutex>& lock, const Wanted& wanted) {
        for (;;) {
            lock.unlock();
            wait_until([] { return permits.load() > 0 || over.load(); });
            lock.lock();
            --permits;
            const bool up = wanted();
            asleep = !up;
            ++looks;
            if (up) return;
            real.wait(lock);
        }
    }
};

int main() {
    constexpr int STEPS = 3, PHASES = 6;
    io::PoolOn<Held> pool(2);
    std::vector<int> counts(PHASES, 2);
    counts[0] = 1;
    for (int step = 0; step < STEPS; ++step) {
        wait_until([] { return asleep.load(); });
        int phases = 0;
        std::atomic<bool> begun[PHASES][2] = {};
        pool.run(counts, [&](int thread, int phase, int) {
            if (phase == 0) {  // the leader's: the worker has been called, and looks while nothing is left to claim
                const int before = looks.load();
                ++permits;
                wait_until([&] { return looks.load() > before; });
                return;
            }
            if (thread == 1) ++phases;
            // one task for each: nobody ends one before the other has begun one, unless the worker went back to sleep
            begun[phase][thread] = true;
            wait_until([&] { return begun[phase][1 - thread].load() || asleep.load(); });
        });
        std::printf("%d\n", phases);
        if (asleep) break;
        ++permits;  // to go to sleep again
    }
    over = true;
}
