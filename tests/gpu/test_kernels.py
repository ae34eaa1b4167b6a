"""Every Triton kernel against the float32 reference: on the GPU, or on small shapes through Triton's interpreter."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize(
    "check",
    ["_rows", "_rope", "_attention", "_gemv_dense", "_gemv_int8", "_gemv_fp8", "_sampling"],
)
def test_kernels_compute_what_the_reference_defines(device: torch.device, check: str):
    from inferoptim.kernels.triton import selfcheck

    checks = tuple(c for c in selfcheck.CHECKS if c.__name__ == check)
    assert len(checks) == 1
    if device.type == "cpu":  # numpy has no bfloat16 for the interpreter
        outcomes = selfcheck.run(device, (torch.float16,), small=True, checks=checks)
    else:
        fp8 = torch.cuda.get_device_capability(device) >= (8, 9)
        outcomes = selfcheck.run(device, (torch.bfloat16, torch.float16), fp8=fp8, checks=checks)
    assert outcomes
    assert not [o for o in outcomes if not o.passed]
