"""Memory of the KV-cache: how many blocks a budget holds, and the tensors themselves."""

from __future__ import annotations

import math
import mmap

import torch

from inferoptim.errors import CapacityError
from inferoptim.models.batch import KVCache, KVLayer
from inferoptim.models.spec import ModelSpec
from inferoptim.units import format_bytes

_QUANTISED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
_SCALE_BYTES = 4


def kv_dtype(kv_quantization: str, model_dtype: torch.dtype) -> torch.dtype:
    """Element type of the cache: the model's, unless `kv_quantization` names another."""
    return _QUANTISED.get(kv_quantization, model_dtype)


def bytes_per_token(spec: ModelSpec, model_dtype: torch.dtype, kv_quantization: str = "none") -> int:
    """Bytes that one token takes over all layers, K and V, scales included."""
    scale = _SCALE_BYTES if kv_quantization != "none" else 0
    return int(spec.kv_bytes_per_token(kv_dtype(kv_quantization, model_dtype).itemsize, scale))


def num_blocks_within(budget_bytes: int, block_size: int, token_bytes: int, max_model_len: int) -> int:
    """Blocks that fit the budget.

    Raises:
        CapacityError: not even one sequence of `max_model_len` tokens fits; says what would.
    """
    num_blocks = budget_bytes // (block_size * token_bytes)
    needed = -(-max_model_len // block_size)
    if num_blocks < needed:
        fits = num_blocks * block_size
        raise CapacityError(
            f"KV budget of {format_bytes(budget_bytes)} holds {fits} tokens, but one sequence may take {max_model_len}: "
            f"set kv_budget_bytes >= {needed * block_size * token_bytes} or max_model_len <= {fits}"
        )
    return num_blocks


def allocate_kv_cache(
    spec: ModelSpec,
    num_blocks: int,
    block_size: int,
    *,
    model_dtype: torch.dtype,
    device: torch.device,
    kv_quantization: str = "none",
) -> KVCache:
    """Allocate the cache, [num_blocks, block_size, Hkv, D] a layer for K and for V.

    On a CPU the pages are touched only when tokens are written, so an unused budget costs no resident memory.

    Raises:
        CapacityError: the device has too little free memory.
    """
    dtype = kv_dtype(kv_quantization, model_dtype)
    shape = (num_blocks, block_size, spec.num_kv_heads, spec.head_dim)
    quantised = kv_quantization != "none"

    def tensor(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=device)
        # torch.zeros writes its zeros; the pages of an anonymous map are zero and resident once written to, not before
        pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
        return torch.frombuffer(pages, dtype=dtype).view(shape)

    try:
        layers = tuple(
            KVLayer(
                k=tensor(shape, dtype),
                v=tensor(shape, dtype),
                k_scale=tensor(shape[:3], torch.float32) if quantised else None,
                v_scale=tensor(shape[:3], torch.float32) if quantised else None,
            )
            for _ in range(spec.num_layers)
        )
    except (torch.OutOfMemoryError, RuntimeError, OSError) as error:  # OSError: mmap
        needed = num_blocks * block_size * bytes_per_token(spec, model_dtype, kv_quantization)
        raise CapacityError(
            f"cannot allocate {format_bytes(needed)} of KV-cache on {device}: lower kv_budget_bytes or max_model_len"
        ) from error
    return KVCache(layers=layers, block_size=block_size, num_blocks=num_blocks)
