// Weights of a linear layer as the products read them.
//
// They lie in panels of 32 outputs, one after the other, so that a step reads each panel front to back once:
//   float32, int8 (portable)   [K][32]
//   bfloat16                   [K / 2][32][2]       the layout of the bfloat16 dot product
//   int8 (VNNI)                [K / 4][32][4] as w + 128: the dot product wants one unsigned side, and the surplus
//                              128 * sum(x) is taken off by starting every sum at -128 * sum(x)
//   groups                     per group of input channels: 32 scales, 32 minima (if any), then the integers, unsigned:
//                              8 bits as above without the shift, [group / 4][32][4] or (portable) [group][32];
//                              4 bits [group / 8][32][4], channels k..k+3 in the low and k+4..k+7 in the high halves
//                              of the bytes, or (portable) [group / 2][32], channels k and k + 1
#pragma once
#include <algorithm>
#include <cstdlib>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "vector.h"

namespace io {

enum Kind : int32_t { F32 = 0, BF16 = 1, INT8_DYNAMIC = 2, INT8_WEIGHT_ONLY = 3, GROUPS = 4 };
constexpr int PANEL = 32;

// Memory for all packed weights of a model, in chunks that the system may back with huge pages: a step walks through
// all of it, and with small pages every 4 KiB costs a look-up in the page table.
class Arena {
  public:
    ~Arena() {
        for (auto& chunk : chunks_) release(chunk.first, chunk.second);
    }
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // 64-byte aligned, zeroed; as long as the arena lives.
    void* take(size_t bytes) {
        bytes = (bytes + 63) / 64 * 64;
        if (bytes > room_) {
            const size_t size = std::max(bytes, CHUNK);
            at_ = (char*)reserve(size);
            chunks_.push_back({at_, size});
            room_ = size;
        }
        void* result = at_;
        at_ += bytes;
        room_ -= bytes;
        return result;
    }

  private:
    static constexpr size_t HUGE_PAGE = 2 << 20, CHUNK = 32 << 20;

    static void* reserve(size_t bytes) {
        bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        void* p = std::aligned_alloc(HUGE_PAGE, bytes);
        if (!p) std::abort();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        madvise(p, bytes, MADV_HUGEPAGE);  // a wish; where it is not granted, small pages do
#endif
        return p;
    }
    static void release(void* p, size_t) { std::free(p); }

    std::vector<std::pair<void*, size_t>> chunks_;
    char* at_ = nullptr;
    size_t room_ = 0;
};

struct Linear {
    Kind kind = F32;
    int n = 0, k = 0;              // as in the model
    int panels = 0, k_padded = 0;  // as packed
    int group = 0;                 // input channels that share an activation scale, and (GROUPS) a weight scale
    int bits = 8, zero = 0;        // GROUPS: a weight is scale * (q - zero) + minimum, q unsigned
    bool half = false;             // GROUPS: scales and minima in float16, else float32
    bool has_minimum = false;
    char* packed = nullptr;    // 64-byte aligned, in the model's arena
    size_t bytes = 0;          // of all panels
    Array<float> scale;  // int8: per output, padded to whole panels
    Array<float> bias;   // padded, empty if none

