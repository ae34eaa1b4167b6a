"""INT8 weights: from a dense linear layer to one scale per output channel."""

from __future__ import annotations

import torch

from inferoptim.kernels.reference import quantize_weight_int8
from inferoptim.quant.formats import DenseWeight, Int8Weight


def quantize_linear(weight: DenseWeight, *, dynamic_activations: bool) -> Int8Weight:
    """Quantise a layer's weight; the bias stays as it is.

    Args:
        dynamic_activations: True for W8A8 (inputs quantised per token at run time), False for weight-only.
    """
    q, scale = quantize_weight_int8(weight.weight)
    return Int8Weight(q.contiguous(), scale.to(torch.float32), weight.bias, dynamic_activations)
