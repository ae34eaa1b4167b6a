"""Row-wise kernels: embedding, residual + RMSNorm, SwiGLU, and their quantised outputs.

Legend: T tokens · H hidden size · I intermediate size · V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferoptim.kernels.triton.launch import next_power_of_2, options

Scales = tuple[
    torch.Tensor, torch.Tensor
]  # float32 [T], [N]: by which a product of quantised values is multiplied
FP8_MAX = tl.constexpr(448.0)  # largest finite float8_e4m3fn
INT8_MAX = tl.constexpr(127.0)


@triton.jit
def round_half_even(x):
    """Nearest integer of |x| < 2^22, ties to even, as torch.round: float32 has no bits left for a fraction there."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def store_row(out_ptr, scale_ptr, row, at, mask, y, QUANT: tl.constexpr):
    """Store a row as it is (QUANT 0), as float8_e4m3fn (1) or as int8 (2), the latter two with one scale a row."""
    if QUANT == 0:
        tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        qmax: tl.constexpr = FP8_MAX if QUANT == 1 else INT8_MAX
        scale = tl.max(tl.abs(y)) / qmax
        ratio = y / tl.where(scale == 0, 1.0, scale)
        if QUANT == 2:
            ratio = round_half_even(ratio)
        ratio = tl.minimum(tl.maximum(ratio, -qmax), qmax)
        tl.store(out_ptr + at, ratio.to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(scale_ptr + row, scale)


@triton.jit
def _rms_norm(
    x_ptr, residual_ptr, weight_ptr, out_ptr, scale_ptr, rows_ptr, x_row_ptr, x_column_ptr, width, eps,
    RESIDUAL: tl.constexpr, GATHER: tl.constexpr, QUANT: tl.constexpr, SCALED: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
    if SCALED:
        x_column = tl.load(x_column_ptr + column, mask=mask, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    source = tl.load(rows_ptr + row).to(tl.int64) if GATHER else row
    x = tl.load(x_ptr + source * width + column, mask=mask, other=0.0)
    if SCALED:
        x = x.to(tl.float32) * tl.load(x_row_ptr + source) * x_column
    if RESIDUAL:
        held = tl.load(residual_ptr + source * width + column, mask=mask, other=0.0)
        x = (x.to(tl.float32) + held.to(tl.float32)).to(x_ptr.dtype.element_ty)
        if not GATHER:
            tl.store(residual_ptr + row * width + column, x, mask=mask)
    x = x.to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x) / width + eps) * weight
    store_row(out_ptr, scale_ptr, row, row * width + column, mask, y, QUANT)


@triton.jit
def _silu_mul(
    x_ptr, out_ptr, scale_ptr, x_row_ptr, x_column_ptr, width,
    QUANT: tl.constexpr, SCALED: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    if SCALED:
        gate_column = tl.load(x_column_ptr + column, mask=mask, other=0.0)
        up_column = tl.load(x_column_ptr + width + column, mask=mask, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    gate = tl.load(x_ptr + row * 2 * width + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * width + width + column, mask=mask, other=0.0).to(tl.float32)
    if SCALED:
        x_row = tl.load(x_row_ptr + row)
        gate = gate * x_row * gate_column
        up = up * x_row * up_column
    y = gate * tl.sigmoid(gate) * up
    store_row(out_ptr, scale_ptr, row, row * width + column, mask, y, QUANT)


@triton.jit
def _quantize_rows(
    x_ptr, out_ptr, scale_ptr, width,
    QUANT: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x = tl.load(x_ptr + row * width + column, mask=mask, other=0.0).to(tl.float32)
    store_row(out_ptr, scale_ptr, row, row * width + column, mask, x, QUANT)


@triton.jit
def _scale_int32(
    x_ptr, row_scale_ptr, column_scale_ptr, out_ptr, width,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    scale = tl.load(column_scale_ptr + column, mask=mask, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x = tl.load(x_ptr + row * width + column, mask=mask, other=0).to(tl.float32)
    y = x * tl.load(row_scale_ptr + row) * scale
    tl.store(out_ptr + row * width + column, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _embed(
    ids_ptr, rows_ptr, table_ptr, out_ptr, width,
    MAPPED: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    if PDL:  # the other way round than elsewhere: see the package's docstring
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    at = t
    if MAPPED:
        at = tl.maximum(tl.load(rows_ptr + t), 0).to(tl.int64)  # rows of padding compute something harmless
    token = tl.load(ids_ptr + at).to(tl.int64)
    x = tl.load(table_ptr + token * width + column, mask=mask, other=0.0)
    tl.store(out_ptr + t * width + column, x, mask=mask)


def _quant_of(out: torch.Tensor) -> int:
    return {torch.float8_e4m3fn: 1, torch.int8: 2}.get(out.dtype, 0)


def _warps(block: int) -> int:
    return max(1, min(16, block // 512))


def rms_norm(
    x_TH: torch.Tensor,
    weight_H: torch.Tensor,
    eps: float,
    out_TH: torch.Tensor,
    *,
    residual_TH: torch.Tensor | None = None,
    scale_T: torch.Tensor | None = None,
    rows_R: torch.Tensor | None = None,
    x_scales: Scales | None = None,
) -> None:
    """RMSNorm of each row, quantised per row when `out_TH` is int8 or float8 (`scale_T` is then written).

    With `residual_TH` it takes the norm of the sum and leaves the sum in `residual_TH`. With `rows_R` row r of the output
    is the norm of row `rows_R[r]`, and `residual_TH` stays as it is. With `x_scales` x is multiplied by them first.
    """
    block = next_power_of_2(x_TH.shape[1])
    _rms_norm[(out_TH.shape[0],)](
        x_TH, residual_TH, weight_H, out_TH, scale_T, rows_R, *(x_scales or (None, None)), x_TH.shape[1], eps,
        RESIDUAL=residual_TH is not None, GATHER=rows_R is not None, QUANT=_quant_of(out_TH),
        SCALED=x_scales is not None, BLOCK=block,
        num_warps=_warps(block), **options(x_TH.device),
    )  # fmt: skip


def silu_mul(
    gate_up: torch.Tensor,
    out_TI: torch.Tensor,
    scale_T: torch.Tensor | None = None,
    x_scales: Scales | None = None,
) -> None:
    """``silu(gate) * up`` of [T, 2 I], multiplied by `x_scales` first; quantised per row when `out_TI` is 8-bit."""
    rows, width = out_TI.shape
    quant = _quant_of(out_TI)
    block = next_power_of_2(width) if quant else min(1024, next_power_of_2(width))
    _silu_mul[(rows, -(-width // block))](
        gate_up, out_TI, scale_T, *(x_scales or (None, None)), width, QUANT=quant, SCALED=x_scales is not None,
        BLOCK=block,
        num_warps=_warps(block) if quant else 4, **options(gate_up.device),
    )  # fmt: skip


def quantize_rows(x: torch.Tensor, out: torch.Tensor, scale_T: torch.Tensor) -> None:
    """Each row of x in the 8-bit type of `out`, one scale a row; see `reference.quantize_kv`."""
    block = next_power_of_2(x.shape[1])
    _quantize_rows[(x.shape[0],)](
        x, out, scale_T, x.shape[1], QUANT=_quant_of(out), BLOCK=block,
        num_warps=_warps(block), **options(x.device),
    )  # fmt: skip


def scale_int32(
    x_TN: torch.Tensor, scale_T: torch.Tensor, scale_N: torch.Tensor, out_TN: torch.Tensor
) -> None:
    """``x * scale_T[:, None] * scale_N`` of an int32 product, in the type of `out_TN`."""
    rows, width = out_TN.shape
    block = min(1024, next_power_of_2(width))
    _scale_int32[(rows, -(-width // block))](
        x_TN, scale_T, scale_N, out_TN, width, BLOCK=block, num_warps=4, **options(x_TN.device)
    )


def embed(
    token_ids: torch.Tensor, table_VH: torch.Tensor, out_TH: torch.Tensor, rows_T: torch.Tensor | None = None
) -> None:
    """Row t of the output is the embedding of `token_ids[t]`, or of `token_ids[rows_T[t]]` (-1: anything)."""
    block = next_power_of_2(table_VH.shape[1])
    _embed[(out_TH.shape[0],)](
        token_ids, rows_T, table_VH, out_TH, table_VH.shape[1], MAPPED=rows_T is not None, BLOCK=block,
        num_warps=_warps(block), **options(table_VH.device),
    )  # fmt: skip
