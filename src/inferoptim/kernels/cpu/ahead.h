// Weights read ahead by threads that wait.
//
// At one request a step stops for its memory some hundred times: at every norm, in attention, and where one thread is done
// before the other. A thread that waits reads through its own share of the products that come next, so that the memory works
// on and the thread finds that share in its nearer caches. It reads by loads, in order, since then the core's own prefetcher
// helps; prefetch instructions are dropped where the core is short of buffers.
#pragma once
#include "pool.h"

namespace io {

struct Span {
    const char *at, *end;
};

class WhileWaiting {
  public:
    // What comes next: the weights of phase `first`, then those of `second`. Told again of the same, it goes on where it is.
    template <class Share>
    void look(int first, int second, const Share& share) {
        if (first == first_) return;
        first_ = first;
        spans_[0] = cut(share(first));
        spans_[1] = cut(share(second));
    }
    void forget() { *this = {}; }

    // A little of it, some tens of nanoseconds.
    void read() {
        for (Span& span : spans_) {
            if (span.at >= span.end) continue;
            for (int i = 0; i < LINES; ++i, span.at += 64) (void)*(const volatile char*)span.at;
            return;
        }
        pause_cpu();
    }

  private:
    static constexpr int LINES = 16;             // between two looks at the board
    static constexpr size_t MOST = 256 << 10;    // of each product: both fit the second-level cache of most server cores
    // Whole readings, so that none goes past the end.
    static Span cut(Span s) {
        const size_t bytes = std::min((size_t)(s.end - s.at), MOST);
        return {s.at, s.at + bytes / (64 * LINES) * (64 * LINES)};
    }

    int first_ = -1;
    Span spans_[2] = {};
};

}  // namespace io
