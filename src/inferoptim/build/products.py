"""Products of a build, as this machine computes them: in bfloat16 where the processor multiplies that faster, since the model runs in no finer type itself."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

from inferoptim.kernels import cpu
from inferoptim.kernels.reference import quantize_activations_int8

_NATIVE_GROUPS = (
    64,
    32,
    96,
    128,
)  # input channels that share a scale in the native step, the first that divides them


@lru_cache
def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def product(x: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """``x @ weight.T`` of float32 tensors, in float32: x [..., K] → [..., N]."""
    if not has_bfloat16():
        return F.linear(x, weight_NK)
    return F.linear(x.bfloat16(), weight_NK.bfloat16()).float()


def served_int8_inputs(x: torch.Tensor) -> torch.Tensor:
    """Inputs [..., K] after the int8 rounding of this machine's engine: per token, or per group of a token in the native step."""
    grouped = not torch.cuda.is_available() and cpu.available()
    group = next((g for g in _NATIVE_GROUPS if x.shape[-1] % g == 0), None) if grouped else None
    q, scale = quantize_activations_int8(x.flatten(0, -2), group)
    steps = q.view(len(q), scale.shape[-1], -1).float() * scale[..., None]
    return steps.view(x.shape)
