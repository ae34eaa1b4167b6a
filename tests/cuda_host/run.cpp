// Runs the kernel of a source, given as KERNEL_SOURCE and KERNEL, on a CPU: cluster after cluster, fibers in turns.
#include KERNEL_SOURCE

#include "hopper.cuh"

Fiber* running;
uint3_ grid;
static std::deque<Fiber*> ready;
static ucontext_t scheduler;
static const Arguments* arguments;
static u32 ended;
std::map<Shared, ByteBarrier> byte_barriers;
std::deque<std::function<void()>> copies;

u32 Barrier::arrive() {
    u32 round = rounds;
    if (++count == expected) {
        count = 0;
        rounds++;
        ready.insert(ready.end(), waiting.begin(), waiting.end());
        waiting.clear();
    }
    return round;
}

void sleep_on(std::vector<Fiber*>& waiting) {
    waiting.push_back(running);
    swapcontext(&running->context, &scheduler);
}

void Barrier::wait(u32 round) {
    if (rounds == round) sleep_on(waiting);
}

void ByteBarrier::look() {
    if (pending || bytes) return;
    rounds++;
    pending = expected;
    ready.insert(ready.end(), waiting.begin(), waiting.end());
    waiting.clear();
}

static void thread() {
    KERNEL(*arguments);
    ended++;
    swapcontext(&running->context, &scheduler);  // for good
}

// Fibers that have not ended when nobody is ready wait for what will never come.
extern "C" int run(const Arguments* given, u32 x, u32 y, u32 z, u32 threads, u32 size, u32 shared_bytes) {
    arguments = given;
    grid = {x, y, z};
    std::vector<Fiber> fibers(size * threads);
    for (Fiber& fiber : fibers) fiber.stack.resize(32 << 10);
    for (u32 first = 0; first < x * y * z; first += size) {
        Cluster cluster;
        cluster.barrier.expected = size * threads;
        cluster.blocks.resize(size);
        for (u32 rank = 0; rank < size; rank++) {
            Block& block = cluster.blocks[rank];
            block.barrier.expected = threads;
            block.warps.resize(threads / 32);
            for (Warp& warp : block.warps) warp.barrier.expected = 32;
            block.memory.assign(shared_bytes, 0xff);  // not a number, wherever nobody writes
            for (u32 t = 0; t < threads; t++) {
                Fiber& fiber = fibers[rank * threads + t];
                u32 number = first + rank;
                fiber.cluster = &cluster;
                fiber.groups = 0;
                fiber.rank = rank;
                fiber.thread = {t, 0, 0};
                fiber.block = {number % x, number / x % y, number / x / y};
                getcontext(&fiber.context);
                fiber.context.uc_stack.ss_sp = fiber.stack.data();
                fiber.context.uc_stack.ss_size = fiber.stack.size();
                makecontext(&fiber.context, thread, 0);
                ready.push_back(&fiber);
            }
        }
        for (ended = 0; !ready.empty() || !copies.empty();) {
            if (ready.empty()) {
                auto copy = std::move(copies.front());
                copies.pop_front();
                copy();
                continue;
            }
            running = ready.front();
            ready.pop_front();
            swapcontext(&scheduler, &running->context);
        }
        byte_barriers.clear();
        if (ended < fibers.size()) return 1;
    }
    return 0;
}
