"""SmoothQuant: move the outliers of activations into the weights that read them, where they do less harm.

``x @ W.T == (x / s) @ (W * s).T`` for any positive s, and the division folds into whatever made x: the norm before
QKV and before gate/up, the up projection before down. So the checkpoint changes, the architecture does not.
Source: SmoothQuant (arXiv:2211.10438) eq. 3 and 4.

Legend: N output features · K input features · T calibration tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from inferoptim.kernels.reference import quantize_activations_int8
from inferoptim.quant.grid import Grid, round_trip
from inferoptim.quant.observers import weight_scales

ALPHAS = (0.0, 0.25, 0.5, 0.65, 0.8, 0.9)  # 0: leave as it is
_FLOOR = 1e-5
_TOKENS = 256  # enough to rank the exponents


def factors(activation_max_K: torch.Tensor, weight_NK: torch.Tensor, alpha: float) -> torch.Tensor:
    """s of eq. 4: ``max|x|^alpha / max|W|^(1 - alpha)`` for each input channel, float32 [K], never 0.

    Normalised to geometric mean 1: only ratios between channels matter, and folded weights keep their magnitude.
    """
    if alpha == 0:
        return torch.ones_like(activation_max_K)
    weight_max_K = weight_NK.float().abs().amax(0).clamp_min(_FLOOR)
    s = activation_max_K.float().clamp_min(_FLOOR).pow(alpha) / weight_max_K.pow(1 - alpha)
    return s / s.log().mean().exp()


def best_factors(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    grid: Grid,
    quantize_inputs: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, float]:
    """The factors, among `ALPHAS`, whose quantised product is nearest to the exact one.

    Args:
        x_TK: calibration inputs, float32.
        quantize_inputs: rounds inputs as the recipe will at run time.

    Returns:
        (s float32 [K], its alpha).
    """
    activation_max_K = x_TK.abs().amax(0)
    x_TK = x_TK[:: -(-len(x_TK) // _TOKENS)]
    exact = x_TK @ weight_NK.T
    best, least = (torch.ones_like(activation_max_K), 0.0), float("inf")
    for alpha in ALPHAS:
        s = factors(activation_max_K, weight_NK, alpha)
        scaled = weight_NK * s
        rounded = round_trip(scaled, weight_scales(scaled, grid, "max"), grid)
        error = float((quantize_inputs(x_TK / s) @ rounded.T - exact).square().sum())
        if error < least:
            best, least = (s, alpha), error
    return best


def int8_inputs(x_TK: torch.Tensor) -> torch.Tensor:
    """Inputs after dynamic int8 quantisation per token, in float32."""
    q, scale = quantize_activations_int8(x_TK)
    return q.float() * scale
