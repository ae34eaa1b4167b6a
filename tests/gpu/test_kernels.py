"""Every GPU kernel against the float32 reference: on the GPU, or on small shapes through Triton's interpreter and, for the
kernels in CUDA C++, through `tests/cuda_host`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cuda_host import use_cpu


@pytest.mark.parametrize(
    "check", ["rows", "rope", "attention", "gemv_dense", "gemv_int8", "gemv_fp8", "sampling"]
)
def test_kernels_compute_what_the_reference_defines(device: torch.device, check: str):
    from inferoptim.kernels.triton import selfcheck

    if device.type == "cpu":  # numpy has no bfloat16 for the interpreter
        outcomes = selfcheck.run(device, (torch.float16,), small=True, checks=(check,))
    else:
        fp8 = torch.cuda.get_device_capability(device) >= (8, 9)
        outcomes = selfcheck.run(device, (torch.bfloat16, torch.float16), fp8=fp8, checks=(check,))
    assert outcomes
    assert not [o for o in outcomes if not o.passed]


@pytest.mark.parametrize("check", ["few_rows", "decode_few"])
def test_kernels_in_cuda_cpp_compute_what_the_reference_defines(
    device: torch.device, check: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from inferoptim.kernels.triton import selfcheck

    if device.type == "cpu":
        use_cpu(monkeypatch, tmp_path)
    outcomes = selfcheck.run(device, (torch.bfloat16,), small=device.type == "cpu", checks=(check,))
    assert outcomes
    assert not [o for o in outcomes if not o.passed]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_prompts_gate_and_up_in_one_kernel(
    device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from inferoptim.kernels.triton import selfcheck

    if device.type == "cpu":
        use_cpu(monkeypatch, tmp_path)
    elif torch.cuda.get_device_capability(device)[0] != 9:
        pytest.skip("the kernel is for compute capability 9.0")
    outcomes = selfcheck.run(device, (dtype,), small=device.type == "cpu", checks=("many_rows",))
    assert outcomes
    assert not [o for o in outcomes if not o.passed]


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="there is a GPU: vocabularies there exceed the room anyway"
)
def test_thresholds_are_found_when_few_tokens_fit_beside_them(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
):
    from inferoptim.kernels.triton import sampling, selfcheck

    monkeypatch.setattr(sampling, "NEAR", 8)
    outcomes = selfcheck.run(device, (torch.float16,), small=True, checks=("sampling",))
    assert [o for o in outcomes if o.name.startswith("drawn tokens")]
    assert not [o for o in outcomes if not o.passed]
