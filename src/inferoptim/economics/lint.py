"""Is a published benchmark row possible? Each physical bound, with the bound that the row breaks named.

The verdict is one-sided: a row that passes is possible, not proven. Every bound is taken in the row's favour
(datasheet peaks, nothing but weights read, perfect overlap).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from inferoptim.economics.checks import positive
from inferoptim.economics.roofline import BYTES_OF, Shape, kv_bytes_per_token
from inferoptim.errors import ConfigError
from inferoptim.hardware.peaks import DevicePeaks

TOLERANCE = 0.02  # a row printed to two or three digits may sit that far below a bound by rounding alone


@dataclass(frozen=True, slots=True)
class Row:
    """One published row. Latency and throughput are of the same experiment; None = not published."""

    shape: Shape
    precision: str  # of the weights
    device: DevicePeaks
    output_tokens: int
    input_tokens: int = 0
    latency_s: float | None = None
    tokens_per_s: float | None = None  # output tokens of the whole system
    concurrency: int | None = None
    gpus: int = 1
    memory_bytes: float | None = None  # published use, per GPU
    tokens_per_step: float = 1.0  # above 1 with speculative decoding
    label: str = ""

    def __post_init__(self) -> None:
        if self.precision not in BYTES_OF:
            raise ConfigError(f"unknown precision {self.precision!r}: one of {', '.join(BYTES_OF)}")
        positive("output tokens", self.output_tokens)
        positive("GPUs", self.gpus)
        if positive("tokens per step", self.tokens_per_step) < 1:
            raise ConfigError(f"tokens per step is {self.tokens_per_step:g}: at least 1")
        for name in ("latency_s", "tokens_per_s", "concurrency", "memory_bytes"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        if self.input_tokens < 0:
            raise ConfigError(f"input tokens is {self.input_tokens}: must not be negative")
        if self.latency_s is None and self.tokens_per_s is None and self.memory_bytes is None:
            raise ConfigError("nothing to check: give a latency, a throughput or a memory use")


@dataclass(frozen=True, slots=True)
class Check:
    """One bound and whether the row keeps it. `kept` None = the row does not publish what the bound needs."""

    name: str
    kept: bool | None
    text: str
    limit: float | None = None
    published: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """All checks of one row."""

    row: Row
    checks: tuple[Check, ...] = field(default=())

    @property
    def possible(self) -> bool:
        """False as soon as one bound is broken."""
        return all(check.kept is not False for check in self.checks)

    @property
    def broken(self) -> tuple[Check, ...]:
        """The bounds that the row breaks."""
        return tuple(check for check in self.checks if check.kept is False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "label": self.row.label,
            "model": self.row.shape.name,
            "precision": self.row.precision,
            "device": self.row.device.name,
            "possible": self.possible,
            "broken": [check.name for check in self.broken],
            "checks": [{name: getattr(c, name) for name in Check.__dataclass_fields__} for c in self.checks],
        }


def lint_row(row: Row) -> Verdict:
    """Check one row against every bound that its figures allow."""
    checks = [
        _latency_bandwidth(row),
        _latency_compute(row),
        _throughput_bandwidth(row),
        _throughput_compute(row),
    ]
    checks += [_same_work(row), _memory(row)]
    return Verdict(row, tuple(checks))


def _weights(row: Row) -> float:
    """Bytes of weights that each decode step reads, over all GPUs."""
    return row.shape.read_per_step * BYTES_OF[row.precision]


def _bandwidth(row: Row) -> float:
    return row.device.bandwidth_bytes_per_s * row.gpus


def _peak(row: Row) -> float | None:
    """FLOP/s of all GPUs: the fastest type that may compute with weights of this precision; None = not stated."""
    device = row.device
    if row.precision == "fp4" or device.bf16_flops_per_s is None:
        return None
    peaks = {
        "fp8": (device.fp8_flops_per_s, device.bf16_flops_per_s),
        "int8": (device.int8_ops_per_s, device.bf16_flops_per_s),
        "int4": (device.int8_ops_per_s, device.fp8_flops_per_s, device.bf16_flops_per_s),
    }.get(row.precision, (device.bf16_flops_per_s,))
    return max(peak for peak in peaks if peak) * row.gpus


def _steps(row: Row) -> int:
    """Weight reads that a request cannot do without: one prefill gives the first token, then one a step."""
    return 1 + math.ceil((row.output_tokens - 1) / row.tokens_per_step)


def _latency_at_least(name: str, row: Row, floor: float, text: str) -> Check:
    if row.latency_s is None:
        return Check(name, None, "no latency published", floor)
    return Check(name, row.latency_s >= floor * (1 - TOLERANCE), text, floor, row.latency_s)


def _throughput_at_most(name: str, row: Row, limit: float, text: str) -> Check:
    if row.tokens_per_s is None:
        return Check(name, None, "no throughput published", limit)
    return Check(name, row.tokens_per_s <= limit * (1 + TOLERANCE), text, limit, row.tokens_per_s)


def _latency_bandwidth(row: Row) -> Check:
    name = "latency: memory bandwidth"
    step = _weights(row) / _bandwidth(row)
    floor = _steps(row) * step
    text = (
        f"{_weights(row) / 1e9:.2f} GB of weights per step at {_bandwidth(row) / 1e9:.0f} GB/s is at least "
        f"{step * 1e3:.2f} ms; {_steps(row)} steps take at least {floor:.3g} s at any batch"
    )
    check = _latency_at_least(name, row, floor, text)
    if check.kept is False and row.latency_s is not None:
        room = f"; {row.latency_s:.4g} s leaves room for {math.floor(row.latency_s / step)} steps"
        return replace(check, text=text + room)
    return check


def _latency_compute(row: Row) -> Check:
    name = "latency: arithmetic"
    peak = _peak(row)
    if peak is None:
        return Check(name, None, f"{row.device.name} states no peak at {row.precision}")
    floor = (
        2.0
        * (row.shape.body * (row.input_tokens + row.output_tokens) + row.shape.head * row.output_tokens)
        / peak
    )
    text = f"2 FLOPs a weight and token at {peak / 1e12:.0f} TFLOP/s: at least {floor:.3g} s"
    return _latency_at_least(name, row, floor, text)


def _throughput_bandwidth(row: Row) -> Check:
    """Output tokens/s ≤ batch / (weights + batch × mean KV) × bandwidth, at the largest batch that memory holds."""
    name = "throughput: memory bandwidth"
    shape = row.shape
    kv_token = kv_bytes_per_token(
        shape.layers, shape.kv_heads, shape.head_dim, min(2.0, BYTES_OF[row.precision])
    )
    mean_kv = kv_token * (row.input_tokens + row.output_tokens / 2.0)
    room = row.device.memory_bytes * row.gpus - shape.stored * BYTES_OF[row.precision]
    if room <= 0:
        return Check(name, None, "the weights do not fit the card: see memory")
    fits = max(1.0, room / max(mean_kv, 1.0))
    batch = float(row.concurrency) if row.concurrency else fits
    limit = batch * row.tokens_per_step / ((_weights(row) + batch * mean_kv) / _bandwidth(row))
    origin = "published" if row.concurrency else "the most that memory holds"
    text = f"at batch {batch:.0f} ({origin}) at most {limit:,.0f} output tok/s"
    return _throughput_at_most(name, row, limit, text)


def _throughput_compute(row: Row) -> Check:
    name = "throughput: arithmetic"
    peak = _peak(row)
    if peak is None:
        return Check(name, None, f"{row.device.name} states no peak at {row.precision}")
    per_output = 2.0 * (row.shape.read_per_step + row.shape.body * row.input_tokens / row.output_tokens)
    limit = peak / per_output
    text = f"prompt and output at {peak / 1e12:.0f} TFLOP/s: at most {limit:,.0f} output tok/s"
    return _throughput_at_most(name, row, limit, text)


def _same_work(row: Row) -> Check:
    """Little's law: throughput × latency = tokens in flight, so a concurrency that must be a whole number ≥ 1."""
    name = "consistency: throughput × latency"
    if row.latency_s is None or row.tokens_per_s is None:
        return Check(name, None, "needs both a latency and a throughput")
    per_call = row.tokens_per_s * row.latency_s
    requests = per_call / row.output_tokens
    text = f"{per_call:.0f} tokens per call = {requests:.2f} requests of {row.output_tokens} output tokens in flight"
    if row.concurrency is None:
        return Check(name, None, text + "; no concurrency published to hold it against", None, requests)
    # Ramp-up and drain leave mean concurrency below the stated one, never above it.
    kept = requests <= row.concurrency * 1.05
    return Check(name, kept, text + f", {row.concurrency} stated", float(row.concurrency), requests)


