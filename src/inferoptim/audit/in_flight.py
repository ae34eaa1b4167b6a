"""Requests in flight and the KV-cache that they hold, from arrivals and durations."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from inferoptim.audit.blocks import BlockSums, ratio
from inferoptim.audit.rows import Floats
from inferoptim.audit.timeline import Timeline, series
from inferoptim.records.audit_record import ConcurrencyRecord
from inferoptim.records.schema import Interval

_IN, _OUT, _TOKENS_IN, _TOKENS_OUT = range(4)


class InFlight:
    """Counts who came and who left in each step.

    Args:
        stated: ttft_s and tpot_s by which durations are made where the trace has none; recorded as stated.
    """

    def __init__(self, stated: dict[str, float] | None = None) -> None:
        self._stated = stated or {}
        self._timeline = Timeline(4)
        self._durations = BlockSums("duration")
        self._measured = self._made = 0
        self._first, self._last = np.inf, -np.inf
        self._tokens_known = True

    def add(
        self,
        arrival: Floats,
        duration: Floats | None,
        prompt: NDArray[np.int64],
        output: NDArray[np.int64],
    ) -> None:
        """Append requests [n]; those without a duration (nan) are left out unless one can be made."""
        if duration is None or np.isnan(duration).all():
            if not self._stated:
                return
            duration = self._stated.get("ttft_s", 0.0) + self._stated["tpot_s"] * np.maximum(output - 1, 0)
            self._made += len(arrival)
        else:
            self._measured += int((~np.isnan(duration)).sum())
        known = ~np.isnan(duration)
        arrival, duration = arrival[known], duration[known]
        if not len(arrival):
            return
        tokens = np.maximum(prompt[known], 0) + np.maximum(output[known], 0)
        self._tokens_known &= bool((prompt[known] >= 0).all())
        self._durations.add(duration=duration)
        self._first, self._last = (
            min(self._first, float(arrival.min())),
            max(self._last, float(arrival.max())),
        )
        end = arrival + duration
        self._timeline.add(_IN, arrival)
        self._timeline.add(_OUT, end)
        self._timeline.add(_TOKENS_IN, arrival, tokens.astype(np.float64))
        self._timeline.add(_TOKENS_OUT, end, tokens.astype(np.float64))

    def describe(self, rate: Interval | None) -> ConcurrencyRecord | None:
        """The record; None where no duration is known, or all requests came at one instant."""
        mean = self._durations.interval(ratio("duration", "n"), "duration")
        if mean is None or rate is None or self._last <= self._first:
            return None
        step = self._timeline.step_s
        start = self._first // step * step
        inside = self._level(_IN, _OUT)
        tokens = self._level(_TOKENS_IN, _TOKENS_OUT) if self._tokens_known else None
        return ConcurrencyRecord(
            basis="durations" if self._measured else "stated",
            stated={} if self._measured else self._stated,
            requests=self._measured or self._made,
            mean_duration_s=mean.value,
            little=_product(rate, mean),
            observed_mean=float(inside.mean()),
            observed_p50=float(np.quantile(inside, 0.5, method="inverted_cdf")),
            observed_p99=float(np.quantile(inside, 0.99, method="inverted_cdf")),
            observed_peak=float(inside.max()),
            step_s=step,
            series=series(inside, start, step),
            kv_tokens_mean=None if tokens is None else float(tokens.mean()),
            kv_tokens_p99=None if tokens is None else float(np.quantile(tokens, 0.99, method="inverted_cdf")),
            kv_tokens_peak=None if tokens is None else float(tokens.max()),
            kv_series=None if tokens is None else series(tokens, start, step),
        )

    def _level(self, came: int, left: int) -> NDArray[np.float64]:
        """What is inside at the end of each step, from the first arrival's step to the last's."""
        change = self._timeline.column(came, self._first, self._last)
        change -= self._timeline.column(left, self._first, self._last)
        return np.maximum(np.cumsum(change), 0.0)


def _product(a: Interval, b: Interval) -> Interval:
    """a·b with independent relative errors added in quadrature."""
    value = a.value * b.value
    below = math.hypot(*((i.value - i.low) / i.value if i.value else 0.0 for i in (a, b)))
    above = math.hypot(*((i.high - i.value) / i.value if i.value else 0.0 for i in (a, b)))
    return Interval(
        value=value,
        low=max(value * (1 - below), 0.0),
        high=value * (1 + above),
        n=min(a.n, b.n),
    )
