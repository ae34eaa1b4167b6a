"""Products of up to 32 rows with a weight matrix, fused with what stands around them in a layer.

Same contracts as `kernels/triton/gemv.py`, whose kernels take two rows and any 16-bit type; these take bfloat16.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from inferoptim.kernels.cuda import compile as compiler
from inferoptim.kernels.triton.launch import CacheLayer, next_power_of_2

_MOST_ROWS = {
    torch.bfloat16: 32,
    torch.float8_e4m3fn: 16,
}  # above, cuBLAS and kernels between are faster (docs/LOG.md)
_SOURCE = Path(__file__).with_name("linear.cu")
_PLAIN, _RESIDUAL, _SWIGLU, _ROTATE = range(4)
_FEW = 8  # most rows of `up_to_8`, which has this many pairs of weight rows and warps to a block
_PAIRS = 32  # of weight rows in a block of `up_to_32`
_FILLED = 264  # blocks of threads from which on a device has enough to do (two a multiprocessor of an H100)
_MOST_CLUSTER = 8  # blocks of a cluster that every device takes


class _Arguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "weight", "scale", "x", "norm", "out", "table", "rows", "positions", "limits", "blocks", "bias", "k", "v",
        )),
        *((name, ctypes.c_int) for name in (
            "M", "N", "K", "tiles", "blocks_stride", "block_size", "heads", "kv_heads", "head_dim",
        )),
        ("eps", ctypes.c_float),
    )  # fmt: skip


def most_rows(
    weights: Sequence[torch.Tensor], dtype: torch.dtype, device: torch.device, asked: int | None = None
) -> int:
    """Up to how many rows of x these kernels are the fastest that take all of `weights` [N, K]; 0 when they cannot.

    Args:
        dtype: of x.
        asked: instead of where the kernels were found to be the fastest; at most 32.
    """
    kinds = {weight.dtype for weight in weights}
    whole = all(weight.shape[1] * weight.element_size() % 16 == 0 for weight in weights)  # a lane's load
    if len(kinds) != 1 or not whole or compiler.unsupported(device, dtype) is not None:
        return 0
    found = _MOST_ROWS.get(kinds.pop(), 0)
    return found if asked is None or not found else asked


def shared_bytes(tiles: int, fp8: bool, stages: int) -> int:
    """Shared memory of a block of `up_to_32`: sums, squares, and one or two stages of x with the norm's weights."""
    rows, chunk = tiles * 8, _chunk(fp8)
    sums = 2 * _PAIRS * (rows + 8) + _MOST_CLUSTER * rows
    return 4 * sums + stages * (rows * (chunk * 2 + (16 if fp8 else 64)) + chunk * 2)


def cluster_size(tiles: int, chunks: int) -> int:
    """Blocks that share the features of a tile of weight rows: until the device is full, and no more than have work."""
    size = 1
    while size < _MOST_CLUSTER and tiles * size < _FILLED and size < chunks:
        size *= 2
    return size


def _chunk(fp8: bool) -> int:
    """Features that a block of `up_to_32` takes at a time."""
    return 512 if fp8 else 256


@cache
def _kernel(kind: int, tiles: int, fp8: bool, device: torch.device) -> Any:
    """A kernel; `tiles` of eight rows of x."""
    defines = {"KIND": kind, "FP8": int(fp8)}
    if tiles == 1:
        return compiler.load(_SOURCE, "up_to_8", {**defines, "BLOCKS": 2}, device)
    return compiler.load(
        _SOURCE,
        "up_to_32",
        {**defines, "TILES": tiles, "BLOCKS": 3},
        device,
        shared_bytes=shared_bytes(tiles, fp8, 2),
    )


def _launch(
    kind: int, weight: torch.Tensor, x: torch.Tensor, out: torch.Tensor, pairs: int, **fields: Any
) -> None:
    """Ask for one product; `pairs` are those of weight rows (see the source), `fields` go into its arguments."""
    (m, k), n = x.shape, weight.shape[0]
    fp8 = weight.dtype == torch.float8_e4m3fn
    tiles = next_power_of_2(-(-m // 8))
    arguments = _Arguments(
        weight=weight.data_ptr(), x=x.data_ptr(), out=out.data_ptr(), M=m, N=n, K=k,
        **{name: value.data_ptr() if isinstance(value, torch.Tensor) else value for name, value in fields.items()},
    )  # fmt: skip
    function = _kernel(kind, tiles, fp8, x.device)
    if tiles == 1:
        arguments.tiles = -(-pairs // _FEW)
        each = -(-arguments.tiles // _FILLED)
        compiler.launch(function, (-(-arguments.tiles // each), 1, 1), 32 * _FEW, arguments, x.device)
    else:
        row_tiles, chunks = -(-pairs // _PAIRS), -(-k // _chunk(fp8))
        cluster = cluster_size(row_tiles, chunks)
        compiler.launch(
            function, (row_tiles * cluster, 1, 1), 128, arguments, x.device,
            shared_bytes=shared_bytes(tiles, fp8, 2 if chunks > cluster else 1), cluster=cluster,
        )  # fmt: skip


def norm_linear(
    x: torch.Tensor,
    norm: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    eps: float,
    *,
    scale: torch.Tensor | None = None,
) -> None:
    """``rms_norm(x, norm) @ weight.T * scale`` into `out` [M, N]."""
    n = weight.shape[0]
    _launch(_PLAIN, weight, x, out, -(-n // 2), norm=norm, scale=scale, eps=eps)


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
    """Norm, QKV product, rotation and cache write of M decoding rows, the cache in the model's type; see `gemv`."""
    _, block_size, num_kv_heads, head_dim = cache.k.shape
    _launch(
        _ROTATE, weight, x, q, (num_heads + 2 * num_kv_heads) * head_dim // 2, norm=norm, scale=scale, eps=eps, table=table,
        rows=rows, positions=positions, limits=limits, blocks=block_tables, bias=bias, k=cache.k, v=cache.v,
        blocks_stride=block_tables.stride(0), block_size=block_size, heads=num_heads, kv_heads=num_kv_heads,
        head_dim=head_dim,
    )  # fmt: skip


def norm_gate_up(
    x: torch.Tensor,
    norm: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    eps: float,
    scale: torch.Tensor | None = None,
) -> None:
    """``silu_mul(rms_norm(x, norm) @ weight.T * scale)`` into `out` [M, I]."""
    _launch(_SWIGLU, weight, x, out, out.shape[1], norm=norm, scale=scale, eps=eps)


def linear_residual(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, scale: torch.Tensor | None = None
) -> None:
    """``residual += x @ weight.T * scale`` in place."""
    _launch(_RESIDUAL, weight, x, residual, -(-weight.shape[0] // 2), scale=scale)