def _memory(row: Row) -> Check:
    name = "memory"
    need = row.shape.stored * BYTES_OF[row.precision] / row.gpus
    have = row.device.memory_bytes
    if need > have:
        return Check(
            name, False, f"{need / 1e9:.1f} GB of weights per GPU do not fit {have / 1e9:.0f} GB", have, need
        )
    if row.memory_bytes is None:
        return Check(
            name, True, f"{need / 1e9:.2f} GB of weights per GPU fit {have / 1e9:.0f} GB", have, need
        )
    kept = row.memory_bytes >= need * (1 - TOLERANCE) and row.memory_bytes <= have * (1 + TOLERANCE)
    return Check(
        name,
        kept,
        f"{row.memory_bytes / 1e9:.2f} GB published; the weights alone take {need / 1e9:.2f}",
        need,
        row.memory_bytes,
    )


def compare_rows(rows: tuple[Row, ...]) -> Check | None:
    """Rows side by side (a speed-up): did they do the same work? None where it cannot be told."""
    calls = [r.tokens_per_s * r.latency_s for r in rows if r.tokens_per_s and r.latency_s]
    if len(calls) < 2:
        return None
    low, high = min(calls), max(calls)
    kept = high <= low * 1.05
    tokens = " and ".join(f"{c:.0f}" for c in calls)
    text = f"throughput × latency is {tokens} tokens a call" + ("" if kept else ": not the same work")
    return Check("comparison: equal work", kept, text, low, high)