    size_t panel_bytes() const { return bytes / panels; }
    // GROUPS: bytes of one group of a panel, and of the scales (and of the minima) at its beginning.
    size_t scale_bytes() const { return PANEL * (half ? 2 : 4); }
    size_t head_bytes() const { return scale_bytes() * (has_minimum ? 2 : 1); }
    size_t group_bytes() const { return head_bytes() + (size_t)PANEL * group * bits / 8; }
};

static inline int largest_group(int k) {
    for (int g : {64, 32, 96, 128})  // of 64: larger groups broke the quality gate on the default model
        if (k % g == 0) return g;
    return (k + 3) / 4 * 4;
}

// Whether four input channels of an output lie together, as the integer dot products take them.
static inline bool in_fours(const Linear& w) {
#if defined(IO_VNNI)
    return w.kind == INT8_DYNAMIC || w.kind == GROUPS;
#elif defined(__AVX2__)
    return w.kind == GROUPS && w.bits == 4;
#else
    (void)w;
    return false;
#endif
}

// What a layer's weights are packed from: row-major [n, k] as torch holds it.
struct LinearSource {
    int32_t kind, n, k;
    int32_t group, bits, zero, half;  // GROUPS only
    const void* weight;               // GROUPS: one byte an element
    const void* scale;                // int8: float32 [n]; GROUPS: [n, k / group], float16 if `half`, else float32
    const void* minimum;              // GROUPS: like scale, or null
    const float* bias;                // or null
};

// Sizes of the packed matrix of rows.size() outputs; `pack_panel` fills it.
static void lay_out_linear(Linear& w, const LinearSource& s, size_t rows, Arena& arena) {
    w.kind = (Kind)s.kind;
    w.n = s.n;
    w.k = s.k;
    w.panels = ((int)rows + PANEL - 1) / PANEL;
    if (w.kind == GROUPS) {
        w.group = s.group, w.bits = s.bits, w.zero = s.zero, w.half = s.half, w.has_minimum = s.minimum != nullptr;
        w.k_padded = w.k;
        w.bytes = (size_t)w.panels * (w.k / w.group) * w.group_bytes();
    } else {
        const size_t element = w.kind == F32 ? 4 : w.kind == BF16 ? 2 : 1;
        const int step = w.kind == BF16 ? 2 : 1;
        w.group = w.kind == INT8_DYNAMIC ? largest_group(w.k) : w.k;
        w.k_padded = w.kind == INT8_DYNAMIC ? (w.k + w.group - 1) / w.group * w.group : (w.k + step - 1) / step * step;
        w.bytes = (size_t)w.panels * PANEL * w.k_padded * element;
    }
    w.packed = (char*)arena.take(w.bytes);
}

// Integers of channels [0, count) of one output into place j of a panel's group.
static inline void place_group(const Linear& w, const uint8_t* from, char* group, int j) {
    uint8_t* to = (uint8_t*)group + w.head_bytes();
    const bool fours = in_fours(w);
    if (w.bits == 8) {
        if (fours)
            for (int k = 0; k < w.group; k += 4) std::memcpy(to + (size_t)k * PANEL + 4 * j, from + k, 4);
        else
            for (int k = 0; k < w.group; ++k) to[(size_t)k * PANEL + j] = from[k];
    } else if (fours) {
        for (int k = 0; k < w.group; k += 8) {
            uint32_t low, high;
            std::memcpy(&low, from + k, 4);
            std::memcpy(&high, from + k + 4, 4);
            low |= high << 4;
            std::memcpy(to + (size_t)k / 2 * PANEL + 4 * j, &low, 4);
        }
    } else {
        for (int k = 0; k < w.group; k += 2) to[(size_t)k / 2 * PANEL + j] = from[k] | from[k + 1] << 4;
    }
}

// Fills panel p. Row r of the packed matrix is row order[r] of the source, or a row of zeros where order[r] < 0.
// Different panels may be filled by different threads.
static void pack_panel(Linear& w, const LinearSource& s, const std::vector<int>& order, int p) {
    char* panel = w.packed + w.panel_bytes() * p;
    const int groups = w.k / std::max(w.group, 1);
    for (int j = 0; j < PANEL; ++j) {
        const size_t r = (size_t)p * PANEL + j;
        const int row = r < order.size() ? order[r] : -1;
        if (w.kind == GROUPS) {
            const size_t width = w.half ? 2 : 4;
            for (int g = 0; g < groups; ++g) {
                char* group = panel + w.group_bytes() * g;
                const size_t at = ((size_t)row * groups + g) * width;
                if (row < 0) {
                    std::memset(group + j * width, 0, width);
                    if (w.has_minimum) std::memset(group + w.scale_bytes() + j * width, 0, width);
                    const std::vector<uint8_t> none(w.group, 0);
                    place_group(w, none.data(), group, j);
                    continue;
                }
                std::memcpy(group + j * width, (const char*)s.scale + at, width);
                if (w.has_minimum) std::memcpy(group + w.scale_bytes() + j * width, (const char*)s.minimum + at, width);
                place_group(w, (const uint8_t*)s.weight + (size_t)row * w.k + (size_t)g * w.group, group, j);
            }
            continue;
        }
        const size_t element = w.kind == F32 ? 4 : w.kind == BF16 ? 2 : 1;
        const char* from = row < 0 ? nullptr : (const char*)s.weight + (size_t)row * w.k * element;
        if (element == 1 && !in_fours(w)) {
            for (int k = 0; k < w.k_padded; ++k) panel[(size_t)k * PANEL + j] = from && k < w.k ? from[k] : 0;
            continue;
        }
        // one float, two bfloat16 or four int8 (as w + 128) a word
        const uint32_t shift = element == 1 ? 0x80808080u : 0;
        const size_t words = w.k_padded * element / 4, whole = from ? w.k * element / 4 : 0;
        uint32_t* to = (uint32_t*)panel + j;
        for (size_t i = 0; i < whole; ++i) {
            uint32_t word;
            std::memcpy(&word, from + 4 * i, 4);
            to[i * PANEL] = word ^ shift;
        }
        for (size_t i = whole; i < words; ++i) {
            uint32_t word = 0;
            if (from && 4 * i < w.k * element) std::memcpy(&word, from + 4 * i, w.k * element - 4 * i);
            to[i * PANEL] = word ^ shift;
        }
    }
}

}  // namespace io
