"""The measured ceilings of this machine, and their cache on disk.

A ceiling is a maximum: each figure is the best of several repeats, and a measurement made while other work was
running is improved, not replaced, by the next one.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Literal

from inferoptim.hardware.cpu import cpu_facts, usable_cores
from inferoptim.hardware.measured import MachineCeilings, cache_folder

Device = Literal["cpu", "cuda"]
BUSY = 0.2  # above this share of the CPU in other hands, a measurement is not trusted to be a maximum
_FORMAT = 1  # raise when a field or a method changes: older files are then measured again


def ceilings(
    device: Device = "cpu",
    num_threads: int | None = None,
    *,
    remeasure: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> MachineCeilings:
    """The ceilings of this machine: from the cache, or measured now (at most about 10 s) and cached.

    Args:
        device: 'cpu' or 'cuda' (the current CUDA device).
        num_threads: CPU threads; default: the cores this process may use.
        remeasure: Forget the cached figures.
        on_step: Called with what is being measured, for a progress line.
    """
    known = None if remeasure else cached_ceilings(device, num_threads)
    if known is not None and (known.others_busy or 0) <= BUSY:
        return known
    result = measure_ceilings(device, num_threads, on_step=on_step)
    if known is not None:
        result = _best_of(known, result)
    _write(_cache_file(device, num_threads), result)
    return result


def cached_ceilings(device: Device = "cpu", num_threads: int | None = None) -> MachineCeilings | None:
    """What was measured earlier on this machine with this torch; None if nothing was, or not readably."""
    try:
        stored = json.loads(_cache_file(device, num_threads).read_text())
        if stored.pop("format") != _FORMAT or set(stored) != {f.name for f in fields(MachineCeilings)}:
            return None
        return MachineCeilings(**{**stored, "notes": tuple(stored["notes"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def measure_ceilings(
    device: Device = "cpu", num_threads: int | None = None, *, on_step: Callable[[str], None] | None = None
) -> MachineCeilings:
    """Measure now, touching no cache but the compiled reader's. Arguments as in `ceilings`."""
    report = on_step or (lambda _step: None)
    started = perf_counter()
    busy_before = _others_busy()
    if device == "cuda":
        from inferoptim.hardware.measure_cuda import measure
    else:
        from inferoptim.hardware.measure_cpu import measure
    result = measure(num_threads or usable_cores(), report)
    busy = None if device == "cuda" else max(busy_before, _others_busy())  # a busy CPU slows no GPU kernel
    return replace(
        result,
        others_busy=busy,
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        took_s=perf_counter() - started,
    )


def _best_of(a: MachineCeilings, b: MachineCeilings) -> MachineCeilings:
    """The larger of each figure; the circumstances of the quieter measurement."""
    quieter = min(a, b, key=lambda c: c.others_busy if c.others_busy is not None else 1.0)
    cached = [c.cached_read_bytes_per_s for c in (a, b) if c.cached_read_bytes_per_s is not None]
    return replace(
        quieter,
        reads_bytes_per_s=_larger(a.reads_bytes_per_s, b.reads_bytes_per_s),
        gemm_flops_per_s=_larger(a.gemm_flops_per_s, b.gemm_flops_per_s),
        cached_read_bytes_per_s=max(cached, default=None),
    )


def _larger(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {key: max(source[key] for source in (a, b) if key in source) for key in {**a, **b}}


def _others_busy() -> float:
    """Share of the CPU in use right now, while this process sleeps: 0 on a quiet machine."""
    import psutil

    return float(psutil.cpu_percent(interval=0.2)) / 100


def _cache_file(device: Device, num_threads: int | None) -> Path:
    from importlib.metadata import version

    if device == "cuda":
        import torch

        name = torch.cuda.get_device_name()
    else:
        facts = cpu_facts()
        name = f"{facts.model}/{facts.usable_cores} cores/{num_threads or facts.usable_cores} threads"
    key = hashlib.sha256(f"{device}/{name}/torch {version('torch')}".encode()).hexdigest()[:16]
    return cache_folder() / f"{device}-{key}.json"


def _write(path: Path, result: MachineCeilings) -> None:
    """Write aside and rename; a cache that cannot be written costs a new measurement next time, nothing else."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".ceilings-", delete=False) as aside:
            json.dump({"format": _FORMAT, **asdict(result)}, aside, indent=1)
        os.replace(aside.name, path)
