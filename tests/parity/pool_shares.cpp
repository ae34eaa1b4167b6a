// How the pool of the native step shares out tasks. First line: every task of phases of 1 to 60 tasks ran once, on three
// threads. Second: the order in which one of two threads took the tasks of a phase of six while the other was held in its first.
#include <cstdio>

#include "pool.h"

int main() {
    constexpr int MOST = 60;
    std::vector<int> counts;
    for (int n = 0; n <= MOST; ++n) counts.push_back(n);
    std::atomic<int> ran[MOST + 1][MOST] = {}, waits{0};
    io::Pool three(3, [&](int) { ++waits; });
    constexpr int STEPS = 20;
    for (int step = 0; step < STEPS; ++step) three.run(counts, [&](int, int phase, int task) { ++ran[phase][task]; });
    int wrong = 0;
    for (int n = 0; n <= MOST; ++n)
        for (int task = 0; task < MOST; ++task) wrong += ran[n][task] != (task < n ? STEPS : 0);
    std::printf("%d wrong, %s\n", wrong, waits > 0 ? "waited" : "never waited");

    io::Pool two(2);
    std::atomic<int> held{-1}, done{0};
    std::vector<int> order;
    two.run({6}, [&](int thread, int, int task) {
        if (thread == 1) {
            held = task;
            while (done.load() < 5) std::this_thread::yield();
            return;
        }
        while (held.load() < 0) std::this_thread::yield();
        order.push_back(task);
        ++done;
    });
    std::printf("held in %d:", held.load());
    for (int task : order) std::printf(" %d", task);
    std::puts("");
}
