"""Products for a handful of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from inferoptim.kernels import reference
from inferoptim.kernels.cuda import compile as compiler
from inferoptim.kernels.cuda import linear, prompts
from inferoptim.kernels.triton import gemv, sampling
from inferoptim.kernels.triton.selfcheck.choices import greedy_rows
from inferoptim.kernels.triton.selfcheck.inputs import EPS, Cache, Comparison, Inputs, dequantised


def _weights(
    i: Inputs, n: int, k: int, quant: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """(elements, scale, what they mean in float32)."""
    dense = i.normal(n, k, scale=k**-0.5)
    if quant is None:
        return dense, None, dense.float()
    q, scale = reference.quantize_kv(dense, quant)
    return q, scale, dequantised(q, scale)


def gemv_dense(i: Inputs) -> Iterator[Comparison]:
    yield from _gemv(i, "", None)


def gemv_int8(i: Inputs) -> Iterator[Comparison]:
    yield from _gemv(i, " int8", torch.int8)


def gemv_fp8(i: Inputs) -> Iterator[Comparison]:
    yield from _gemv(i, " fp8", torch.float8_e4m3fn)


def few_rows(i: Inputs) -> Iterator[Comparison]:
    """The kernels of kernels/cuda/linear.py; nothing where they do not run."""
    if compiler.unsupported(i.device, i.dtype) is not None:
        return
    shapes = (
        ((4, 2, 16, 96),)
        if i.small
        else ((32, 4, 64, 5632), (9, 3, 64, 1536), (20, 4, 80, 1040), (32, 8, 128, 6144))
    )
    for label, quant in (("", None), (" fp8", torch.float8_e4m3fn)):
        for heads, kv_heads, dim, inter in shapes:
            for m in (3, 20) if i.small else (1, 3, 8, 13, 24, 32):
                yield from _layer(i, linear, label, quant, m, heads, kv_heads, dim, inter)


def many_rows(i: Inputs) -> Iterator[Comparison]:
    """The kernel of kernels/cuda/prompts.py; nothing where it does not run."""
    if compiler.unsupported(i.device, torch.bfloat16) is not None:
        return
    shapes = (
        ((257, 200, 136), (4353, 8, 136))
        if i.small
        else ((1024, 2048, 5632), (4353, 2056, 5640), (1025, 576, 1536), (1100, 4096, 14336))
    )
    for m, hidden, inter in shapes:
        x, weight, out = (
            i.normal(m, hidden),
            i.normal(2 * inter, hidden, scale=hidden**-0.5),
            i.poison(m, inter),
        )
        if not i.small and not prompts.takes(x, weight):
            return
        prompts.gate_up(x, weight, out)
        expected = reference.silu_mul(x.float() @ weight.float().T)
        yield f"gate_up M={m} {hidden}/{inter}", out, expected, i.limit


def _layer(
    i: Inputs, kernels: Any, label: str, quant: torch.dtype | None, m: int, heads: int, kv_heads: int, dim: int, inter: int
) -> Iterator[Comparison]:  # fmt: skip
    """The products of a layer, fused with what stands around them."""
    hidden = heads * dim
    x, norm = i.normal(m, hidden), i.normal(hidden)
    normed = reference.rms_norm(x.float(), norm.float(), EPS)
    name = f"{label} M={m} {hidden}/{inter}"
    n = (heads + 2 * kv_heads) * dim
    w, scale, wide = _weights(i, n, hidden, quant)
    out = i.poison(m, n)
    kernels.norm_linear(x, norm, w, out, EPS, scale=scale)
    yield f"norm_linear{name}", out, normed @ wide.T, i.limit
    bias = i.normal(n)
    qkv = normed @ wide.T + bias.float()
    size, held_rows = 4, m + 2
    angles = torch.outer(
        torch.arange(16, dtype=torch.float32), 1.0 / 10000 ** (torch.arange(0, dim, 2) / dim)
    )
    table = torch.cat((angles.cos(), angles.sin()), 1).to(i.device)
    blocks = 2 * held_rows + 1
    tables = i.ints(np.asarray(i.permutation(blocks)[:-1]).reshape(held_rows, 2))
    at = (i.normal(m, dtype=torch.float32).abs() * 4).int().clamp(max=7).tolist()
    mapped = i.permutation(held_rows)[:m]
    rows, limits = i.ints(mapped), i.ints([8] * held_rows)
    positions = torch.zeros(held_rows, dtype=torch.int32, device=i.device)
    positions[rows.long()] = i.ints(at)
    unused = i.ints([-1 if number == 2 else row for number, row in enumerate(mapped)])  # the third is padding
    cache = i.cache(blocks, size, kv_heads, dim, None)
    ref = Cache(cache.k.clone(), cache.v.clone())
    q = i.poison(m, hidden)
    kernels.norm_qkv_rope(
        x, norm, w, q, cache, table, EPS, num_heads=heads, scale=scale, bias=bias, rows=unused, positions=positions,
        limits=limits, block_tables=tables,
    )  # fmt: skip
    live = [number for number in range(m) if number != 2]
    split = qkv.view(m, -1, dim)[live]
    where = torch.tensor(at, device=i.device)[live]
    turned = reference.rope(split[:, : heads + kv_heads], table[where, : dim // 2], table[where, dim // 2 :])
    slots = [int(tables[mapped[j], at[j] // size]) * size + at[j] % size for j in live]
    reference.write_kv(turned[:, heads:], split[:, heads + kv_heads :], ref.k, ref.v, i.ints(slots))
    yield f"norm_qkv_rope{name} q", q[live], turned[:, :heads].flatten(1), i.limit
    yield f"norm_qkv_rope{name} k", cache.k, ref.k, i.limit
    yield f"norm_qkv_rope{name} v", cache.v, ref.v, i.limit
    w, scale, wide = _weights(i, 2 * inter, hidden, quant)
    out = i.poison(m, inter)
    kernels.norm_gate_up(x, norm, w, out, EPS, scale)
    yield f"norm_gate_up{name}", out, reference.silu_mul(normed @ wide.T), i.limit
    act = i.normal(m, inter)
    w, scale, wide = _weights(i, hidden, inter, quant)
    residual = x.clone()
    kernels.linear_residual(act, w, residual, scale)
    yield f"linear_residual{name}", residual, x.float() + act.float() @ wide.T, i.limit


def _gemv(i: Inputs, label: str, quant: torch.dtype | None) -> Iterator[Comparison]:
    shapes = ((4, 2, 16, 96),) if i.small else ((32, 4, 64, 5632), (9, 3, 64, 1536))
    for heads, kv_heads, dim, inter in shapes:
        hidden = heads * dim
        for m in (1, 2):
            yield from _layer(i, gemv, label, quant, m, heads, kv_heads, dim, inter)
            x, norm = i.normal(m, hidden), i.normal(hidden)
            normed = reference.rms_norm(x.float(), norm.float(), EPS)
            name = f"{label} M={m} {hidden}/{inter}"
            n = (heads + 2 * kv_heads) * dim
            w, scale, wide = _weights(i, n, hidden, quant)
            bias, out = i.normal(n), i.poison(m, n)
            gemv.norm_linear(x, norm, w, out, EPS, scale=scale, bias=bias)
            yield f"norm_linear with bias{name}", out, normed @ wide.T + bias.float(), i.limit
            vocab = 131 if i.small else 32003
            w, scale, wide = _weights(i, vocab, hidden, quant)
            best, best_at = i.poison(vocab * m, dtype=torch.float32), i.poison(vocab * m, dtype=torch.int32)
            held, probs = greedy_rows(i, m, vocab), i.poison(m, vocab, dtype=torch.float32)
            held.fields[0, sampling.TEMPERATURE] = 0x3F800000  # 1.0: this row's logits are kept
            members, at_row = i.ints(range(m)), i.ints([0] * m)
            shares = gemv.norm_head(x, norm, w, members, at_row, held, probs, best, best_at, EPS, scale)
            yield f"norm_head{name} logits", probs[:1], (normed @ wide.T)[:1], i.limit
            held.fields[0, sampling.TEMPERATURE] = 0
            out = i.poison(m, dtype=torch.int32)
            near = i.poison(m, sampling.NEAR, dtype=torch.float32)
            sampling.choose(best, best_at, shares, members, at_row, members, held, probs, near, out)
            logits = normed @ wide.T
            chosen = logits.gather(1, out.long().clamp(0, vocab - 1)[:, None])
            yield f"norm_head{name}", chosen, logits.max(1, keepdim=True).values, 1e-4
