"""Units and how figures are written. Suffixes used in names: _s _ms _ns _bytes _tokens _usd _eur _j _w.

Quantities inside the code are SI (seconds, bytes, joules, watts); conversion happens only where a person reads.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024**2
GIB = 1024**3
NOT_MEASURED = "not measured"


def format_bytes(n_bytes: float | None) -> str:
    """Write a byte count with a binary prefix: 1536 → '1.5 KiB'; None → 'not measured'."""
    if n_bytes is None:
        return NOT_MEASURED
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.4g} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def format_seconds(seconds: float | None) -> str:
    """Write a duration in the unit a person would choose: 0.0042 → '4.2 ms'; None → 'not measured'."""
    if seconds is None:
        return NOT_MEASURED
    if abs(seconds) < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    if abs(seconds) < 1:
        return f"{seconds * 1e3:.3g} ms"
    if abs(seconds) < 120:
        return f"{seconds:.3g} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
