"""Products for a handful of rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from inferoptim.kernels import reference
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


def _gemv(i: Inputs, label: str, quant: torch.dtype | None) -> Iterator[Comparison]:
    shapes = ((4, 2, 16, 96),) if i.small else ((32, 4, 64, 5632), (9, 3, 64, 1536))
    for heads, kv_heads, dim, inter in shapes:
        hidden = heads * dim
        for m in (1, 2):
            x, norm = i.normal(m, hidden), i.normal(hidden)
            normed = reference.rms_norm(x.float(), norm.float(), EPS)
            name = f"{label} M={m} {hidden}/{inter}"
            n = (heads + 2 * kv_heads) * dim
            w, scale, wide = _weights(i, n, hidden, quant)
            bias = i.normal(n)
            out = i.poison(m, n)
            gemv.norm_linear(x, norm, w, out, EPS, scale=scale, bias=bias)
            qkv = normed @ wide.T + bias.float()
            yield f"norm_linear{name}", out, qkv, i.limit
            size, blocks = 4, 9
            angles = torch.outer(
                torch.arange(16, dtype=torch.float32), 1.0 / 10000 ** (torch.arange(0, dim, 2) / dim)
            )
            table = torch.cat((angles.cos(), angles.sin()), 1).to(i.device)
            tables = i.ints(np.asarray(i.permutation(blocks)[:8]).reshape(4, 2))
            at = [5, 0, 7, 3][:m]
            rows, limits = i.ints([2, 0, 1, 3][:m]), i.ints([8, 8, 8, 8])
            positions = torch.zeros(4, dtype=torch.int32, device=i.device)
            positions[rows.long()] = i.ints(at)
            cache = i.cache(blocks, size, kv_heads, dim, None)
            ref = Cache(cache.k.clone(), cache.v.clone())
            q = i.poison(m, hidden)
            gemv.norm_qkv_rope(
                x, norm, w, q, cache, table, EPS, num_heads=heads, scale=scale, bias=bias, rows=rows,
                positions=positions, limits=limits, block_tables=tables,
            )  # fmt: skip
            split = qkv.view(m, -1, dim)
            where = torch.tensor(at, device=i.device)
            turned = reference.rope(
                split[:, : heads + kv_heads], table[where, : dim // 2], table[where, dim // 2 :]
            )
            slots = [
                int(tables[r, p // size]) * size + p % size for r, p in zip(rows.tolist(), at, strict=True)
            ]
            reference.write_kv(turned[:, heads:], split[:, heads + kv_heads :], ref.k, ref.v, i.ints(slots))
            yield f"norm_qkv_rope{name} q", q, turned[:, :heads].flatten(1), i.limit
            yield f"norm_qkv_rope{name} k", cache.k, ref.k, i.limit
            yield f"norm_qkv_rope{name} v", cache.v, ref.v, i.limit
            w, scale, wide = _weights(i, 2 * inter, hidden, quant)
            out = i.poison(m, inter)
            gemv.norm_gate_up(x, norm, w, out, EPS, scale)
            yield f"norm_gate_up{name}", out, reference.silu_mul(normed @ wide.T), i.limit
            act = i.normal(m, inter)
            w, scale, wide = _weights(i, hidden, inter, quant)
            residual = x.clone()
            gemv.linear_residual(act, w, residual, scale)
            yield f"linear_residual{name}", residual, x.float() + act.float() @ wide.T, i.limit
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
            sampling.choose(best, best_at, shares, members, at_row, members, held, probs, out)
            logits = normed @ wide.T
            chosen = logits.gather(1, out.long().clamp(0, vocab - 1)[:, None])
            yield f"norm_head{name}", chosen, logits.max(1, keepdim=True).values, 1e-4
