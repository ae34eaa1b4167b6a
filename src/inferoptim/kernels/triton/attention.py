"""Attention over the paged cache: one query a sequence (split over its context), and any mix of query lengths.

Both treat the query heads that share a KV head as rows of one matrix, so that a tile of keys is read once for all.

Legend: T tokens · S sequences · Hq query heads · Hkv KV heads · G = Hq / Hkv · D head size · B blocks · P tokens in a
block · C tokens of a context.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from inferoptim.config import KernelSettings
from inferoptim.kernels.triton.launch import CacheLayer, next_power_of_2, options

MAX_SPLITS = 32
PROGRAMS = KernelSettings().kv_split_programs


@triton.jit
def _in_float16(q, scale):
    """Queries for products with 8-bit keys: those become float16 in one instruction for two, bfloat16 takes four.

    Returns:
        (q over a power of 2 that its range fits float16, [rows] scale times that power).
    """
    wide = q.to(tl.float32)
    largest = tl.max(tl.abs(wide), axis=1)
    power = tl.exp2(tl.ceil(tl.log2(tl.where(largest > 0, largest, 1.0))))
    return (wide / power[:, None]).to(tl.float16), power * scale


@triton.jit
def _scaled_values(p, v_scale_ptr, where, inside):
    """Weights times the scales of their values, as multiples of the largest of those: (float16, the largest)."""
    v_scale = tl.load(v_scale_ptr + where, mask=inside, other=0.0)
    largest = tl.max(v_scale)
    return (p * (v_scale / tl.where(largest > 0, largest, 1.0))[None, :]).to(tl.float16), largest


@triton.jit
def _decode_tile(
    q, k, v, k_scale_ptr, v_scale_ptr, slot, at, hi, head, context, top, total, acc, scale,
    HKV: tl.constexpr, WINDOW: tl.constexpr, QUANT: tl.constexpr,
):  # fmt: skip
    """Take one tile of keys and values into the running softmax."""
    inside = at < hi
    s = tl.dot(q, tl.trans(k.to(q.dtype))) * scale
    if QUANT:
        s = s * tl.load(k_scale_ptr + slot * HKV + head, mask=inside, other=0.0)[None, :]
    visible = inside
    if WINDOW > 0:
        visible = inside & (at >= context - WINDOW)
    s = tl.where(visible[None, :], s, float("-inf"))
    new_top = tl.maximum(top, tl.max(s, axis=1))
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    p = tl.exp2(s - base[:, None])
    decay = tl.exp2(top - base)
    total = total * decay + tl.sum(p, axis=1)
    if QUANT:
        p16, largest = _scaled_values(p, v_scale_ptr, slot * HKV + head, inside)
        acc = acc * decay[:, None] + tl.dot(p16, v.to(tl.float16)) * largest
    else:
        acc = acc * decay[:, None] + tl.dot(p.to(q.dtype), v.to(q.dtype))
    return new_top, total, acc


@triton.jit
def _decode(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, rows_ptr, positions_ptr, limits_ptr, blocks_ptr, out_ptr,
    part_ptr, stat_ptr, count_ptr, q_stride, blocks_stride, scale,
    G: tl.constexpr, GP: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr,
    TILE: tl.constexpr, SPLITS: tl.constexpr, WINDOW: tl.constexpr, QUANT: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    g = tl.arange(0, GP)
    d = tl.arange(0, DP)
    q_mask = (g < G)[:, None] & (d < D)[None, :]
    out_at = i.to(tl.int64) * (HKV * G * D) + (head * G + g)[:, None] * D + d[None, :]
    row = tl.load(rows_ptr + i).to(tl.int64)
    safe = tl.maximum(row, 0)
    position = tl.load(positions_ptr + safe)
    context = position + 1
    if (row < 0) | (
        position >= tl.load(limits_ptr + safe)
    ):  # padding, or a sequence past its end: read nothing
        context = 0
    first = 0
    if WINDOW > 0:
        first = tl.maximum(context - WINDOW, 0) // TILE
    tiles = tl.cdiv(context, TILE) - first
    per_split = tl.cdiv(tiles, SPLITS)
    lo = (first + split * per_split) * TILE
    hi = tl.minimum(context, lo + per_split * TILE)
    used = tl.cdiv(tiles, tl.maximum(per_split, 1))  # splits that have work
    table = blocks_ptr + safe * blocks_stride
    # The first tile is asked for before the wait, but for the newest token: the kernel before this one writes it.
    at = lo + tl.arange(0, TILE)
    slot = tl.load(table + at // P, mask=at < hi, other=0).to(tl.int64) * P + at % P
    where = (slot * HKV + head)[:, None] * D + d[None, :]
    old = (at < hi) & (at < position)
    k = tl.load(k_ptr + where, mask=old[:, None] & (d < D)[None, :], other=0.0)
    v = tl.load(v_ptr + where, mask=old[:, None] & (d < D)[None, :], other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    if context == 0:
        if split == 0:
            tl.store(out_ptr + out_at, tl.zeros((GP, DP), out_ptr.dtype.element_ty), mask=q_mask)
    elif lo < hi:
        q = tl.load(
            q_ptr + i.to(tl.int64) * q_stride + (head * G + g)[:, None] * D + d[None, :],
            mask=q_mask,
            other=0.0,
        )
        factor = scale
        if QUANT:
            q, row_factor = _in_float16(q, scale)
            factor = row_factor[:, None]
        if (lo <= position) & (position < lo + TILE):
            newest = (at == position)[:, None] & (d < D)[None, :]
            k = tl.where(newest, tl.load(k_ptr + where, mask=newest, other=0.0), k)
            v = tl.where(newest, tl.load(v_ptr + where, mask=newest, other=0.0), v)
        top = tl.full((GP,), float("-inf"), tl.float32)
        total = tl.zeros((GP,), tl.float32)
        acc = tl.zeros((GP, DP), tl.float32)
        top, total, acc = _decode_tile(
            q,
            k,
            v,
            k_scale_ptr,
            v_scale_ptr,
            slot,
            at,
            hi,
            head,
            context,
            top,
            total,
            acc,
            factor,
            HKV,
            WINDOW,
            QUANT,
        )
        for start in tl.range(lo + TILE, hi, TILE, num_stages=STAGES):
            at = start + tl.arange(0, TILE)
            slot = tl.load(table + at // P, mask=at < hi, other=0).to(tl.int64) * P + at % P
            where = (slot * HKV + head)[:, None] * D + d[None, :]
            mask = (at < hi)[:, None] & (d < D)[None, :]
            k = tl.load(k_ptr + where, mask=mask, other=0.0)
            v = tl.load(v_ptr + where, mask=mask, other=0.0)
            top, total, acc = _decode_tile(
                q,
                k,
                v,
                k_scale_ptr,
                v_scale_ptr,
                slot,
                at,
                hi,
                head,
                context,
                top,
                total,
                acc,
                factor,
                HKV,
                WINDOW,
                QUANT,
            )
        if SPLITS == 1:
            tl.store(out_ptr + out_at, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=q_mask)
        else:
            unit = (i * HKV + head).to(tl.int64)
            part = part_ptr + (unit * SPLITS + split) * (GP * DP) + g[:, None] * DP + d[None, :]
            stat = stat_ptr + (unit * SPLITS + split) * (2 * GP) + g
            tl.store(part, acc)
            tl.store(stat, top)
            tl.store(stat + GP, total)
            tl.debug_barrier()  # every thread's part is stored before one of them counts this split as done
            before = tl.atomic_add(count_ptr + unit, 1, sem="acq_rel")
            if before == used - 1:  # the last one merges
                all_top = tl.full((GP,), float("-inf"), tl.float32)
                all_total = tl.zeros((GP,), tl.float32)
                all_acc = tl.zeros((GP, DP), tl.float32)
                for other in range(used):
                    theirs = unit * SPLITS + other
                    o_stat = stat_ptr + theirs * (2 * GP) + g
                    o_top = tl.load(o_stat, cache_modifier=".cg")
                    o_total = tl.load(o_stat + GP, cache_modifier=".cg")
                    o_part = part_ptr + theirs * (GP * DP) + g[:, None] * DP + d[None, :]
                    o_acc = tl.load(o_part, cache_modifier=".cg")
                    new_top = tl.maximum(all_top, o_top)
                    base = tl.where(new_top == float("-inf"), 0.0, new_top)
                    mine = tl.exp2(all_top - base)
                    other_weight = tl.exp2(o_top - base)
                    all_total = all_total * mine + o_total * other_weight
                    all_acc = all_acc * mine[:, None] + o_acc * other_weight[:, None]
                    all_top = new_top
                y = all_acc / all_total[:, None]
                tl.store(out_ptr + out_at, y.to(out_ptr.dtype.element_ty), mask=q_mask)
                tl.store(count_ptr + unit, 0)


@triton.jit
def _varlen_tile(
    q, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table, start, hi, head, position, top, total, acc, scale,
    HKV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr,
    QUANT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take one tile of keys and values into the running softmax of a tile of queries.

    `top` is in units of the unscaled products: the scale is then part of the multiplication that the exponent needs anyway.
    """
    d = tl.arange(0, DP)
    at = start + tl.arange(0, TILE)
    inside = at < hi
    if MASKED:
        slot = tl.load(table + at // P, mask=inside, other=0).to(tl.int64) * P + at % P
    else:
        slot = tl.load(table + at // P).to(tl.int64) * P + at % P
    where = (slot * HKV + head)[:, None] * D + d[None, :]
    if MASKED:
        k = tl.load(k_ptr + where, mask=inside[:, None] & (d < D)[None, :], other=0.0)
    elif DP == D:
        k = tl.load(k_ptr + where)
    else:
        k = tl.load(k_ptr + where, mask=(d < D)[None, :], other=0.0)
    s = tl.dot(q, tl.trans(k.to(q.dtype)))
    if QUANT:
        s = s * tl.load(k_scale_ptr + slot * HKV + head, mask=inside, other=0.0)[None, :]
    if MASKED:
        visible = at[None, :] <= position[:, None]
        if WINDOW > 0:
            visible = visible & (at[None, :] > position[:, None] - WINDOW)
        s = tl.where(visible, s, float("-inf"))
    new_top = tl.maximum(top, tl.max(s, axis=1))
    base = new_top * scale
    if MASKED:
        base = tl.where(new_top == float("-inf"), 0.0, base)
    p = tl.exp2(s * (scale[:, None] if QUANT else scale) - base[:, None])
    decay = tl.exp2(top * scale - base)
    total = total * decay + tl.sum(p, axis=1)
    if MASKED:
        v = tl.load(v_ptr + where, mask=inside[:, None] & (d < D)[None, :], other=0.0)
    elif DP == D:
        v = tl.load(v_ptr + where)
    else:
        v = tl.load(v_ptr + where, mask=(d < D)[None, :], other=0.0)
    if QUANT:
        p16, largest = _scaled_values(p, v_scale_ptr, slot * HKV + head, inside)
        acc = acc * decay[:, None] + tl.dot(p16, v.to(tl.float16)) * largest
    else:
        acc = tl.dot(p.to(q.dtype), v.to(q.dtype), acc * decay[:, None])
    return new_top, total, acc


@triton.jit
def _varlen(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, tile_sequence_ptr, tile_start_ptr, query_start_ptr, context_ptr,
    blocks_ptr, out_ptr, q_stride, blocks_stride, scale,
    G: tl.constexpr, GP: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr,
    TOKENS: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr, QUANT: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    tile = tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    sequence = tl.load(tile_sequence_ptr + tile).to(tl.int64)
    if sequence >= 0:
        begin = tl.load(query_start_ptr + sequence)
        count = tl.load(query_start_ptr + sequence + 1) - begin
        context = tl.load(context_ptr + sequence)
        offset = tl.load(tile_start_ptr + tile)  # of the tile's first query in its sequence
        r = tl.arange(0, TOKENS * GP)
        query = offset + r // GP
        g = r % GP
        d = tl.arange(0, DP)
        q_mask = ((query < count) & (g < G))[:, None] & (d < D)[None, :]
        token = (begin + query).to(tl.int64)
        if PDL:
            tl.extra.cuda.gdc_wait()
        q = tl.load(
            q_ptr + token[:, None] * q_stride + (head * G + g)[:, None] * D + d[None, :],
            mask=q_mask,
            other=0.0,
        )
        factor = scale
        if QUANT:
            q, factor = _in_float16(q, scale)
        position = context - count + query
        top = tl.full((TOKENS * GP,), float("-inf"), tl.float32)
        total = tl.zeros((TOKENS * GP,), tl.float32)
        acc = tl.zeros((TOKENS * GP, DP), tl.float32)
        first_position = context - count + offset
        hi = tl.minimum(context, first_position + TOKENS)
        lo = 0
        if WINDOW > 0:
            lo = tl.maximum(first_position - WINDOW + 1, 0) // TILE * TILE
        table = blocks_ptr + sequence * blocks_stride
        # Tiles that every query sees whole need no mask; with a window there is none that all are sure to see.
        whole = lo
        if WINDOW == 0:
            whole = (first_position + 1) // TILE * TILE
            for start in tl.range(0, whole, TILE, num_stages=STAGES):
                top, total, acc = _varlen_tile(
                    q, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table, start, hi, head, position, top, total, acc, factor,
                    HKV, D, DP, P, TILE, WINDOW, QUANT, False,
                )  # fmt: skip
        for start in tl.range(whole, hi, TILE, num_stages=1):
            top, total, acc = _varlen_tile(
                q, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table, start, hi, head, position, top, total, acc, factor,
                HKV, D, DP, P, TILE, WINDOW, QUANT, True,
            )  # fmt: skip
        y = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        out_at = token[:, None] * (HKV * G * D) + (head * G + g)[:, None] * D + d[None, :]
        tl.store(out_ptr + out_at, y.to(out_ptr.dtype.element_ty), mask=q_mask)
    elif PDL:
        tl.extra.cuda.gdc_wait()


@dataclass(frozen=True, slots=True)
class DecodeScratch:
    """Where the splits of one launch meet. One for all layers: launches of one stream do not overlap."""

    part: torch.Tensor  # float32
    stat: torch.Tensor  # float32
    count: torch.Tensor  # int32, zero between launches
    programs: int = PROGRAMS  # that a launch is cut into

    @classmethod
    def allocate(
        cls,
        max_rows: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        device: torch.device,
        programs: int = PROGRAMS,
    ) -> DecodeScratch:
        """Room for any split that `num_splits` chooses, for up to `max_rows` rows."""
        units = max(rows * num_splits(rows, num_kv_heads, programs) for rows in range(1, max_rows + 1))
        units *= num_kv_heads
        gp, dp = _group_rows(num_heads // num_kv_heads), next_power_of_2(head_dim)
        return cls(
            part=torch.empty(units * gp * dp, dtype=torch.float32, device=device),
            stat=torch.empty(units * 2 * gp, dtype=torch.float32, device=device),
            count=torch.zeros(max_rows * num_kv_heads, dtype=torch.int32, device=device),
            programs=programs,
        )


def num_splits(rows: int, num_kv_heads: int, programs: int = PROGRAMS) -> int:
    """How many programs share one context: as many as make `programs` together, or fewer."""
    wanted = max(1, min(MAX_SPLITS, programs // (rows * num_kv_heads)))
    return 1 << (wanted.bit_length() - 1)  # a power of 2: few kernels to compile


def decode_attention(
    q: torch.Tensor,
    cache: CacheLayer,
    out: torch.Tensor,
    scratch: DecodeScratch,
    *,
    num_heads: int,
    rows: torch.Tensor,
    positions: torch.Tensor,
    limits: torch.Tensor,
    block_tables: torch.Tensor,
    window: int | None = None,
) -> None:
    """Attention of one query a sequence.

    Args:
        q: [S, >= Hq D], rotated; only its first Hq D columns are read.
        out: [S, Hq D]; written, with zeros where there is no sequence.
        rows: int32 [S]: the row of the batch that query s belongs to; -1 = none.
        positions, limits: int32 [rows]: where each row's token stands; a row at its limit is past its end.
        block_tables: int32 [rows, M].
        window: a query sees itself and the `window` - 1 tokens before.
    """
    count = rows.shape[0]
    _, block_size, num_kv_heads, head_dim = cache.k.shape
    group = num_heads // num_kv_heads
    splits = num_splits(count, num_kv_heads, scratch.programs)
    tile, stages, warps = _decode_shape(head_dim, splits, cache.k_scale is not None)
    _decode[(count, num_kv_heads, splits)](
        q, cache.k, cache.v, cache.k_scale, cache.v_scale, rows, positions, limits, block_tables, out,
        scratch.part, scratch.stat, scratch.count, q.stride(0), block_tables.stride(0), softmax_scale(head_dim),
        G=group, GP=_group_rows(group), HKV=num_kv_heads, D=head_dim, DP=next_power_of_2(head_dim), P=block_size,
        TILE=tile, SPLITS=splits, WINDOW=window or 0, QUANT=cache.k_scale is not None,
        STAGES=stages, num_warps=warps, **options(q.device),
    )  # fmt: skip


def varlen_attention(
    q: torch.Tensor,
    cache: CacheLayer,
    out: torch.Tensor,
    *,
    num_heads: int,
    tile_sequence: torch.Tensor,
    tile_start: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    window: int | None = None,
) -> None:
    """Causal attention of each sequence's last tokens over its own context; see `reference.paged_attention`.

    Args:
        q: [T, >= Hq D], rotated; only its first Hq D columns are read.
        out: [T, Hq D]; the rows of the sequences' tokens are written.
        tile_sequence, tile_start: int32: every sequence's queries cut into tiles of `tile_tokens`: whose each tile is
            (-1 = nobody's) and its first query, counted from the sequence's first.
    """
    _, block_size, num_kv_heads, head_dim = cache.k.shape
    group = num_heads // num_kv_heads
    tokens = tile_tokens(group, head_dim)
    _varlen[(num_kv_heads, tile_sequence.shape[0])](
        q, cache.k, cache.v, cache.k_scale, cache.v_scale, tile_sequence, tile_start, query_start, context_lens,
        block_tables, out, q.stride(0), block_tables.stride(0), softmax_scale(head_dim),
        G=group, GP=next_power_of_2(group), HKV=num_kv_heads, D=head_dim, DP=next_power_of_2(head_dim), P=block_size,
        TOKENS=tokens, WINDOW=window or 0, QUANT=cache.k_scale is not None, **_varlen_shape(head_dim),
        **options(q.device),
    )  # fmt: skip


def tile_tokens(group: int, head_dim: int) -> int:
    """Queries in one tile of `varlen_attention`, which holds 64 or 128 rows of (query, head)."""
    rows = 64 if head_dim <= 64 else 128
    return max(1, rows // next_power_of_2(group))


def _varlen_shape(head_dim: int) -> dict[str, int]:
    """Keys of a tile, stages and warps: the best of a sweep on an H100 (docs/LOG.md)."""
    if head_dim <= 64:
        return {"TILE": 64, "STAGES": 3, "num_warps": 4}
    return {"TILE": 64, "STAGES": 2, "num_warps": 8}


def _decode_shape(head_dim: int, splits: int, quantised: bool) -> tuple[int, int, int]:
    """(tokens of a tile, stages, warps): the best of a sweep on an H100 (docs/LOG.md)."""
    if head_dim > 64:
        return (128, 3, 4) if splits == 1 and quantised and head_dim <= 128 else (32, 3, 4)
    if splits > 1:
        return 64, 3, 4
    return (128, 2, 4) if quantised else (32, 4, 2)


def _group_rows(group: int) -> int:
    return max(16, next_power_of_2(group))


def softmax_scale(head_dim: int) -> float:
    """What scores are multiplied by; with log2(e), since the kernels exponentiate in base 2."""
    return head_dim**-0.5 * 1.4426950408889634
