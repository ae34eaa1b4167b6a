"""GPTQ: round one input channel at a time, and let the channels not yet rounded make up for the error.

Source: GPTQ (arXiv:2210.17323) algorithm 1, with the channels in order of falling Hessian diagonal ("act order") and
scales fixed beforehand, so that groups stay where they are in the checkpoint. The weight that is rounded is first moved
to fit the inputs that it will really get, in closed form (the aim of GPTAQ, arXiv:2504.02692).

Legend: N output features · K input features · G groups of input features · T calibration tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from inferoptim.kernels.threads import one_thread
from inferoptim.quant.grid import Grid, safe

_BLOCK = 32  # channels updated one by one before the rest is updated by a matrix product
_DAMPING = 0.05  # of the mean of the diagonal; raised until the matrix is positive definite
# The same for moving weights. A few thousand tokens say little of the input directions that they hardly use: with 0.01 the
# error fell on them and rose on other texts (docs/LOG.md).
_MOVE_DAMPING = 1.0


@dataclass(frozen=True, slots=True)
class Compensation:
    """What the calibration inputs of a product say, factored once.

    Attributes:
        order: input channels by falling Hessian diagonal, int64 [K].
        factor_KK: upper U with ``U^T U`` = the inverse of the damped Hessian ``2 / T * X^T X + d I``, in that order.
        shift_KK: ``(C - H) (H + e I)^-1`` with ``C = 2 / T * X_exact^T X``, in the checkpoint's order: what ridge regression
            adds to a weight, relative to it, so that it makes up for the difference between X and the exact inputs.
    """

    order: torch.Tensor = field(repr=False)
    factor_KK: torch.Tensor = field(repr=False)
    shift_KK: torch.Tensor = field(repr=False)

    def moved(self, weight_NK: torch.Tensor) -> torch.Tensor:
        """The weight whose product with the inputs that it will get is nearest to the exact product with exact inputs."""
        return weight_NK + weight_NK @ self.shift_KK


def compensation(x_TK: torch.Tensor, exact_TK: torch.Tensor) -> Compensation:
    """From the inputs that the quantised product will get (rounded, behind quantised layers) and the original model's."""
    x = x_TK.float()
    hessian = (x.T @ x) * (2.0 / len(x))
    order = hessian.diagonal().argsort(descending=True)
    factor = _inverse_factor(hessian[order][:, order], _DAMPING)
    # of a correction that is damped by its own size, 8 bits are enough
    difference = ((exact_TK.float() - x).bfloat16().T @ x.bfloat16()).float() * (2.0 / len(x))
    shift = torch.cholesky_solve(difference.T, _damped_factor(hessian, _MOVE_DAMPING)).T
    return Compensation(order, factor, shift)


@one_thread()
def compensate(
    weight_NK: torch.Tensor,
    scale_NG: torch.Tensor,
    by: Compensation,
    grid: Grid,
    zero_NG: torch.Tensor | None = None,
) -> torch.Tensor:
    """Grid values whose product with the calibration inputs is nearest to the exact one.

    Args:
        scale_NG: fixed scales; G divides K.
        zero_NG: grid values that stand for 0; None = 0 itself.

    Returns:
        Grid values as float32 [N, K].
    """
    w_KN = weight_NK.float().T[by.order].contiguous()
    k = len(w_KN)
    group = k // scale_NG.shape[1]
    scale_KN = scale_NG.T.repeat_interleave(group, dim=0)[by.order]
    zero_KN = None if zero_NG is None else zero_NG.T.repeat_interleave(group, dim=0)[by.order]
    divisor_KN, diagonal = safe(scale_KN), by.factor_KK.diagonal().tolist()
    q_KN = torch.empty_like(w_KN)
    for first in range(0, k, _BLOCK):
        last = min(first + _BLOCK, k)
        errors = torch.empty_like(w_KN[first:last])
        for at in range(first, last):
            w, scale = w_KN[at], scale_KN[at]
            if zero_KN is None:
                q = grid.to_grid(w / divisor_KN[at])
                error = torch.addcmul(w, q, scale, value=-1)
            else:
                q = grid.to_grid(w / divisor_KN[at] + zero_KN[at])
                error = torch.addcmul(w, q - zero_KN[at], scale, value=-1)
            q_KN[at] = q
            error /= diagonal[at]
            errors[at - first] = error
            w_KN[at + 1 : last].addr_(by.factor_KK[at, at + 1 : last], error, alpha=-1)
        w_KN[last:].addmm_(by.factor_KK[first:last, last:].T, errors, alpha=-1)
    return q_KN[by.order.argsort()].T.contiguous()


def _inverse_factor(hessian_KK: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper U with ``U^T U`` = the inverse of the damped Hessian, float32 [K, K]."""
    # H = R R^T with R upper (a Cholesky factor of the matrix turned end to end); then R^-1 is the factor wanted
    lower = _damped_factor(hessian_KK.flip(0, 1), damping)
    factor: torch.Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), torch.eye(len(lower)), upper=True)
    return factor


def _damped_factor(hessian_KK: torch.Tensor, damping: float) -> torch.Tensor:
    """Lower Cholesky factor of ``H + d I``, d `damping` times the mean of the diagonal, more where it must be."""
    h = hessian_KK.clone()
    dead = h.diagonal() == 0  # channels that no calibration token used
    h.diagonal()[dead] = 1.0
    while True:
        damped = h.clone()
        damped.diagonal().add_(damping * h.diagonal().mean())
        lower: torch.Tensor
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return lower
        damping *= 10
