"""From a table of columns to a batch: lengths, times, how requests ended. Used for CSV and Parquet."""

from __future__ import annotations

from typing import Any

import numpy as np

from inferoptim.audit.formats import Mapped
from inferoptim.audit.options import ReadOptions
from inferoptim.audit.rows import MAX_LENGTH, UNKNOWN, BadRow, Batch, Bools, Floats, Ints, Turn
from inferoptim.audit.times import TimeParser


class Columns:
    """Turns polars frames of one trace into batches."""

    def __init__(self, mapped: Mapped, times: TimeParser, options: ReadOptions) -> None:
        self.mapped, self.times, self._options = mapped, times, options

    def batch(self, frame: Any, lines: Ints, bad: list[BadRow]) -> Batch:
        """The rows of `frame` that can be read; the others are added to `bad` with their line.

        Args:
            frame: the mapped columns, as text or typed.
            lines: line (or row) number of each row [n].
            bad: rows already refused by the parser.
        """
        columns, rows = self.mapped.columns, len(frame)
        reasons: list[tuple[Bools, str]] = []
        lengths = {}
        for field in ("prompt", "output"):
            if field in columns:
                lengths[field], wrong = whole_numbers(frame[columns[field]])
                reasons += [(mask, f"{columns[field]}: {why}") for mask, why in wrong]
            else:
                lengths[field] = np.full(rows, UNKNOWN, dtype=np.int64)
        arrival = None
        if "arrival" in columns:
            arrival = self.times.column(frame[columns["arrival"]])
            reasons.append((np.isnan(arrival), f"{columns['arrival']}: missing, or not a time"))
        refused = np.zeros(rows, dtype=bool)
        if any(mask.any() for mask, _ in reasons):
            refused = _all_null(frame)  # blank lines are no rows
            for mask, reason in reasons:
                bad += [BadRow(int(n), reason) for n in lines[mask & ~refused]]
                refused |= mask
        batch = Batch(
            prompt_tokens=lengths["prompt"],
            output_tokens=lengths["output"],
            arrival_s=arrival,
            duration_s=self._seconds(frame, "duration"),
            ttft_s=self._seconds(frame, "ttft"),
            failed=failed_statuses(frame[columns["status"]].to_list()) if "status" in columns else None,
            truncated=(frame[columns["finish"]] == "length").fill_null(False).to_numpy()
            if "finish" in columns
            else None,
            session=self._sessions(frame[columns["session"]]) if "session" in columns else None,
            texts=[
                None if t is None else Turn(str(t), "", last=str(t)) for t in frame[columns["text"]].to_list()
            ]
            if "text" in columns
            else None,
            blocks=self._blocks(frame),
            bad=bad,
        )
        return batch.select(~refused) if refused.any() else batch

    def _blocks(self, frame: Any) -> list[Ints] | None:
        import polars as pl

        name = next((n for n in frame.columns if n.lower() == "hash_ids"), None)
        if name is None or not isinstance(frame[name].dtype, pl.List):
            return None
        return [np.asarray([] if v is None else v, dtype=np.int64) for v in frame[name].to_list()]

    def _sessions(self, series: Any) -> Ints:
        import polars as pl

        seed = int.from_bytes(self._options.salt[:8], "little")
        hashed = series.cast(pl.String, strict=False).hash(seed=seed).to_numpy()
        known = (series.is_not_null()).to_numpy()
        return np.where(known, (hashed >> np.uint64(1)).astype(np.int64) | 1, 0)

    def _seconds(self, frame: Any, field: str) -> Floats | None:
        import polars as pl

        if field not in self.mapped.columns:
            return None
        series = frame[self.mapped.columns[field]]
        values = series.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
        with np.errstate(invalid="ignore"):
            seconds: Floats = np.where(values >= 0, values * self.mapped.scale.get(field, 1.0), np.nan)
        return seconds


def _all_null(frame: Any) -> Bools:
    import polars as pl

    mask: Bools = frame.select(pl.all_horizontal(pl.all().is_null())).to_series().to_numpy()
    return np.array(mask, dtype=bool)


def whole_numbers(series: Any) -> tuple[Ints, list[tuple[Bools, str]]]:
    """Lengths [n] of a column, and masks of the rows where there is none, with the reason."""
    import polars as pl

    cast = series.cast(pl.Int64, strict=False) if series.dtype != pl.Float64 else None
    wrong: list[tuple[Bools, str]] = []
    if cast is None or cast.null_count():
        text = series.cast(pl.String, strict=False).str.strip_chars()
        numbers = text.cast(pl.Float64, strict=False)
        frame = pl.DataFrame({"n": numbers}).select(
            pl.when((pl.col("n") == pl.col("n").floor()) & (pl.col("n").abs() < 2**53)).then(pl.col("n"))
        )
        cast = frame.to_series().cast(pl.Int64, strict=False)
        missing = (text.is_null() | (text == "")).to_numpy()
        wrong = [(missing, "missing"), (cast.is_null().to_numpy() & ~missing, "not a whole number")]
    values: Ints = cast.fill_null(0).to_numpy()
    if len(values) and (values.min() < 0 or values.max() > MAX_LENGTH):
        wrong += [(values < 0, "negative"), (values > MAX_LENGTH, f"more than {MAX_LENGTH:,} tokens")]
    return values, wrong


def failed_statuses(values: list[Any]) -> Bools:
    """True where a status or error column says that the request failed."""
    cache: dict[Any, bool] = {}
    out = np.zeros(len(values), dtype=bool)
    for i, value in enumerate(values):
        key = value if isinstance(value, str | int | float | bool | None) else str(value)
        if key not in cache:
            if len(cache) > 10_000:
                cache.clear()
            cache[key] = is_failure(key)
        out[i] = cache[key]
    return out


_GOOD = frozenset({"ok", "success", "succeeded", "completed", "finished", "none", "null", "false", "0", ""})


def is_failure(value: Any) -> bool:
    """Whether one status or error value says that the request failed: HTTP 4xx and 5xx, or any error's text."""
    if value is None or value is False:
        return False
    text = str(value).strip().lower()
    if text.isdigit():
        return int(text) >= 400
    return text not in _GOOD
