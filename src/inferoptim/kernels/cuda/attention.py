"""Decode attention over a paged cache in bfloat16 or float8; see `attention.cu`.

Same contract as `kernels/triton/attention.py`, whose kernels take every shape; these take what `takes` lets by.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch

from inferoptim.config import KernelSettings
from inferoptim.kernels.cuda import compile as compiler
from inferoptim.kernels.triton import attention
from inferoptim.kernels.triton.launch import CacheLayer

_SOURCE = Path(__file__).with_name("attention.cu")
_TOKENS = 16  # of a warp at a time, which lie in one KV block
_MOST_HEADS = 8
_MOST_ROWS = KernelSettings().cuda_attention_rows


class _Arguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "q", "k", "v", "k_scale", "v_scale", "rows", "positions", "limits", "blocks", "out", "part", "stat", "count",
        )),
        *((name, ctypes.c_int) for name in (
            "q_stride", "blocks_stride", "kv_heads", "group", "block_size", "splits", "window",
        )),
        ("scale", ctypes.c_float),
    )  # fmt: skip


def takes(q: torch.Tensor, cache: CacheLayer, group: int, most_rows: int = _MOST_ROWS) -> bool:
    """Whether this kernel can read the cache and is the fastest that can.

    Args:
        q: [S, ...]
        group: query heads that share a KV head.
        most_rows: of a bfloat16 cache: above, Triton's kernel is as fast or faster (docs/LOG.md).
    """
    _, block_size, _, head_dim = cache.k.shape
    fits = head_dim in (64, 128) and group <= _MOST_HEADS and block_size % _TOKENS == 0
    fp8 = cache.k.dtype == torch.float8_e4m3fn
    faster = fp8 or (cache.k.dtype == q.dtype and q.shape[0] <= most_rows)
    return fits and faster and compiler.unsupported(q.device, q.dtype) is None


@cache
def _kernel(head_dim: int, fp8: bool, warps: int, device: torch.device) -> Any:
    """One shape of the kernel, with as many blocks to a multiprocessor as its registers allow."""
    blocks = 2 if head_dim == 64 else 3 if warps == 4 else 1
    return compiler.load(
        _SOURCE, "decode", {"D": head_dim, "FP8": int(fp8), "WARPS": warps, "BLOCKS": blocks}, device
    )


def decode_attention(
    q: torch.Tensor,
    cache: CacheLayer,
    out: torch.Tensor,
    scratch: attention.DecodeScratch,
    *,
    num_heads: int,
    rows: torch.Tensor,
    positions: torch.Tensor,
    limits: torch.Tensor,
    block_tables: torch.Tensor,
    window: int | None = None,
) -> None:
    """Attention of one query a sequence; arguments as in `kernels/triton/attention.py`."""
    count = rows.shape[0]
    _, block_size, num_kv_heads, head_dim = cache.k.shape
    splits = attention.num_splits(count, num_kv_heads, scratch.programs)
    pointers = {
        "q": q, "k": cache.k, "v": cache.v, "k_scale": cache.k_scale, "v_scale": cache.v_scale, "rows": rows,
        "positions": positions, "limits": limits, "blocks": block_tables, "out": out, "part": scratch.part,
        "stat": scratch.stat, "count": scratch.count,
    }  # fmt: skip
    arguments = _Arguments(
        **{name: None if tensor is None else tensor.data_ptr() for name, tensor in pointers.items()},
        q_stride=q.stride(0), blocks_stride=block_tables.stride(0), kv_heads=num_kv_heads, group=num_heads // num_kv_heads,
        block_size=block_size, splits=splits, window=window or 0, scale=attention.softmax_scale(head_dim),
    )  # fmt: skip
    warps = 8 if head_dim == 64 or count <= 8 else 4
    function = _kernel(head_dim, cache.k.dtype == torch.float8_e4m3fn, warps, q.device)
    compiler.launch(function, (count, num_kv_heads, splits), 32 * warps, arguments, q.device)
