"""Measure the current CUDA device: memory reads (copy, reduction, matrix-vector) and matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inferoptim.errors import UnsupportedError
from inferoptim.hardware.measured import MachineCeilings
from inferoptim.units import GIB

GEMM_SIZE = 8192
REPEATS = 10


def measure(num_threads: int, on_step: Callable[[str], None]) -> MachineCeilings:
    """Best read and product rates of the current CUDA device; `num_threads` plays no part.

    Raises:
        UnsupportedError: no CUDA device, or no CUDA in this build of torch.
    """
    import torch

    if not torch.cuda.is_available():
        raise UnsupportedError("no usable CUDA device here: `inferoptim doctor` says what is missing")
    with torch.inference_mode():
        on_step("memory reads")
        reads = _measure_reads()
        on_step("matrix products")
        gemm, notes = _measure_gemm()
    torch.cuda.empty_cache()
    return MachineCeilings(
        device=torch.cuda.get_device_name(),
        reads_bytes_per_s=reads,
        stream_buffer_bytes=GIB,
        gemm_flops_per_s=gemm,
        torch_version=torch.__version__,
        notes=tuple(notes),
    )


def _measure_reads() -> dict[str, float]:
    import torch

    rows, columns = 16384, 32768  # 1 GiB of bf16: far beyond any L2
    matrix = torch.randn(rows, columns, dtype=torch.bfloat16, device="cuda")
    vector = torch.randn(columns, dtype=torch.bfloat16, device="cuda")
    other = torch.empty_like(matrix)
    flat = matrix.view(torch.float32)
    return {
        "matrix-vector": _rate(lambda: torch.mv(matrix, vector), GIB),
        "reduction": _rate(lambda: flat.sum(), GIB),
        "copy": _rate(lambda: other.copy_(matrix), 2 * GIB),  # read and written
    }


def _measure_gemm() -> tuple[dict[str, float], list[str]]:
    import torch

    # Random values: on an H100, products of ones ran 14-25 % faster than real data does (fewer bits toggle, less power).
    n, flops = GEMM_SIZE, 2.0 * GEMM_SIZE**3
    dense = torch.randn(n, n, dtype=torch.bfloat16, device="cuda")
    products: dict[str, Callable[[], object]] = {"bfloat16": lambda: torch.mm(dense, dense)}
    whole = torch.randint(-127, 128, (n, n), dtype=torch.int8, device="cuda")
    int_mm: Any = torch._int_mm
    products["int8"] = lambda: int_mm(whole, whole.t())
    notes: list[str] = []
    if torch.cuda.get_device_capability() >= (8, 9):
        small = torch.randn(n, n, device="cuda").to(torch.float8_e4m3fn)
        one = torch.ones((), device="cuda")
        scaled_mm: Any = torch._scaled_mm
        products["fp8"] = lambda: scaled_mm(
            small, small.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    else:
        notes.append("fp8 products: this device has none (compute capability under 8.9)")
    rates: dict[str, float] = {}
    for name, run in products.items():
        try:
            rates[name] = _rate(run, flops)
        except RuntimeError as error:  # a build or a device without that kernel
            notes.append(f"{name} products: not measured ({str(error).splitlines()[0]})")
    return rates, notes


def _rate(run: Callable[[], object], work: float) -> float:
    """Work per second of the fastest of several repeats, timed on the device."""
    import torch

    event: Any = torch.cuda.Event
    for _ in range(3):
        run()
    best_ms = float("inf")
    for _ in range(REPEATS):
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        best_ms = min(best_ms, start.elapsed_time(end))
    return work / (best_ms / 1e3)
