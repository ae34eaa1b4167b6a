"""Gate, up and SwiGLU of a prompt's many rows in one kernel of compute capability 9.0; see `prompts.cu`."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch

from inferoptim.config import KernelSettings
from inferoptim.kernels.cuda import compile as compiler
from inferoptim.kernels.cuda import tensor_map
from inferoptim.kernels.triton import launch as triton_launch

_SOURCE = Path(__file__).with_name("prompts.cu")
_LEAST_ROWS = KernelSettings().prompt_kernel_rows
_ROWS, _COLUMNS, _DEPTH, _CLUSTER, _STAGES = 128, 128, 64, 2, 4  # as in the source
# x, gate and up of every stage, a tile of out, two barriers a stage.
_SHARED_BYTES = _STAGES * 3 * 128 * _DEPTH * 2 + _ROWS * _COLUMNS * 2 + _STAGES * 16


class _Arguments(ctypes.Structure):
    _fields_ = (
        *((name, tensor_map.TensorMap) for name in ("x", "weight", "out")),
        *((name, ctypes.c_int) for name in ("row_pairs", "column_tiles", "steps", "columns")),
        ("_to_64", ctypes.c_int * 12),  # the kernel's structure is as long as its alignment wants
    )


def takes(x: torch.Tensor, weight: torch.Tensor, least_rows: int = _LEAST_ROWS) -> bool:
    """Whether this kernel can compute the product, and is faster than two.

    Args:
        x: [T, K]
        weight: [2 * I, K], gate above up.
        least_rows: under this many, cuBLAS and a kernel after it serve.
    """
    (rows, features), columns = x.shape, weight.shape[0] // 2
    fits = x.dtype in (torch.bfloat16, torch.float16) and weight.dtype == x.dtype
    whole = features % 8 == 0 and columns % 8 == 0 and x.is_contiguous() and weight.is_contiguous()
    if not (fits and whole and rows >= least_rows):
        return False
    capability = triton_launch.capability(x.device)
    return (
        capability is not None
        and capability[0] == 9
        and compiler.unsupported(x.device, torch.bfloat16) is None
    )


@cache
def _kernel(half: bool, device: torch.device) -> Any:
    return compiler.load(
        _SOURCE, "gate_up", {"FLOAT16": int(half)}, device, shared_bytes=_SHARED_BYTES, own_architecture=True
    )


def gate_up(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """``silu_mul(x @ weight.T)`` into `out` [T, I], of what `takes` lets by; the sums are not rounded in between."""
    (rows, features), columns = x.shape, weight.shape[0] // 2
    function = _kernel(x.dtype == torch.float16, x.device)
    if function is None:  # compiled ahead, on no device
        return
    arguments = _Arguments(
        x=tensor_map.of(x, _ROWS), weight=tensor_map.of(weight, _COLUMNS), out=tensor_map.of(out, _ROWS // 2),
        row_pairs=-(-rows // (_ROWS * _CLUSTER)), column_tiles=-(-columns // _COLUMNS), steps=-(-features // _DEPTH),
        columns=columns,
    )  # fmt: skip
    clusters = min(
        arguments.row_pairs * arguments.column_tiles, compiler.multiprocessors(x.device) // _CLUSTER
    )
    compiler.launch(
        function,
        (clusters * _CLUSTER, 1, 1),
        384,
        arguments,
        x.device,
        shared_bytes=_SHARED_BYTES,
        cluster=_CLUSTER,
    )
