"""When requests come: rate, burstiness, peaks, the shape of a day. One pass, bounded memory."""

from __future__ import annotations

from datetime import datetime, timezone, tzinfo

import numpy as np
from numpy.typing import NDArray

from inferoptim.audit.blocks import BlockSums, coefficient_of_variation, ratio
from inferoptim.audit.reservoir import Reservoir
from inferoptim.audit.rows import Floats
from inferoptim.audit.timeline import Timeline, regroup, series
from inferoptim.records.audit_record import ArrivalsRecord
from inferoptim.records.schema import Interval

WINDOW_ROWS = 1 << 20  # rows held to put them in order; a row later than this many others cannot be placed
MIN_WINDOWS = 8  # fewer windows give no dispersion
GAPS_KEPT = 1 << 16


class Arrivals:
    """Collects arrival times in the file's order."""

    def __init__(self, window_rows: int = WINDOW_ROWS, seed: int = 0) -> None:
        self._window = window_rows
        self._held: list[Floats] = []
        self._held_rows = 0
        self._previous: float | None = None  # last time in the file's order
        self._flushed: float | None = None  # last time in sorted order
        self._gaps = BlockSums("gap", "gap2")
        self.gaps = Reservoir(GAPS_KEPT, seed)
        self.timeline = Timeline(1)
        self.first_s, self.last_s = np.inf, -np.inf
        self.rows = self.repeated = self.out_of_order = self.late = 0

    def add(self, times: Floats) -> None:
        """Append some arrivals, seconds."""
        if not len(times):
            return
        self.rows += len(times)
        steps = np.diff(times, prepend=times[0] if self._previous is None else self._previous)
        if self._previous is None:
            steps = steps[1:]
        self.repeated += int((steps == 0).sum())
        backwards = int((steps < 0).sum())
        self.out_of_order += backwards
        self._previous = float(times[-1])
        self.first_s = min(self.first_s, float(times.min()))
        self.last_s = max(self.last_s, float(times.max()))
        self.timeline.add(0, times)
        self._held.append(times)
        self._held_rows += len(times)
        if self._held_rows > self._window:
            self._flush(self._window // 2)

    def _flush(self, keep: int) -> None:
        """Pass on the oldest of the held times, all but `keep` of them."""
        held = np.sort(np.concatenate(self._held)) if self._held else np.zeros(0)
        cut = len(held) - keep
        done, rest = held[:cut], held[cut:]
        self._held, self._held_rows = [rest], len(rest)
        if self._flushed is not None:
            on_time = done >= self._flushed
            self.late += int((~on_time).sum())
            done = done[on_time]
        if not len(done):
            return
        gaps = np.diff(done) if self._flushed is None else np.diff(done, prepend=self._flushed)
        self._flushed = float(done[-1])
        if len(gaps):
            self._gaps.add(gap=gaps, gap2=gaps * gaps)
            self.gaps.add(gaps)

    def describe(self, *, calendar: bool, zone: str | None) -> ArrivalsRecord | None:
        """The record; None without any arrival."""
        self._flush(0)
        if not self.rows:
            return None
        span = self.last_s - self.first_s
        step = self.timeline.step_s
        counts = self.timeline.column(0, self.first_s, self.last_s)
        minutes = regroup(counts, 60 // step) if step <= 60 else np.zeros(0)
        peak = float(minutes.max() / minutes.mean()) if len(minutes) >= 2 else None
        start = self.first_s // step * step
        return ArrivalsRecord(
            span_s=span,
            first_s=self.first_s,
            calendar=calendar,
            rate_per_s=self._gaps.interval(ratio("n", "gap"), "rate") if span > 0 else None,
            gap_cv=self._gaps.interval(coefficient_of_variation("gap", "gap2"), "cv") if span > 0 else None,
            dispersion_1s=dispersion(counts, "1s") if step == 1 else None,
            dispersion_60s=dispersion(minutes, "60s"),
            peak_minute_per_mean=peak,
            repeated=self.repeated,
            out_of_order=self.out_of_order,
            late=self.late,
            rate_series=series(counts, start, step, 1 / step) if span > 0 else None,
            diurnal_per_s=self._diurnal(zone) if calendar else None,
            timezone=zone or "UTC",
        )

    def _diurnal(self, zone: str | None) -> tuple[float, ...] | None:
        """Mean rate of each hour of the day, where every hour was seen."""
        step = self.timeline.step_s
        if step > 3600 or self.last_s - self.first_s < 86_400:
            return None
        first_hour = -(-self.first_s // 3600) * 3600  # whole hours only
        last = self.last_s // 3600 * 3600
        if last - first_hour < 86_400:
            return None
        hourly = regroup(self.timeline.column(0, first_hour, last - step), 3600 // step)
        place: tzinfo = timezone.utc
        if zone:
            from zoneinfo import ZoneInfo

            place = ZoneInfo(zone)
        hours = np.array(
            [datetime.fromtimestamp(first_hour + 3600 * i, place).hour for i in range(len(hourly))]
        )
        seen = np.bincount(hours, minlength=24)
        total = np.bincount(hours, weights=hourly, minlength=24)
        return tuple((total / np.maximum(seen, 1) / 3600).tolist()) if seen.all() else None


def dispersion(counts: NDArray[np.float64], key: str) -> Interval | None:
    """Variance over mean of counts in equal windows (Fano factor, index of dispersion for counts).

    Source: Cox and Lewis, The Statistical Analysis of Series of Events, 1966.
    """
    if len(counts) < MIN_WINDOWS or not counts.any():
        return None
    sums = BlockSums("count", "count2")
    for start in range(0, len(counts), 1 << 20):
        part = counts[start : start + (1 << 20)]
        sums.add(count=part, count2=part * part)
    return sums.interval(
        lambda s: (s["count2"] / s["n"] - (s["count"] / s["n"]) ** 2) / (s["count"] / s["n"]),
        f"dispersion-{key}",
    )
