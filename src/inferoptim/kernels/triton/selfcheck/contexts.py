"""Attention over paged contexts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from inferoptim.kernels import reference
from inferoptim.kernels.cuda import attention as cuda_attention
from inferoptim.kernels.cuda import compile as compiler
from inferoptim.kernels.triton import attention
from inferoptim.kernels.triton.selfcheck.inputs import Cache, Comparison, Inputs, quants

Shape = tuple[int, int, int, int, int | None]  # query heads, KV heads, head size, tokens of a block, window


def attention_(i: Inputs) -> Iterator[Comparison]:
    shapes: tuple[Shape, ...] = ((4, 2, 16, 4, None), (3, 1, 24, 3, 5)) if i.small else (
        (32, 4, 64, 16, None), (9, 3, 64, 16, 50), (32, 8, 128, 16, None), (6, 2, 80, 7, None), (4, 4, 256, 32, 33),
        (16, 1, 64, 16, None),
    )  # fmt: skip
    for shape in shapes:
        for label, quant in quants(i):
            heads, kv_heads, dim, size, window = shape
            contexts = [1, 9, 17, 4] if i.small else [1, 700, 33, 64, 129, 2000]
            counts = [1, 4, 17, 2] if i.small else [1, 300, 33, 1, 7, 130]
            cache, tables = _paged(i, shape, contexts, quant)
            name = f"{label} {heads}/{kv_heads}x{dim} block {size}" + (f" window {window}" if window else "")
            limit = i.limit if quant is None else 2 * i.limit
            yield from _decode(i, attention, name, limit, shape, contexts, cache, tables)
            # varlen: any mix of query lengths, tiles of nobody at the end
            starts = np.concatenate(([0], np.cumsum(counts)))
            q = i.normal(int(starts[-1]), (heads + 2 * kv_heads) * dim)
            per_tile = attention.tile_tokens(heads // kv_heads, dim)
            tiles = [(s, t) for s, n in enumerate(counts) for t in range(0, n, per_tile)] + [(-1, 0)] * 3
            out = i.poison(q.shape[0], heads * dim)
            attention.varlen_attention(
                q, cache, out, num_heads=heads, tile_sequence=i.ints([s for s, _ in tiles]),
                tile_start=i.ints([t for _, t in tiles]), query_start=i.ints(starts), context_lens=i.ints(contexts),
                block_tables=tables, window=window,
            )  # fmt: skip
            ref = reference.paged_attention(
                q.view(q.shape[0], -1, dim)[:, :heads].float(), cache.k, cache.v, i.ints(starts), i.ints(contexts), tables,
                window=window, k_scale=cache.k_scale, v_scale=cache.v_scale,
            ).flatten(1)  # fmt: skip
            yield f"varlen_attention{name}", out, ref, limit


def decode_few(i: Inputs) -> Iterator[Comparison]:
    """The kernel of kernels/cuda/attention.py; nothing where it does not run."""
    if compiler.unsupported(i.device, i.dtype) is not None:
        return
    shapes: tuple[Shape, ...] = ((8, 2, 64, 16, None), (4, 1, 128, 16, 5)) if i.small else (
        (32, 4, 64, 16, None), (9, 3, 64, 16, 50), (32, 8, 128, 16, None), (8, 1, 64, 32, None), (4, 4, 128, 16, 700),
    )  # fmt: skip
    for shape in shapes:
        for label, quant in (("", None), (" fp8", torch.float8_e4m3fn)):
            heads, kv_heads, dim, size, window = shape
            contexts = [1, 9, 300, 4] if i.small else [1, 700, 33, 64, 129, 2000]
            cache, tables = _paged(i, shape, contexts, quant)
            name = f"{label} {heads}/{kv_heads}x{dim} block {size}" + (f" window {window}" if window else "")
            limit = i.limit if quant is None else 2 * i.limit
            yield from _decode(i, cuda_attention, name, limit, shape, contexts, cache, tables)


def _paged(
    i: Inputs, shape: Shape, contexts: list[int], quant: torch.dtype | None
) -> tuple[Cache, torch.Tensor]:
    """A cache that holds the contexts in blocks of any order, and their tables; slots of no token are not numbers."""
    _, kv_heads, dim, size, _ = shape
    width = -(-max(contexts) // size)
    blocks = len(contexts) * width + 1
    order = i.permutation(blocks)
    tables = i.ints(np.asarray(order[: len(contexts) * width]).reshape(len(contexts), width))
    cache = i.cache(blocks, size, kv_heads, dim, quant)
    empty = torch.ones(blocks * size, dtype=torch.bool)
    for s, context in enumerate(contexts):
        at = torch.arange(context)
        empty[tables[s].cpu().long()[at // size] * size + at % size] = False
    empty = empty.to(i.device).view(blocks, size)
    for held in (cache.k, cache.v, cache.k_scale, cache.v_scale):
        if held is not None and held.dtype == torch.float8_e4m3fn:
            reference.raw(held)[empty] = 0x7F
        elif held is not None and held.is_floating_point():
            held[empty] = float("nan")
    return cache, tables


def _decode(
    i: Inputs, kernels: Any, name: str, limit: float, shape: Shape, contexts: list[int], cache: Cache, tables: torch.Tensor
) -> Iterator[Comparison]:  # fmt: skip
    """One query a sequence: rows of the batch in another order, one nobody's, one past its end."""
    heads, kv_heads, dim, _, window = shape
    q = i.normal(len(contexts) + 2, (heads + 2 * kv_heads) * dim)
    rows = i.ints([2, 0, -1, 1, *range(3, len(contexts)), 2])
    positions = i.ints([c - 1 for c in contexts])
    limits = i.ints([c if s != 3 else c - 1 for s, c in enumerate(contexts)])
    lives = [r if r >= 0 and r != 3 else -1 for r in rows.tolist()]
    kept = [s for s, r in enumerate(lives) if r >= 0]
    picked = [lives[s] for s in kept]
    ref = torch.zeros(rows.numel(), heads * dim, device=i.device)
    ref[kept] = reference.paged_attention(
        q[kept].view(len(kept), -1, dim)[:, :heads].float(), cache.k, cache.v, i.ints(range(len(kept) + 1)),
        i.ints([contexts[r] for r in picked]), tables[picked], window=window, k_scale=cache.k_scale,
        v_scale=cache.v_scale,
    ).flatten(1)  # fmt: skip
    for repeat in (1,) if i.small else (1, 10, 40):
        many, queries = rows.repeat(repeat), q.repeat(repeat, 1)
        if kernels is cuda_attention and not kernels.takes(queries, cache, heads // kv_heads):
            continue
        scratch = attention.DecodeScratch.allocate(many.numel(), heads, kv_heads, dim, i.device)
        out = i.poison(many.numel(), heads * dim)
        kernels.decode_attention(
            queries, cache, out, scratch, num_heads=heads, rows=many, positions=positions, limits=limits,
            block_tables=tables, window=window,
        )  # fmt: skip
        yield f"{kernels.__name__} decode{name} of {many.numel()}", out, ref.repeat(repeat, 1), limit
        clear = scratch.count.float() + 1
        yield f"{kernels.__name__} decode{name} leaves its counters at 0", clear, torch.ones_like(clear), 0.0
