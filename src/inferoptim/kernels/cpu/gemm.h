// Matrix products y[M, N] = x[M, K] . w[N, K]^T over packed weights, from one row to thousands.
//
// A micro-kernel computes MR rows x 32 outputs in registers. The order of additions depends on K alone, so a row's
// result is the same to the bit whatever rows are computed beside it.
#pragma once
#include "groups.h"
#include "kernels.h"

namespace io {

template <int MR>
static void kernel(v16f (&acc)[MR][2], const Inputs& in, const Linear& w, size_t row, int panel, Ahead ahead) {
    switch (w.kind) {
        case F32: return kernel_float<MR, F32>(acc, in, w, row, panel);
        case INT8_WEIGHT_ONLY: return kernel_float<MR, INT8_WEIGHT_ONLY>(acc, in, w, row, panel);
        case INT8_DYNAMIC:
#if defined(IO_VNNI)
            return kernel_int8<MR>(acc, in, w, row, panel, ahead);
#else
            return kernel_int8<MR>(acc, in, w, row, panel);
#endif
        case GROUPS:
            if (w.bits == 4) return kernel_groups<MR, 4>(acc, in, w, row, panel, ahead);
            return kernel_groups<MR, 8>(acc, in, w, row, panel, ahead);
        case BF16:
#if defined(IO_BF16_DOT)
            if (bf16_dot_pays()) return kernel_bf16_dot<MR>(acc, in, w, row, panel);
#endif
            return kernel_float<MR, BF16>(acc, in, w, row, panel);
    }
}

template <int MR, class Out, class Where>
static inline void tile(const Inputs& in, const Linear& w, size_t row, int panel, Ahead ahead, const Out& out, const Where& where) {
    v16f acc[MR][2];
    if (MR == 8)  // of a prompt: where the results go has left the cache, and stores would wait for it
        for (int i = 0; i < MR; ++i)
            if (const float* to = where(row + i, panel)) {
                __builtin_prefetch(to, 1);
                __builtin_prefetch(to + 16, 1);
            }
    kernel<MR>(acc, in, w, row, panel, ahead);
    const int n = panel * PANEL;
    if (!w.scale.empty()) {
        const v16f s0 = load<v16f>(w.scale.data() + n), s1 = load<v16f>(w.scale.data() + n + 16);
        for (int i = 0; i < MR; ++i) acc[i][0] *= s0, acc[i][1] *= s1;
    }
    if (!w.bias.empty()) {
        const v16f b0 = load<v16f>(w.bias.data() + n), b1 = load<v16f>(w.bias.data() + n + 16);
        for (int i = 0; i < MR; ++i) acc[i][0] += b0, acc[i][1] += b1;
    }
    for (int i = 0; i < MR; ++i) out(row + i, panel, acc[i][0], acc[i][1]);
}

// out(row, panel, first 16 outputs, last 16) for rows [0, rows) of `in` and panels [panel0, panel1). where(row, panel) is
// the memory that `out` will write, fetched while the products are computed; or null.
template <class Out, class Where>
static void gemm(const Inputs& in, const Linear& w, size_t rows, int panel0, int panel1, const Out& out, const Where& where) {
    const size_t panel_bytes = w.panel_bytes(), tiles = (rows + 7) / 8;
    // bytes that an inner step of 128 bytes asks for, or (GROUPS) a group
    const int step = (int)(w.kind == GROUPS ? (w.group_bytes() / tiles + 63) / 64 * 64 : std::max((size_t)1, 2 * 64 / tiles));
    for (int panel = panel0; panel < panel1; ++panel) {
        Ahead ahead{w.packed + panel_bytes * (panel + 1), step};  // behind the last panel lies the next product's first
        size_t r = 0;
        for (; r + 8 <= rows; r += 8, ahead.at += panel_bytes / tiles) tile<8>(in, w, r, panel, ahead, out, where);
        switch (rows - r) {
            case 7: tile<7>(in, w, r, panel, ahead, out, where); break;
            case 6: tile<6>(in, w, r, panel, ahead, out, where); break;
            case 5: tile<5>(in, w, r, panel, ahead, out, where); break;
            case 4: tile<4>(in, w, r, panel, ahead, out, where); break;
            case 3: tile<3>(in, w, r, panel, ahead, out, where); break;
            case 2: tile<2>(in, w, r, panel, ahead, out, where); break;
            case 1: tile<1>(in, w, r, panel, ahead, out, where); break;
            default: break;
        }
    }
}

}  // namespace io
