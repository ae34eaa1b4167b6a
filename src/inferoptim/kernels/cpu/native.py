"""The native step from Python: the C structures of step.cpp, and one object that owns a packed model.

Every tensor handed over is contiguous and on the CPU; the structures carry addresses only, so whoever calls keeps
the tensors alive for the length of the call (for `embedding`: as long as the model lives).
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch

LINEAR_KINDS = {torch.float32: 0, torch.bfloat16: 1}  # of a dense weight
INT8_DYNAMIC, INT8_WEIGHT_ONLY, GROUPS = 2, 3, 4
KV_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class LinearSource(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("kind", "n", "k", "group", "bits", "zero", "half")),
        *((name, c_void_p) for name in ("weight", "scale", "minimum", "bias")),
    )


class LayerSource(Structure):
    _fields_ = (
        *((name, LinearSource) for name in ("qkv", "o", "gate_up", "down")),
        *((name, c_void_p) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        ("window", c_int32),
    )


class ModelSource(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("hidden", "intermediate", "layers")),
        *((name, c_int32) for name in ("heads", "kv_heads", "head_dim", "vocab", "threads")),
        *((name, c_int32) for name in ("prompt_rows", "prompt_block", "tasks")),
        ("eps", c_float),
        ("embedding_type", c_int32),
        ("embedding", c_void_p),
        ("final_norm", c_void_p),
    )


class Step(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("tokens", "sequences", "rows", "table_width", "block_size")),
        *((name, c_int32) for name in ("kv_type", "greedy", "steps")),
        *(
            (name, c_void_p)
            for name in ("token_ids", "positions", "slots", "query_start", "context", "tables")
        ),
        *((name, c_void_p) for name in ("logit_rows", "cos", "sin")),
        *((name, c_void_p) for name in ("k", "v", "k_scale", "v_scale", "logits", "chosen")),
    )


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give the library's functions their types."""
    library.io_create.argtypes, library.io_create.restype = [POINTER(ModelSource)], c_void_p
    library.io_add_layer.argtypes, library.io_add_layer.restype = [c_void_p, POINTER(LayerSource)], c_int64
    library.io_set_head.argtypes, library.io_set_head.restype = [c_void_p, POINTER(LinearSource)], c_int64
    library.io_run.argtypes, library.io_run.restype = [c_void_p, POINTER(Step)], None
    library.io_destroy.argtypes, library.io_destroy.restype = [c_void_p], None
    library.io_isa.restype = ctypes.c_char_p
    return library


class Keep:
    """Tensors that a C call reads: kept alive here while it runs."""

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []

    def address(self, tensor: torch.Tensor | None, dtype: torch.dtype | None = None) -> int | None:
        """Address of the tensor, made contiguous and of `dtype`; None (a null pointer) for None."""
        if tensor is None:
            return None
        tensor = tensor.to(dtype=dtype or tensor.dtype).contiguous()
        self._tensors.append(tensor)
        return tensor.data_ptr()


class NativeModel:
    """A model packed for the native kernels. Not thread-safe: one step at a time.

    Args:
        library: from `build.load`, declared.
        source: shapes, and addresses of the embedding (must outlive this object) and the final norm (copied).
    """

    def __init__(self, library: Any, source: ModelSource) -> None:
        self._library = library
        self._handle = library.io_create(byref(source))
        self.weight_bytes = 0

    def add_layer(self, layer: LayerSource) -> None:
        """Pack the next layer; its sources are not needed afterwards."""
        self.weight_bytes += self._library.io_add_layer(self._handle, byref(layer))

    def set_head(self, head: LinearSource) -> None:
        """Pack the output head."""
        self.weight_bytes += self._library.io_set_head(self._handle, byref(head))

    def run(self, step: Step) -> None:
        """Compute one step; releases the interpreter lock for its length."""
        self._library.io_run(self._handle, byref(step))

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            self._library.io_destroy(handle)
