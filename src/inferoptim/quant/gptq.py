"""GPTQ: round one input channel at a time, and let the channels not yet rounded make up for the error.

Source: GPTQ (arXiv:2210.17323) algorithm 1, with the channels in order of falling Hessian diagonal ("act order") and
scales fixed beforehand, so that groups stay where they are in the checkpoint.

Legend: N output features · K input features · G groups of input features · T calibration tokens.
"""

from __future__ import annotations

import torch

from inferoptim.quant.grid import Grid, safe

_BLOCK = 128
_DAMPING = 0.01  # of the mean of the diagonal; raised until the matrix is positive definite


def hessian(x_TK: torch.Tensor) -> torch.Tensor:
    """``2 / T * X^T X`` of the inputs, float32 [K, K]: the second derivative of the squared output error."""
    x = x_TK.float()
    return (x.T @ x) * (2.0 / x.shape[0])


def compensate(
    weight_NK: torch.Tensor, scale_NG: torch.Tensor, hessian_KK: torch.Tensor, grid: Grid
) -> torch.Tensor:
    """Grid values whose product with the calibration inputs is nearest to the exact one.

    Args:
        scale_NG: fixed scales; G divides K.
        hessian_KK: from `hessian`.

    Returns:
        Grid values as float32 [N, K].
    """
    diagonal = hessian_KK.diagonal()
    order = diagonal.argsort(descending=True)
    w = weight_NK.float()[:, order].clone()
    k = w.shape[1]
    scale_NK = scale_NG.repeat_interleave(k // scale_NG.shape[1], dim=1)[:, order]
    inverse = _inverse_factor(hessian_KK[order][:, order])
    q = torch.empty_like(w)
    for first in range(0, k, _BLOCK):
        last = min(first + _BLOCK, k)
        block = w[:, first:last].clone()
        errors = torch.empty_like(block)
        for i in range(last - first):
            at = first + i
            scale = scale_NK[:, at]
            q[:, at] = grid.to_grid(block[:, i] / safe(scale))
            errors[:, i] = (block[:, i] - q[:, at] * scale) / inverse[at, at]
            block[:, i + 1 :] -= torch.outer(errors[:, i], inverse[at, at + 1 : last])
        w[:, last:] -= errors @ inverse[first:last, last:]
    return q[:, order.argsort()].contiguous()


def _inverse_factor(hessian_KK: torch.Tensor) -> torch.Tensor:
    """Upper U with ``U^T U`` = the inverse of the damped Hessian, float32 [K, K]."""
    h = hessian_KK.double().clone()
    dead = h.diagonal() == 0  # channels that no calibration token used
    h.diagonal()[dead] = 1.0
    damping = _DAMPING
    while True:
        damped = h.clone()
        damped.diagonal().add_(damping * h.diagonal().mean())
        # H = R R^T with R upper (a Cholesky factor of the matrix turned end to end); then R^-1 is the factor wanted
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed:
            identity = torch.eye(len(h), dtype=h.dtype)
            factor: torch.Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
            return factor.float()
        damping *= 10
