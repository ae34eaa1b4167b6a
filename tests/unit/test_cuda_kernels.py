"""The kernels in CUDA C++ as far as they can be looked at without a GPU: what Python hands them, and how they are cut."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed (it comes with CUDA builds of torch)")
from inferoptim.kernels.cuda import attention, linear
from inferoptim.kernels.cuda import compile as compiler


@pytest.mark.parametrize("module", [attention, linear])
def test_the_structure_that_python_fills_is_the_one_that_the_kernel_reads(module: ModuleType) -> None:
    source = Path(str(module.__file__)).with_suffix(".cu").read_text()
    body = re.search(r"struct Arguments \{.*?\n(.*?)\n\};", source, re.DOTALL)
    assert body is not None
    declared = []
    for line in body[1].splitlines():
        code = line.split("//")[0].strip()
        if not code:
            continue
        kind, names = re.fullmatch(r"(?:const )?([a-z0-9_ ]+?\*? ?)(\w+(?:, \w+)*);", code).groups()  # type: ignore[union-attr]
        pointer = kind.strip().endswith("*")
        plain = {"int": ctypes.c_int, "float": ctypes.c_float}.get(kind.strip())
        declared += [(name, ctypes.c_void_p if pointer else plain) for name in names.split(", ")]
    assert declared == list(module._Arguments._fields_)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("tiles", [2, 4])
def test_a_block_of_the_largest_shape_fits_a_multiprocessor(tiles: int, fp8: bool) -> None:
    assert linear.shared_bytes(tiles, fp8, 2) <= 227 * 1024


@pytest.mark.parametrize(("row_tiles", "chunks"), [(40, 8), (176, 8), (32, 22), (1, 1), (5, 3), (900, 56)])
def test_a_cluster_grows_only_while_the_device_is_not_full_and_features_are_left(
    row_tiles: int, chunks: int
) -> None:
    size = linear.cluster_size(row_tiles, chunks)
    assert size in (1, 2, 4, 8)
    assert size == 1 or size // 2 < chunks
    assert size == 1 or row_tiles * size // 2 < linear._FILLED


def test_other_devices_types_and_mixed_weights_are_left_to_other_kernels() -> None:
    weight = torch.zeros(4, 16, dtype=torch.bfloat16)
    assert linear.most_rows([weight], torch.bfloat16, torch.device("cpu")) == 0
    assert linear.most_rows([weight, weight.float()], torch.bfloat16, torch.device("cuda")) == 0
    assert linear.most_rows([weight[:, :12].contiguous()], torch.bfloat16, torch.device("cuda")) == 0


def test_a_disk_that_is_full_leaves_nothing_of_a_compiled_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "native" / "k.cubin"
    compiler._keep_file(path, b"whole")
    assert path.read_bytes() == b"whole"
    path.unlink()
    real = Path.write_bytes

    def cut_short(self: Path, data: bytes) -> int:
        real(self, data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", cut_short)
    compiler._keep_file(path, b"whole")
    assert list(path.parent.iterdir()) == []
    assert "No space left" in caplog.text
