"""FP8 (E4M3) weights: from a dense linear layer to one scale per output channel."""

from __future__ import annotations

import torch

from inferoptim.kernels.reference import quantize_kv
from inferoptim.quant.formats import DenseWeight, Fp8Weight


def quantize_linear_fp8(weight: DenseWeight) -> Fp8Weight:
    """Quantise a layer's weight; the bias stays as it is. A row of zeros has scale 0."""
    q, scale = quantize_kv(
        weight.weight, torch.float8_e4m3fn
    )  # the same rule, a weight row for a cached vector
    return Fp8Weight(q.contiguous(), scale.to(torch.float32), weight.bias)
