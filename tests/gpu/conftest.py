"""Without a GPU, Triton's interpreter runs the kernels. It must be chosen before they are imported: hence here."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="torch sees no NVIDIA GPU here"))


@pytest.fixture
def device() -> torch.device:
    pytest.importorskip("triton", reason="triton is not installed (it comes with CUDA builds of torch)")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
