"""INT8 weights: from a dense linear layer to one scale per output channel."""

from __future__ import annotations

import torch

from inferoptim.kernels.reference import quantize_weight_int8
from inferoptim.quant.formats import DenseWeight, Int8Weight

_ELEMENTS = 1 << 18  # converted together: 1 MiB in float32


def quantize_linear(weight: DenseWeight, *, dynamic_activations: bool) -> Int8Weight:
    """Quantise a layer's weight; the bias stays as it is.

    Args:
        dynamic_activations: True for W8A8 (inputs quantised per token at run time), False for weight-only.
    """
    dense = weight.weight
    q = torch.empty(dense.shape, dtype=torch.int8, device=dense.device)
    scale = torch.empty(dense.shape[0], dtype=torch.float32, device=dense.device)
    # some rows at a time: float32 copies that stay in the cache, not fresh pages of memory at every operation
    step = max(1, _ELEMENTS // dense.shape[1]) if dense.device.type == "cpu" else dense.shape[0]
    for row in range(0, dense.shape[0], step):
        q[row : row + step], scale[row : row + step] = quantize_weight_int8(dense[row : row + step])
    return Int8Weight(q, scale, weight.bias, dynamic_activations)
