"""Every GPU kernel against `kernels/reference.py` on awkward shapes: what the tests and `benchmarks.gpu` run first.

Inputs are random at each call, outputs are poisoned before it. The error is ||out - ref|| / ||ref|| against the float32
reference on the same inputs; a NaN or an element that nobody wrote is infinite error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inferoptim.kernels.triton.selfcheck.choices import choices
from inferoptim.kernels.triton.selfcheck.contexts import attention_, decode_few
from inferoptim.kernels.triton.selfcheck.inputs import Check, Inputs, relative_error
from inferoptim.kernels.triton.selfcheck.products import (
    few_rows,
    gemv_dense,
    gemv_fp8,
    gemv_int8,
    many_rows,
)
from inferoptim.kernels.triton.selfcheck.rows import rotation, rows

CHECKS: dict[str, Check] = {
    "rows": rows,
    "rope": rotation,
    "attention": attention_,
    "gemv_dense": gemv_dense,
    "gemv_int8": gemv_int8,
    "gemv_fp8": gemv_fp8,
    "few_rows": few_rows,
    "many_rows": many_rows,
    "decode_few": decode_few,
    "sampling": choices,
}
BFLOAT16_ALONE = ("few_rows", "decode_few")  # checks of kernels that take no other type


@dataclass(frozen=True, slots=True)
class Outcome:
    """One comparison."""

    name: str
    error: float  # relative, in norm
    limit: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # False for NaN


def run(
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
    *,
    seed: int = 0,
    small: bool = False,
    fp8: bool = True,
    checks: tuple[str, ...] = tuple(CHECKS),
) -> list[Outcome]:
    """Compare every kernel.

    Args:
        device: an NVIDIA GPU, or the CPU under Triton's interpreter.
        small: shapes that the interpreter ends in seconds.
        fp8: whether the device converts to float8.
        checks: names in `CHECKS`.
    """
    outcomes = []
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        for check in checks:
            inputs = Inputs(device, dtype, seed, small)
            for case, out, expected, limit in CHECKS[check](inputs):
                if "fp8" in case and not fp8:
                    continue
                outcomes.append(Outcome(f"{case} {name}", relative_error(out, expected), limit))
    return outcomes
