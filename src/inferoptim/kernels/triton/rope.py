"""Rotation of queries and keys, per-head norm and bias before it, and the write into the paged cache, in one kernel.

Legend: T tokens · Hq query heads · Hkv KV heads · D head size · B blocks · P tokens in a block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferoptim.kernels.triton.elementwise import FP8_MAX, INT8_MAX, Scales, round_half_even
from inferoptim.kernels.triton.launch import CacheLayer, next_power_of_2, options

_MANY_TOKENS = 512
_PAIRS = 2048  # that one program rotates, of four warps


@triton.jit
def _rope_write(
    qkv_ptr, bias_ptr, q_norm_ptr, k_norm_ptr, table_ptr, positions_ptr, slots_ptr, rows_ptr, limits_ptr, blocks_ptr,
    k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, x_row_ptr, x_column_ptr, blocks_stride, eps,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, P: tl.constexpr, HALF: tl.constexpr, HB: tl.constexpr,
    MAPPED: tl.constexpr, BIAS: tl.constexpr, QK_NORM: tl.constexpr, QUANT: tl.constexpr,
    SCALED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HB + tl.arange(0, HB)
    pair = tl.arange(0, HALF)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    if MAPPED:  # decode: the position belongs to a row of the batch, the slot follows from its block table
        row = tl.load(rows_ptr + t).to(tl.int64)
        position = tl.load(positions_ptr + tl.maximum(row, 0))
        writes = (row >= 0) & (position < tl.load(limits_ptr + tl.maximum(row, 0)))
        block = tl.load(blocks_ptr + row * blocks_stride + position // P, mask=writes, other=0)
        slot = block.to(tl.int64) * P + position % P
    else:
        position = tl.load(positions_ptr + t)
        slot = tl.load(slots_ptr + t).to(tl.int64)
        writes = slot >= 0
    in_pair = pair < D // 2
    angle = position.to(tl.int64) * D + pair
    cos = tl.load(table_ptr + angle, mask=in_pair & writes, other=0.0)[None, :]
    sin = tl.load(table_ptr + angle + D // 2, mask=in_pair & writes, other=0.0)[None, :]
    if PDL:
        tl.extra.cuda.gdc_wait()
    mask = (head < HQ + 2 * HKV)[:, None] & in_pair[None, :]
    at = head[:, None] * D + pair[None, :]
    start = t * ((HQ + 2 * HKV) * D)
    first = tl.load(qkv_ptr + start + at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(qkv_ptr + start + at + D // 2, mask=mask, other=0.0).to(tl.float32)
    kind = qkv_ptr.dtype.element_ty
    if SCALED:
        x_row = tl.load(x_row_ptr + t)
        first = first * x_row * tl.load(x_column_ptr + at, mask=mask, other=0.0)
        second = second * x_row * tl.load(x_column_ptr + at + D // 2, mask=mask, other=0.0)
        first = first.to(kind).to(tl.float32)
        second = second.to(kind).to(tl.float32)
    if BIAS:
        first = (first + tl.load(bias_ptr + at, mask=mask, other=0.0).to(tl.float32)).to(kind).to(tl.float32)
        second = second + tl.load(bias_ptr + at + D // 2, mask=mask, other=0.0).to(tl.float32)
        second = second.to(kind).to(tl.float32)
    is_v = (head >= HQ + HKV)[:, None]
    is_q = (head < HQ)[:, None]
    if QK_NORM:
        q1 = tl.load(q_norm_ptr + pair, mask=in_pair, other=0.0).to(tl.float32)[None, :]
        q2 = tl.load(q_norm_ptr + D // 2 + pair, mask=in_pair, other=0.0).to(tl.float32)[None, :]
        k1 = tl.load(k_norm_ptr + pair, mask=in_pair, other=0.0).to(tl.float32)[None, :]
        k2 = tl.load(k_norm_ptr + D // 2 + pair, mask=in_pair, other=0.0).to(tl.float32)[None, :]
        mean = (tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / D
        factor = tl.rsqrt(mean + eps)[:, None]
        n1 = (first * factor * tl.where(is_q, q1, k1)).to(kind).to(tl.float32)
        n2 = (second * factor * tl.where(is_q, q2, k2)).to(kind).to(tl.float32)
        first = tl.where(is_v, first, n1)
        second = tl.where(is_v, second, n2)
    y1 = tl.where(is_v, first, first * cos - second * sin)
    y2 = tl.where(is_v, second, second * cos + first * sin)
    tl.store(qkv_ptr + start + at, y1.to(kind), mask=mask & is_q)
    tl.store(qkv_ptr + start + at + D // 2, y2.to(kind), mask=mask & is_q)
    kv_head = tl.where(head >= HQ + HKV, head - HQ - HKV, head - HQ)
    to_k = mask & writes & (head >= HQ)[:, None] & (head < HQ + HKV)[:, None]
    to_v = mask & writes & is_v
    into = (slot * HKV + kv_head)[:, None] * D + pair[None, :]
    if QUANT == 0:
        tl.store(k_ptr + into, y1.to(kind), mask=to_k)
        tl.store(k_ptr + into + D // 2, y2.to(kind), mask=to_k)
        tl.store(v_ptr + into, y1.to(kind), mask=to_v)
        tl.store(v_ptr + into + D // 2, y2.to(kind), mask=to_v)
    else:
        qmax: tl.constexpr = FP8_MAX if QUANT == 1 else INT8_MAX
        y1 = y1.to(kind).to(tl.float32)  # what an unquantised cache would hold is what gets quantised
        y2 = y2.to(kind).to(tl.float32)
        largest = tl.maximum(tl.max(tl.abs(y1), axis=1), tl.max(tl.abs(y2), axis=1))
        scale = largest / qmax
        divisor = tl.where(scale == 0, 1.0, scale)[:, None]
        z1 = y1 / divisor
        z2 = y2 / divisor
        if QUANT == 2:
            z1 = round_half_even(z1)
            z2 = round_half_even(z2)
        z1 = tl.minimum(tl.maximum(z1, -qmax), qmax).to(k_ptr.dtype.element_ty)
        z2 = tl.minimum(tl.maximum(z2, -qmax), qmax).to(k_ptr.dtype.element_ty)
        tl.store(k_ptr + into, z1, mask=to_k)
        tl.store(k_ptr + into + D // 2, z2, mask=to_k)
        tl.store(v_ptr + into, z1, mask=to_v)
        tl.store(v_ptr + into + D // 2, z2, mask=to_v)
        valid = writes & (head < HQ + 2 * HKV)
        tl.store(k_scale_ptr + slot * HKV + kv_head, scale, mask=valid & (head >= HQ) & (head < HQ + HKV))
        tl.store(v_scale_ptr + slot * HKV + kv_head, scale, mask=valid & (head >= HQ + HKV))


def rope_write(
    qkv: torch.Tensor,
    table: torch.Tensor,
    positions: torch.Tensor,
    cache: CacheLayer,
    *,
    num_heads: int,
    num_kv_heads: int,
    slots_T: torch.Tensor | None = None,
    rows_T: torch.Tensor | None = None,
    limits: torch.Tensor | None = None,
    block_tables: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 0.0,
    x_scales: Scales | None = None,
) -> None:
    """Rotate the queries of `qkv` in place and write the keys (rotated) and values into the cache.

    Args:
        qkv: [T, (Hq + 2 Hkv) D]; the q part is overwritten, the rest is left as it was.
        table: float32 [positions, D]: cosines, then sines, of each position.
        positions: int32 [T], or [rows] when `rows_T` is given.
        slots_T: int32 [T]: where each token goes; -1 = nowhere.
        rows_T, limits, block_tables: instead of `slots_T`: token t belongs to row `rows_T[t]` (-1: none), stands at that
            row's position and goes where its block table says, unless the position has reached the row's limit.
        x_scales: what `qkv` is multiplied by first.
    """
    head_dim = table.shape[1]
    heads = num_heads + 2 * num_kv_heads
    half = next_power_of_2(head_dim // 2)
    per_program, warps = 8, 2
    if qkv.shape[0] >= _MANY_TOKENS:  # then a token a program fills the device, and reads its position once
        per_program, warps = max(8, min(next_power_of_2(heads), _PAIRS // half)), 4
    quant = {torch.float8_e4m3fn: 1, torch.int8: 2}.get(cache.k.dtype, 0)
    _rope_write[(qkv.shape[0], -(-heads // per_program))](
        qkv, bias, q_norm, k_norm, table, positions, slots_T, rows_T, limits, block_tables,
        cache.k, cache.v, cache.k_scale, cache.v_scale, *(x_scales or (None, None)), 0 if block_tables is None else block_tables.stride(0), eps,
        HQ=num_heads, HKV=num_kv_heads, D=head_dim, P=cache.k.shape[1], HALF=half,
        HB=per_program, MAPPED=rows_T is not None, BIAS=bias is not None, QK_NORM=q_norm is not None, QUANT=quant,
        SCALED=x_scales is not None,
        num_warps=warps, **options(qkv.device),
    )  # fmt: skip
