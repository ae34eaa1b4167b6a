"""Products for a handful of rows, bound by reading the weights, fused with what stands around them.

One program takes a few output features and the whole of K in one tile: all its weights are requested before it waits
for its predecessor, so memory stays busy across kernel boundaries (see the package's docstring).

Legend: M rows (tokens) · N output features · K input features · H hidden size · I intermediate size · D head size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferoptim.kernels.triton.launch import CacheLayer, next_power_of_2, options
from inferoptim.kernels.triton.sampling import AT_TEMPERATURE, SamplingRows, adjusted, field

MAX_ROWS = 2  # more rows than this are better served by tensor cores


@triton.jit
def _load_norm(x_ptr, norm, at, mask, width, eps):
    """A row times its norm's weight, and the factor that remains: 1 / rms."""
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(x * x) / width + eps)
    return x * norm, factor


@triton.jit
def _norm_linear(
    x_ptr, norm_ptr, w_ptr, scale_ptr, bias_ptr, out_ptr, N, K, eps,
    M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    inside = k < K
    w = tl.load(
        w_ptr + n.to(tl.int64)[:, None] * K + k[None, :], mask=(n < N)[:, None] & inside[None, :], other=0.0
    )
    norm = tl.load(norm_ptr + k, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for m in tl.static_range(M):
        x, factor = _load_norm(x_ptr, norm, m * K + k, inside, K, eps)
        y = tl.sum(w.to(tl.float32) * x[None, :], axis=1) * factor
        if SCALED:
            y = y * tl.load(scale_ptr + n, mask=n < N, other=0.0)
        if BIAS:
            y = y + tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        tl.store(out_ptr + m * N + n, y.to(out_ptr.dtype.element_ty), mask=n < N)


@triton.jit
def _norm_qkv_rope(
    x_ptr, norm_ptr, w_ptr, scale_ptr, bias_ptr, table_ptr, rows_ptr, positions_ptr, limits_ptr, blocks_ptr,
    q_ptr, k_ptr, v_ptr, K, blocks_stride, eps,
    M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr,
    P: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = D // 2
    pair = tl.program_id(0) * BN + tl.arange(0, BN)  # a pair of rows that rotate into each other
    valid = pair < (HQ + 2 * HKV) * HALF
    head = pair // HALF
    j = pair % HALF
    n1 = head * D + j
    n2 = n1 + HALF
    k = tl.arange(0, BK)
    inside = k < K
    mask = valid[:, None] & inside[None, :]
    w1 = tl.load(w_ptr + n1.to(tl.int64)[:, None] * K + k[None, :], mask=mask, other=0.0)
    w2 = tl.load(w_ptr + n2.to(tl.int64)[:, None] * K + k[None, :], mask=mask, other=0.0)
    norm = tl.load(norm_ptr + k, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    for m in tl.static_range(M):
        row = tl.load(rows_ptr + m).to(tl.int64)
        safe = tl.maximum(row, 0)
        position = tl.load(positions_ptr + safe)
        writes = (row >= 0) & (position < tl.load(limits_ptr + safe))
        position = tl.where(writes, position, 0)
        block = tl.load(blocks_ptr + safe * blocks_stride + position // P, mask=writes, other=0).to(tl.int64)
        slot = block * P + position % P
        cos = tl.load(table_ptr + position.to(tl.int64) * D + j)
        sin = tl.load(table_ptr + position.to(tl.int64) * D + HALF + j)
        if PDL and m == 0:
            tl.extra.cuda.gdc_wait()
        x, factor = _load_norm(x_ptr, norm, m * K + k, inside, K, eps)
        y1 = tl.sum(w1.to(tl.float32) * x[None, :], axis=1) * factor
        y2 = tl.sum(w2.to(tl.float32) * x[None, :], axis=1) * factor
        if SCALED:
            y1 = y1 * tl.load(scale_ptr + n1, mask=valid, other=0.0)
            y2 = y2 * tl.load(scale_ptr + n2, mask=valid, other=0.0)
        if BIAS:
            y1 = y1 + tl.load(bias_ptr + n1, mask=valid, other=0.0).to(tl.float32)
            y2 = y2 + tl.load(bias_ptr + n2, mask=valid, other=0.0).to(tl.float32)
        rotates = head < HQ + HKV
        z1 = tl.where(rotates, y1 * cos - y2 * sin, y1)
        z2 = tl.where(rotates, y2 * cos + y1 * sin, y2)
        q_at = m * (HQ * D) + n1
        is_q = valid & (head < HQ)
        tl.store(q_ptr + q_at, z1.to(q_ptr.dtype.element_ty), mask=is_q)
        tl.store(q_ptr + q_at + HALF, z2.to(q_ptr.dtype.element_ty), mask=is_q)
        is_k = valid & writes & (head >= HQ) & rotates
        k_at = (slot * HKV + (head - HQ)) * D + j
        tl.store(k_ptr + k_at, z1.to(k_ptr.dtype.element_ty), mask=is_k)
        tl.store(k_ptr + k_at + HALF, z2.to(k_ptr.dtype.element_ty), mask=is_k)
        is_v = valid & writes & (head >= HQ + HKV)
        v_at = (slot * HKV + (head - HQ - HKV)) * D + j
        tl.store(v_ptr + v_at, z1.to(v_ptr.dtype.element_ty), mask=is_v)
        tl.store(v_ptr + v_at + HALF, z2.to(v_ptr.dtype.element_ty), mask=is_v)


@triton.jit
def _norm_gate_up(
    x_ptr, norm_ptr, w_ptr, scale_ptr, out_ptr, N, K, eps,
    M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SCALED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    inside = k < K
    mask = (n < N)[:, None] & inside[None, :]
    at = n.to(tl.int64)[:, None] * K + k[None, :]
    w_gate = tl.load(w_ptr + at, mask=mask, other=0.0)
    w_up = tl.load(w_ptr + tl.cast(N, tl.int64) * K + at, mask=mask, other=0.0)
    norm = tl.load(norm_ptr + k, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for m in tl.static_range(M):
        x, factor = _load_norm(x_ptr, norm, m * K + k, inside, K, eps)
        gate = tl.sum(w_gate.to(tl.float32) * x[None, :], axis=1) * factor
        up = tl.sum(w_up.to(tl.float32) * x[None, :], axis=1) * factor
        if SCALED:
            gate = gate * tl.load(scale_ptr + n, mask=n < N, other=0.0)
            up = up * tl.load(scale_ptr + N + n, mask=n < N, other=0.0)
        y = gate * tl.sigmoid(gate) * up
        tl.store(out_ptr + m * N + n, y.to(out_ptr.dtype.element_ty), mask=n < N)


@triton.jit
def _linear_residual(
    x_ptr, w_ptr, scale_ptr, residual_ptr, N, K,
    M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SCALED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    inside = k < K
    w = tl.load(
        w_ptr + n.to(tl.int64)[:, None] * K + k[None, :], mask=(n < N)[:, None] & inside[None, :], other=0.0
    )
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for m in tl.static_range(M):
        x = tl.load(x_ptr + m * K + k, mask=inside, other=0.0).to(tl.float32)
        y = tl.sum(w.to(tl.float32) * x[None, :], axis=1)
        if SCALED:
            y = y * tl.load(scale_ptr + n, mask=n < N, other=0.0)
        held = tl.load(residual_ptr + m * N + n, mask=n < N, other=0.0).to(tl.float32)
        tl.store(residual_ptr + m * N + n, (held + y).to(residual_ptr.dtype.element_ty), mask=n < N)


@triton.jit
def _norm_head(
    x_ptr, norm_ptr, w_ptr, scale_ptr, best_ptr, best_at_ptr, slots_ptr, positions_ptr, fields_ptr, rules_ptr,
    counts_ptr, probs_ptr, N, K, eps,
    M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SCALED: tl.constexpr, MOST_RULES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    inside = k < K
    w = tl.load(
        w_ptr + n.to(tl.int64)[:, None] * K + k[None, :], mask=(n < N)[:, None] & inside[None, :], other=0.0
    )
    norm = tl.load(norm_ptr + k, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for m in tl.static_range(M):
        x, factor = _load_norm(x_ptr, norm, m * K + k, inside, K, eps)
        y = tl.sum(w.to(tl.float32) * x[None, :], axis=1) * factor
        if SCALED:
            y = y * tl.load(scale_ptr + n, mask=n < N, other=0.0)
        y = tl.where(n < N, y, float("-inf"))
        slot = tl.load(slots_ptr + m).to(tl.int64)
        row = tl.maximum(slot, 0)
        at = tl.load(positions_ptr + row) + 1
        y = adjusted(y, n, N, row, at, fields_ptr, rules_ptr, counts_ptr, MOST_RULES)
        draws = (slot >= 0) & (field(fields_ptr, row, AT_TEMPERATURE) > 0)
        tl.store(probs_ptr + m * N + n, y, mask=(n < N) & draws)
        best = tl.max(y)
        at = tl.min(tl.where(y == best, n, 2147483647))  # the lowest id among equals
        tl.store(best_ptr + m * tl.num_programs(0) + tl.program_id(0), best)
        tl.store(best_at_ptr + m * tl.num_programs(0) + tl.program_id(0), at)


# Bytes of weights that one program takes, by kernel, and weights that each of its threads holds at once: the best of 8 to
# 32 KiB and 64 to 256 bytes on an H100, one row of TinyLlama's shapes, bf16 and fp8 (docs/LOG.md).
_PROGRAM_BYTES = {"linear": 32768, "qkv": 32768, "gate_up": 16384, "residual": 32768, "head": 32768}
_THREAD_BYTES = 256
_SHORT_THREAD_BYTES = 128  # of 8-bit rows of up to 2048 features


def _shape(kernel: str, k: int, element_bytes: int, tiles: int = 1) -> tuple[int, int, int]:
    """(features of one program, padded K, warps)."""
    block_k = next_power_of_2(k)
    block_n = max(1, _PROGRAM_BYTES[kernel] // (block_k * element_bytes * tiles))
    size = block_n * tiles * block_k * element_bytes
    short = element_bytes == 1 and block_k <= 2048
    held = _SHORT_THREAD_BYTES if short else _THREAD_BYTES
    return block_n, block_k, max(1, min(16, size // (32 * held)))


def norm_linear(
    x: torch.Tensor,
    norm: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    eps: float,
    *,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> None:
    """``rms_norm(x, norm) @ weight.T * scale + bias`` for M <= MAX_ROWS rows; the norm is not rounded in between."""
    (m, k), n = x.shape, weight.shape[0]
    bn, bk, warps = _shape("linear", k, weight.element_size())
    _norm_linear[(-(-n // bn),)](
        x, norm, weight, scale, bias, out, n, k, eps, M=m, BN=bn, BK=bk, SCALED=scale is not None, BIAS=bias is not None,
        num_warps=warps, **options(x.device),
    )  # fmt: skip


def norm_qkv_rope(
    x: torch.Tensor,
    norm: torch.Tensor,
    weight: torch.Tensor,
    q: torch.Tensor,
    cache: CacheLayer,
    table: torch.Tensor,
    eps: float,
    *,
    num_heads: int,
    rows: torch.Tensor,
    positions: torch.Tensor,
    limits: torch.Tensor,
    block_tables: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> None:
    """Norm, QKV product, rotation and cache write of M <= MAX_ROWS decoding rows; arguments as in `rope_write`.

    The cache holds the model's type; the queries go to `q` [M, Hq D].
    """
    m, k = x.shape
    _, block_size, num_kv_heads, head_dim = cache.k.shape
    bn, bk, warps = _shape("qkv", k, weight.element_size(), tiles=2)
    pairs = (num_heads + 2 * num_kv_heads) * head_dim // 2
    _norm_qkv_rope[(-(-pairs // bn),)](
        x, norm, weight, scale, bias, table, rows, positions, limits, block_tables, q, cache.k, cache.v, k,
        block_tables.stride(0), eps, M=m, BN=bn, BK=bk, HQ=num_heads, HKV=num_kv_heads, D=head_dim, P=block_size,
        SCALED=scale is not None, BIAS=bias is not None, num_warps=warps, **options(x.device),
    )  # fmt: skip


def norm_gate_up(
    x: torch.Tensor,
    norm: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    eps: float,
    scale: torch.Tensor | None = None,
) -> None:
    """``silu_mul(rms_norm(x, norm) @ weight.T * scale)`` into `out` [M, I], M <= MAX_ROWS."""
    (m, k), n = x.shape, out.shape[1]
    bn, bk, warps = _shape("gate_up", k, weight.element_size(), tiles=2)
    _norm_gate_up[(-(-n // bn),)](
        x, norm, weight, scale, out, n, k, eps, M=m, BN=bn, BK=bk, SCALED=scale is not None, num_warps=warps,
        **options(x.device),
    )  # fmt: skip


def linear_residual(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, scale: torch.Tensor | None = None
) -> None:
    """``residual += x @ weight.T * scale`` in place, M <= MAX_ROWS."""
    (m, k), n = x.shape, weight.shape[0]
    bn, bk, warps = _shape("residual", k, weight.element_size())
    _linear_residual[(-(-n // bn),)](
        x, weight, scale, residual, n, k, M=m, BN=bn, BK=bk, SCALED=scale is not None, num_warps=warps,
        **options(x.device),
    )  # fmt: skip


def norm_head(
    x: torch.Tensor,
    norm: torch.Tensor,
    weight: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    rows: SamplingRows,
    probs: torch.Tensor,
    best: torch.Tensor,
    best_at: torch.Tensor,
    eps: float,
    scale: torch.Tensor | None = None,
) -> int:
    """Norm, output head and `sampling.adjust_shares` of M <= MAX_ROWS rows, in one kernel.

    Returns:
        n, the number of shares: `best[: M * n]` and `best_at[: M * n]` are written, row by row.
    """
    (m, k), n = x.shape, weight.shape[0]
    bn, bk, warps = _shape("head", k, weight.element_size())
    shares = -(-n // bn)
    _norm_head[(shares,)](
        x, norm, weight, scale, best, best_at, slots, positions, rows.fields, rows.rules, rows.counts, probs, n, k, eps,
        M=m, BN=bn, BK=bk, SCALED=scale is not None, MOST_RULES=rows.rules.shape[2], num_warps=warps,
        **options(x.device),
    )  # fmt: skip
    return shares
