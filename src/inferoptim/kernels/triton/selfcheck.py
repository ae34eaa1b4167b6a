"""Every Triton kernel against `kernels/reference.py` on awkward shapes: what the tests and `benchmarks.gpu` run first.

Inputs are random at each call, outputs are poisoned before it. The error is ||out - ref|| / ||ref|| against the float32
reference on the same inputs; a NaN or an element that nobody wrote is infinite error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from inferoptim.kernels import reference
from inferoptim.kernels.triton import attention, elementwise, gemv, rope, sampling

Comparison = tuple[str, torch.Tensor, torch.Tensor, float]  # name, output, reference, largest error
Check = Callable[["Inputs"], Iterator[Comparison]]
_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Outcome:
    """One comparison."""

    name: str
    error: float  # relative, in norm
    limit: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # False for NaN


@dataclass(frozen=True, slots=True)
class Cache:
    """One layer's cache, as the kernels take it."""

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None

    def copy(self) -> Cache:
        scales = (None if s is None else s.clone() for s in (self.k_scale, self.v_scale))
        return Cache(self.k.clone(), self.v.clone(), *scales)


class Inputs:
    """Random tensors on one device, in one type; `limit` is what rounding to that type allows."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int, small: bool) -> None:
        self.device, self.dtype, self.small = device, dtype, small
        self.limit = 1e-2 if dtype == torch.bfloat16 else 2e-3
        self.rounding = (
            1e-1 if small else 5e-2
        )  # of 8-bit values; the interpreter cuts float8 where devices round
        self._rng = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> torch.Tensor:
        x = torch.randn(shape, generator=self._rng) * scale
        return x.to(device=self.device, dtype=dtype or self.dtype)

    def poison(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        kind = dtype or self.dtype
        if kind.is_floating_point and kind.itemsize > 1:
            return torch.full(shape, float("nan"), dtype=kind, device=self.device)
        return torch.full(shape, 77, dtype=torch.float32, device=self.device).to(kind)

    def ints(self, values: Any) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.int32, device=self.device)

    def permutation(self, n: int) -> list[int]:
        return list(torch.randperm(n, generator=self._rng).tolist())

    def cache(self, blocks: int, block_size: int, heads: int, dim: int, quant: torch.dtype | None) -> Cache:
        """Filled at random: a slot that a kernel must not read would show."""
        k, v = self.normal(blocks, block_size, heads, dim), self.normal(blocks, block_size, heads, dim)
        if quant is None:
            return Cache(k, v)
        kq, ks = reference.quantize_kv(k, quant)
        vq, vs = reference.quantize_kv(v, quant)
        return Cache(kq, vq, ks, vs)


def run(
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
    *,
    seed: int = 0,
    small: bool = False,
    fp8: bool = True,
    checks: tuple[Check, ...] | None = None,
) -> list[Outcome]:
    """Compare every kernel.

    Args:
        device: an NVIDIA GPU, or the CPU under Triton's interpreter.
        small: shapes that the interpreter ends in seconds.
        fp8: whether the device converts to float8.
        checks: some of `CHECKS`; default: all.
    """
    outcomes = []
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        for check in checks or CHECKS:
            inputs = Inputs(device, dtype, seed, small)
            for case, out, expected, limit in check(inputs):
                if "fp8" in case and not fp8:
                    continue
                outcomes.append(Outcome(f"{case} {name}", relative_error(out, expected), limit))
    return outcomes


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """||out - expected|| / ||expected||; infinite when `out` holds something that is not finite."""
    a, b = out.double(), expected.double()
    if a.shape != b.shape or not bool(torch.isfinite(a).all()):
        return float("inf")
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def _quants(i: Inputs) -> list[tuple[str, torch.dtype | None]]:
    return [("", None), (" int8", torch.int8), (" fp8", torch.float8_e4m3fn)]


def _dequantised(q: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return q.float() if scale is None else q.float() * scale.float()[..., None]


def _rows(i: Inputs) -> Iterator[Comparison]:
    for rows, width in ((3, 48), (5, 576)) if i.small else ((1, 576), (37, 2048), (129, 4096), (7, 5632)):
        x, r, w = i.normal(rows, width), i.normal(rows, width), i.normal(width)
        ref, total = reference.add_rms_norm(x, r, w, _EPS)
        for label, quant in _quants(i):
            out = i.poison(rows, width, dtype=quant)
            scale = i.poison(rows, dtype=torch.float32) if quant is not None else None
            residual = r.clone()
            elementwise.rms_norm(x, w, _EPS, out, residual_TH=residual, scale_T=scale)
            limit = i.limit if quant is None else i.rounding
            yield f"residual rms_norm{label} {rows}x{width}", _dequantised(out, scale), ref, limit
            yield f"residual sum{label} {rows}x{width}", residual, total, i.limit
        scales = (i.normal(rows, dtype=torch.float32), i.normal(width, dtype=torch.float32))
        scaled = x.float() * scales[0][:, None] * scales[1]
        out, residual = i.poison(rows, width), r.clone()
        elementwise.rms_norm(x, w, _EPS, out, residual_TH=residual, x_scales=scales)
        yield (
            f"scaled rms_norm {rows}x{width}",
            out,
            reference.rms_norm(scaled + r.float(), w.float(), _EPS),
            i.limit,
        )
        yield f"scaled residual sum {rows}x{width}", residual, scaled + r.float(), i.limit
        out = i.poison(2, width)
        elementwise.rms_norm(x, w, _EPS, out, residual_TH=r.clone(), rows_R=i.ints([rows - 1, 0]))
        yield f"gathered rms_norm {rows}x{width}", out, ref[[rows - 1, 0]], i.limit
        gate_up = i.normal(rows, 2 * width)
        ref = reference.silu_mul(gate_up)
        for label, quant in _quants(i):
            out = i.poison(rows, width, dtype=quant)
            scale = i.poison(rows, dtype=torch.float32) if quant is not None else None
            elementwise.silu_mul(gate_up, out, scale)
            limit = i.limit if quant is None else i.rounding
            yield f"silu_mul{label} {rows}x{width}", _dequantised(out, scale), ref, limit
        scales = (i.normal(rows, dtype=torch.float32), i.normal(2 * width, dtype=torch.float32))
        out = i.poison(rows, width)
        elementwise.silu_mul(gate_up, out, x_scales=scales)
        scaled = gate_up.float() * scales[0][:, None] * scales[1]
        yield f"scaled silu_mul {rows}x{width}", out, reference.silu_mul(scaled), i.limit
        q_out, q_scale = i.poison(rows, width, dtype=torch.int8), i.poison(rows, dtype=torch.float32)
        elementwise.quantize_rows(x, q_out, q_scale)
        expected, expected_scale = reference.quantize_kv(x, torch.int8)
        yield (
            f"quantize_rows int8 {rows}x{width}",
            _dequantised(q_out, q_scale),
            _dequantised(expected, expected_scale),
            1e-3,
        )
        product = (i.normal(rows, width, dtype=torch.float32) * 1e4).to(torch.int32)
        row_scale, column_scale = i.normal(rows, dtype=torch.float32), i.normal(width, dtype=torch.float32)
        out = i.poison(rows, width)
        elementwise.scale_int32(product, row_scale * 1e-4, column_scale, out)
        yield f"scale_int32 {rows}x{width}", out, product * row_scale[:, None] * 1e-4 * column_scale, i.limit
        ids, where = i.ints([2, 0, 1, 2, 1][:rows]), i.ints([rows - 1, 0, -1][: min(rows, 3)])
        if rows <= 5:
            table, out = i.normal(3, width), i.poison(where.numel(), width)
            elementwise.embed(ids, table, out, where)
            yield f"embed {rows}x{width}", out, table[ids.long()[where.long().clamp_min(0)]], 0.0


def _rope(i: Inputs) -> Iterator[Comparison]:
    shapes = (
        ((4, 2, 16), (3, 1, 24))
        if i.small
        else ((32, 4, 64), (9, 3, 64), (32, 8, 128), (6, 2, 80), (4, 4, 256))
    )
    size, blocks = 4, 12
    for heads, kv_heads, dim in shapes:
        for label, quant in _quants(i):
            positions = [0, 5, 11, 2]
            qkv = i.normal(4, (heads + 2 * kv_heads) * dim)
            bias, q_norm, k_norm = i.normal(qkv.shape[1]), i.normal(dim), i.normal(dim)
            angles = torch.outer(
                torch.arange(16, dtype=torch.float32), 1.0 / 10000 ** (torch.arange(0, dim, 2) / dim)
            )
            table = torch.cat((angles.cos(), angles.sin()), 1).to(i.device)
            # row 2 of the batch is unused, token 2 belongs to nobody, token 3 stands at its row's limit
            tables = i.ints([i.permutation(blocks)[:4] for _ in range(4)])
            rows, limits = i.ints([1, 0, -1, 3]), i.ints([16, 16, 16, 2])
            by_row = i.ints([5, 0, 9, 2])  # positions of rows 0, 1, 3 as above
            slots = [int(tables[1, 0]) * size, int(tables[0, 1]) * size + 1, -1, -1]
            # oracle
            x_scales = (1 + i.normal(4, dtype=torch.float32), 1 + i.normal(qkv.shape[1], dtype=torch.float32))
            wide = (qkv.float() * x_scales[0][:, None] * x_scales[1]).to(i.dtype)
            wide = (wide.float() + bias.float()).to(i.dtype).view(4, -1, dim)
            rotated = wide[:, : heads + kv_heads]
            rotated = torch.cat(
                (reference.rms_norm(rotated[:, :heads], q_norm, _EPS), reference.rms_norm(rotated[:, heads:], k_norm, _EPS)), 1
            )  # fmt: skip
            at = torch.tensor(positions, device=i.device)
            turned = reference.rope(rotated, table[at, : dim // 2], table[at, dim // 2 :])
            expected = i.cache(blocks, size, kv_heads, dim, quant)
            for mapped in (False, True):
                cache, ref = expected.copy(), expected.copy()
                mine = qkv.clone()
                where = (
                    {"rows_T": rows, "limits": limits, "block_tables": tables}
                    if mapped
                    else {"slots_T": i.ints(slots)}
                )
                rope.rope_write(
                    mine, table, by_row if mapped else i.ints(positions), cache, num_heads=heads, num_kv_heads=kv_heads,
                    x_scales=x_scales, bias=bias, q_norm=q_norm, k_norm=k_norm, eps=_EPS, **where,
                )  # fmt: skip
                reference.write_kv(
                    turned[:2, heads:],
                    wide[:2, heads + kv_heads :],
                    ref.k,
                    ref.v,
                    i.ints(slots[:2]),
                    ref.k_scale,
                    ref.v_scale,
                )
                name = f"{'mapped ' if mapped else ''}rope_write{label} {heads}/{kv_heads}x{dim}"
                yield f"{name} q", mine.view(4, -1, dim)[:2, :heads], turned[:2, :heads], i.limit
                loose = i.limit if quant is None else i.rounding
                yield (
                    f"{name} k",
                    _dequantised(cache.k, cache.k_scale),
                    _dequantised(ref.k, ref.k_scale),
                    loose,
                )
                yield (
                    f"{name} v",
                    _dequantised(cache.v, cache.v_scale),
                    _dequantised(ref.v, ref.v_scale),
                    loose,
                )


def _attention(i: Inputs) -> Iterator[Comparison]:
    shapes = ((4, 2, 16, 4, None), (3, 1, 24, 3, 5)) if i.small else (
        (32, 4, 64, 16, None), (9, 3, 64, 16, 50), (32, 8, 128, 16, None), (6, 2, 80, 7, None), (4, 4, 256, 32, 33),
        (16, 1, 64, 16, None),
    )  # fmt: skip
    for heads, kv_heads, dim, size, window in shapes:
        for label, quant in _quants(i):
            contexts = [1, 9, 17, 4] if i.small else [1, 700, 33, 64, 129, 2000]
            counts = [1, 4, 17, 2] if i.small else [1, 300, 33, 1, 7, 130]
            width = -(-max(contexts) // size)
            blocks = len(contexts) * width + 1
            order = i.permutation(blocks)
            tables = i.ints(np.asarray(order[: len(contexts) * width]).reshape(len(contexts), width))
            cache = i.cache(blocks, size, kv_heads, dim, quant)
            name = f"{label} {heads}/{kv_heads}x{dim} block {size}" + (f" window {window}" if window else "")
            # decode: rows of the batch in another order, one nobody's, one past its end
            q = i.normal(len(contexts) + 2, (heads + 2 * kv_heads) * dim)
            rows = i.ints([2, 0, -1, 1, *range(3, len(contexts)), 2])
            positions = i.ints([c - 1 for c in contexts])
            limits = i.ints([c if s != 3 else c - 1 for s, c in enumerate(contexts)])
            for repeat in (1,) if i.small else (1, 40):
                many = rows.repeat(repeat)
                scratch = attention.DecodeScratch.allocate(many.numel(), heads, kv_heads, dim, i.device)
                out = i.poison(many.numel(), heads * dim)
                attention.decode_attention(
                    q.repeat(repeat, 1), cache, out, scratch, num_heads=heads, rows=many, positions=positions,
                    limits=limits, block_tables=tables, window=window,
                )  # fmt: skip
                lives = [r if r >= 0 and r != 3 else -1 for r in rows.tolist()]
                kept = [s for s, r in enumerate(lives) if r >= 0]
                picked = [lives[s] for s in kept]
                ref = torch.zeros(rows.numel(), heads * dim, device=i.device)
                ref[kept] = reference.paged_attention(
                    q[kept].view(len(kept), -1, dim)[:, :heads].float(), cache.k, cache.v, i.ints(range(len(kept) + 1)),
                    i.ints([contexts[r] for r in picked]), tables[picked], window=window, k_scale=cache.k_scale,
                    v_scale=cache.v_scale,
                ).flatten(1)  # fmt: skip
                limit = i.limit if quant is None else 2 * i.limit
                yield f"decode_attention{name} of {many.numel()}", out, ref.repeat(repeat, 1), limit
                clear = scratch.count.float() + 1
                yield f"decode_attention{name} leaves its counters at 0", clear, torch.ones_like(clear), 0.0
            # varlen: any mix of query lengths, tiles of nobody at the end
            starts = np.concatenate(([0], np.cumsum(counts)))
            q = i.normal(int(starts[-1]), (heads + 2 * kv_heads) * dim)
            per_tile = attention.tile_tokens(heads // kv_heads)
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


def _weights(
    i: Inputs, n: int, k: int, quant: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """(elements, scale, what they mean in float32)."""
    dense = i.normal(n, k, scale=k**-0.5)
    if quant is None:
        return dense, None, dense.float()
    q, scale = reference.quantize_kv(dense, quant)
    return q, scale, _dequantised(q, scale)


def _gemv_dense(i: Inputs) -> Iterator[Comparison]:
    yield from _gemv(i, "", None)


def _gemv_int8(i: Inputs) -> Iterator[Comparison]:
    yield from _gemv(i, " int8", torch.int8)


def _gemv_fp8(i: Inputs) -> Iterator[Comparison]:
    yield from _gemv(i, " fp8", torch.float8_e4m3fn)


def _gemv(i: Inputs, label: str, quant: torch.dtype | None) -> Iterator[Comparison]:
    shapes = ((4, 2, 16, 96),) if i.small else ((32, 4, 64, 5632), (9, 3, 64, 1536))
    for heads, kv_heads, dim, inter in shapes:
        hidden = heads * dim
        for m in (1, 2):
            x, norm = i.normal(m, hidden), i.normal(hidden)
            normed = reference.rms_norm(x.float(), norm.float(), _EPS)
            name = f"{label} M={m} {hidden}/{inter}"
            n = (heads + 2 * kv_heads) * dim
            w, scale, wide = _weights(i, n, hidden, quant)
            bias = i.normal(n)
            out = i.poison(m, n)
            gemv.norm_linear(x, norm, w, out, _EPS, scale=scale, bias=bias)
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
                x, norm, w, q, cache, table, _EPS, num_heads=heads, scale=scale, bias=bias, rows=rows,
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
            gemv.norm_gate_up(x, norm, w, out, _EPS, scale)
            yield f"norm_gate_up{name}", out, reference.silu_mul(normed @ wide.T), i.limit
            act = i.normal(m, inter)
            w, scale, wide = _weights(i, hidden, inter, quant)
            residual = x.clone()
            gemv.linear_residual(act, w, residual, scale)
            yield f"linear_residual{name}", residual, x.float() + act.float() @ wide.T, i.limit
            vocab = 131 if i.small else 32003
            w, scale, wide = _weights(i, vocab, hidden, quant)
            best, best_at = (
                i.poison(vocab * m, dtype=torch.float32),
                i.poison(vocab * m, dtype=torch.int32),
            )
            shares = gemv.norm_head(x, norm, w, best, best_at, _EPS, scale)
            out = i.poison(m, dtype=torch.int32)
            sampling.choose(best, best_at, shares, out)
            logits = normed @ wide.T
            chosen = logits.gather(1, out.long().clamp(0, vocab - 1)[:, None])
            yield f"norm_head{name}", chosen, logits.max(1, keepdim=True).values, 1e-4


def _sampling(i: Inputs) -> Iterator[Comparison]:
    for rows, vocab in ((3, 70),) if i.small else ((1, 50), (5, 4096), (33, 32000), (4, 128256)):
        logits = i.normal(rows, vocab)
        logits[0, vocab // 2] = logits[0, vocab - 1] = 60.0  # a tie: the lower id
        shares_max = rows * (-(-vocab // sampling.SHARE))
        best, best_at = i.poison(shares_max, dtype=torch.float32), i.poison(shares_max, dtype=torch.int32)
        shares = sampling.argmax_shares(logits, best, best_at)
        out = i.poison(rows, dtype=torch.int32)
        sampling.choose(best, best_at, shares, out)
        expected = logits.float().cpu().numpy().argmax(1)
        yield f"argmax {rows}x{vocab}", out, i.ints(expected), 0.0
        members = [*range(rows)][::-1]
        members[0] = -1 if rows > 1 else 0
        tokens, positions = i.ints([9] * (rows + 1)), i.ints(range(rows + 1))
        done, chosen = i.ints([1] * rows), i.ints([[-5] * rows] * 3)
        sampling.advance(
            best,
            best_at,
            shares,
            vocab,
            rows=i.ints(members),
            tokens=tokens,
            positions=positions,
            done=done,
            out=chosen,
        )
        wanted, at, steps, given = (
            [9] * (rows + 1),
            list(range(rows + 1)),
            [1] * rows,
            [[-5] * rows for _ in range(3)],
        )
        for s, r in enumerate(members):
            if r >= 0:
                wanted[r], at[r], steps[s], given[1][s] = int(expected[s]), at[r] + 1, 2, int(expected[s])
        yield f"advance tokens {rows}x{vocab}", tokens, i.ints(wanted), 0.0
        yield f"advance positions {rows}x{vocab}", positions, i.ints(at), 0.0
        yield f"advance steps {rows}x{vocab}", done, i.ints(steps), 0.0
        yield f"advance out {rows}x{vocab}", chosen, i.ints(given), 0.0


CHECKS: tuple[Check, ...] = (_rows, _rope, _attention, _gemv_dense, _gemv_int8, _gemv_fp8, _sampling)
