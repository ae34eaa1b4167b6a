"""When requests are sent: open-loop arrival times, drawn before the clock starts.

An open loop sends at its times whatever the server does, so a slow server meets a growing queue, as it would in
production; a closed loop waits for an answer before it sends again, and so hides overload.
Source: Schroeder, Wierman, Harchol-Balter, "Open Versus Closed: A Cautionary Tale", NSDI 2006.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from inferoptim.errors import ConfigError

Process = Literal["poisson", "gamma", "constant", "trace"]
MAX_REQUESTS = 5_000_000
_RAMP = re.compile(r"\s*([0-9.eE+-]+)\s*\.\.\s*([0-9.eE+-]+)\s*")


@dataclass(frozen=True, slots=True)
class Level:
    """One level of load: `first` = `last`, or a straight ramp between them over the stage."""

    first: float
    last: float

    @property
    def mean(self) -> float:
        """Over the stage."""
        return (self.first + self.last) / 2

    def __str__(self) -> str:
        return f"{self.first:g}" if self.first == self.last else f"{self.first:g}..{self.last:g}"


def parse_levels(text: str, what: str, *, whole: bool = False) -> tuple[Level, ...]:
    """``4`` · ``2,4,8`` (one stage each) · ``1..10`` (a ramp) · any mixture.

    Raises:
        ConfigError: not positive numbers, or a fraction where whole numbers are needed.
    """
    levels = []
    for part in text.split(","):
        match = _RAMP.fullmatch(part)
        try:
            values = [float(p) for p in ((match[1], match[2]) if match else (part,))]
        except ValueError:
            values = []
        if not values or any(not 0 < v < 1e6 for v in values) or (whole and any(v % 1 for v in values)):
            kind = "whole numbers" if whole else "numbers"
            raise ConfigError(
                f"{what} {text!r}: give {kind} above 0, such as 4, or 2,4,8 (stages), or 1..10 (a ramp)"
            )
        levels.append(Level(values[0], values[-1]))
    return tuple(levels)


def arrival_times(
    level: Level,
    duration_s: float,
    rng: np.random.Generator,
    process: Process = "poisson",
    burstiness: float = 1.0,
) -> NDArray[np.float64]:
    """Arrival times in [0, duration).

    A ramp stretches the same process: unit-rate arrivals are mapped through the inverse of the cumulative rate, which
    for a Poisson process gives exactly the inhomogeneous one.

    Args:
        burstiness: coefficient of variation of the gaps of `gamma`: 1 is Poisson, above 1 comes in bursts.

    Raises:
        ConfigError: more requests than a run can hold.
    """
    expected = level.mean * duration_s
    if expected > MAX_REQUESTS:
        raise ConfigError(
            f"{expected:,.0f} requests in one stage are too many: lower the rate or the duration"
        )
    if process == "trace":
        raise ValueError("the times of a trace come from trace_times")
    # operational time: the integral of the rate, 0 … expected
    drawn: list[NDArray[np.float64]] = []
    reached = 0.0
    while reached < expected:
        count = int(expected - reached + 4 * np.sqrt(expected) + 16)
        if process == "constant":
            gaps = np.ones(count)
        elif process == "poisson":
            gaps = rng.exponential(1.0, count)
        else:
            shape = 1.0 / burstiness**2
            gaps = rng.gamma(shape, 1.0 / shape, count)
        times = reached + np.cumsum(gaps)
        drawn.append(times)
        reached = float(times[-1])
    operational = np.concatenate(drawn)
    operational = operational[operational < expected]
    if process == "constant" and level.first == level.last:
        operational = np.arange(int(np.ceil(expected - 1e-9)), dtype=np.float64)  # the first at 0
    if level.first == level.last:
        return operational / level.first
    slope = (level.last - level.first) / duration_s
    return (-level.first + np.sqrt(level.first**2 + 2 * slope * operational)) / slope


def trace_times(offsets_s: NDArray[np.float64], rate_per_s: float, duration_s: float) -> NDArray[np.float64]:
    """The gaps of a trace in their order and burstiness, rescaled to another mean rate, from the beginning again until
    `duration_s` is full.

    Args:
        offsets_s: arrival times of the trace, at least two, not all equal.
    """
    if rate_per_s * duration_s > MAX_REQUESTS:
        raise ConfigError(
            f"{rate_per_s * duration_s:,.0f} requests are too many: lower the rate or the duration"
        )
    gaps = np.diff(offsets_s) / np.diff(offsets_s).mean() / rate_per_s
    gaps = np.append(gaps, 1.0 / rate_per_s)  # between its last request and its first, again
    rounds = int(np.ceil(duration_s / gaps.sum())) + 1
    times = np.concatenate([[0.0], np.cumsum(np.tile(gaps, rounds))])
    return np.asarray(times[times < duration_s])
