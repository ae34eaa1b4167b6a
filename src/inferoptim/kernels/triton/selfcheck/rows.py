"""Row-wise kernels, rotation and the write into the cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from inferoptim.kernels import reference
from inferoptim.kernels.triton import elementwise, rope
from inferoptim.kernels.triton.selfcheck.inputs import EPS, Comparison, Inputs, dequantised, quants


def rows(i: Inputs) -> Iterator[Comparison]:
    shapes = ((3, 48), (5, 576), (2, 2500))
    for rows, width in (
        shapes if i.small else ((1, 576), (37, 2048), (129, 4096), (7, 5632), (5, 14336), (2, 20000))
    ):
        x, r, w = i.normal(rows, width), i.normal(rows, width), i.normal(width)
        ref, total = reference.add_rms_norm(x, r, w, EPS)
        for label, quant in quants(i):
            out = i.poison(rows, width, dtype=quant)
            scale = i.poison(rows, dtype=torch.float32) if quant is not None else None
            residual = r.clone()
            elementwise.rms_norm(x, w, EPS, out, residual_TH=residual, scale_T=scale)
            limit = i.limit if quant is None else i.rounding
            yield f"residual rms_norm{label} {rows}x{width}", dequantised(out, scale), ref, limit
            yield f"residual sum{label} {rows}x{width}", residual, total, i.limit
        scales = (i.normal(rows, dtype=torch.float32), i.normal(width, dtype=torch.float32))
        scaled = x.float() * scales[0][:, None] * scales[1]
        out, residual = i.poison(rows, width), r.clone()
        elementwise.rms_norm(x, w, EPS, out, residual_TH=residual, x_scales=scales)
        yield (
            f"scaled rms_norm {rows}x{width}",
            out,
            reference.rms_norm(scaled + r.float(), w.float(), EPS),
            i.limit,
        )
        yield f"scaled residual sum {rows}x{width}", residual, scaled + r.float(), i.limit
        for label, quant in quants(i)[1:]:  # as between the products of an 8-bit model
            out, scale, residual = (
                i.poison(rows, width, dtype=quant),
                i.poison(rows, dtype=torch.float32),
                r.clone(),
            )
            elementwise.rms_norm(x, w, EPS, out, residual_TH=residual, scale_T=scale, x_scales=scales)
            expected = reference.rms_norm(scaled + r.float(), w.float(), EPS)
            yield f"scaled rms_norm{label} {rows}x{width}", dequantised(out, scale), expected, i.rounding
        out = i.poison(2, width)
        elementwise.rms_norm(x, w, EPS, out, residual_TH=r.clone(), rows_R=i.ints([rows - 1, 0]))
        yield f"gathered rms_norm {rows}x{width}", out, ref[[rows - 1, 0]], i.limit
        gate_up = i.normal(rows, 2 * width)
        ref = reference.silu_mul(gate_up)
        for label, quant in quants(i):
            out = i.poison(rows, width, dtype=quant)
            scale = i.poison(rows, dtype=torch.float32) if quant is not None else None
            elementwise.silu_mul(gate_up, out, scale)
            limit = i.limit if quant is None else i.rounding
            yield f"silu_mul{label} {rows}x{width}", dequantised(out, scale), ref, limit
        scales = (i.normal(rows, dtype=torch.float32), i.normal(2 * width, dtype=torch.float32))
        out = i.poison(rows, width)
        elementwise.silu_mul(gate_up, out, x_scales=scales)
        scaled = gate_up.float() * scales[0][:, None] * scales[1]
        yield f"scaled silu_mul {rows}x{width}", out, reference.silu_mul(scaled), i.limit
        for label, quant in quants(i)[1:]:
            out, scale = i.poison(rows, width, dtype=quant), i.poison(rows, dtype=torch.float32)
            elementwise.silu_mul(gate_up, out, scale, x_scales=scales)
            yield (
                f"scaled silu_mul{label} {rows}x{width}",
                dequantised(out, scale),
                reference.silu_mul(scaled),
                i.rounding,
            )
        q_out, q_scale = i.poison(rows, width, dtype=torch.int8), i.poison(rows, dtype=torch.float32)
        elementwise.quantize_rows(x, q_out, q_scale)
        expected, expected_scale = reference.quantize_kv(x, torch.int8)
        yield (
            f"quantize_rows int8 {rows}x{width}",
            dequantised(q_out, q_scale),
            dequantised(expected, expected_scale),
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


def rotation(i: Inputs) -> Iterator[Comparison]:
    shapes = (
        ((4, 2, 16), (3, 1, 24))
        if i.small
        else ((32, 4, 64), (9, 3, 64), (32, 8, 128), (6, 2, 80), (4, 4, 256))
    )
    size, blocks = 4, 12
    for heads, kv_heads, dim in shapes:
        for label, quant in quants(i):
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
                (reference.rms_norm(rotated[:, :heads], q_norm, EPS), reference.rms_norm(rotated[:, heads:], k_norm, EPS)), 1
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
                    x_scales=x_scales, bias=bias, q_norm=q_norm, k_norm=k_norm, eps=EPS, **where,
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
                    dequantised(cache.k, cache.k_scale),
                    dequantised(ref.k, ref.k_scale),
                    loose,
                )
                yield (
                    f"{name} v",
                    dequantised(cache.v, cache.v_scale),
                    dequantised(ref.v, ref.v_scale),
                    loose,
                )
