"""Arrival times as seconds: numbers in any unit, or dates with and without a time zone."""

from __future__ import annotations

import math
import re
from datetime import datetime, timezone, tzinfo
from typing import Any

import numpy as np

from inferoptim.audit.rows import Floats
from inferoptim.errors import ConfigError

UNIX_MIN_S = 1e8  # smaller numbers (before 1973) are seconds from the trace's own zero
_MAX_S = 1e11  # year 5138; a larger time is a broken row
_FRACTION = re.compile(r"\.(\d+)")
_ZONE = re.compile(r"(Z|[+-]\d\d:?\d\d)$", re.I)


class TimeParser:
    """Parses one trace's arrival column. Decides the kind once, from the first values it sees.

    Args:
        scale: seconds per unit of a number; None = by magnitude.
        zone: IANA name of the zone of dates that state none.

    Attributes:
        absolute: True for calendar times, False for seconds from the trace's own zero, None before the first row.
        naive, aware: whether dates without and with a zone were seen; both together deserve a warning.

    Raises:
        ConfigError: unknown zone.
    """

    def __init__(self, scale: float | None = None, zone: str | None = None) -> None:
        self._scale = scale
        self._numeric: bool | None = None
        self._format: str | None = None
        self._zone: tzinfo = timezone.utc
        self._zone_name = zone or "UTC"
        if zone and zone.upper() != "UTC":
            from zoneinfo import ZoneInfo

            try:
                self._zone = ZoneInfo(zone)
            except (KeyError, ValueError, OSError) as error:
                raise ConfigError(f"--timezone {zone!r}: no such time zone; e.g. Europe/Paris") from error
        self.absolute: bool | None = None
        self.naive = self.aware = False

    def decide(self, sample: Any) -> None:
        """Look at a first value; later calls change nothing."""
        if self._numeric is not None or sample is None:
            return
        text = str(sample).strip().strip('"')
        try:
            value = float(text)
        except ValueError:
            zoned = _ZONE.search(text) is not None and len(text) > 10
            middle = "T" if "T" in text[10:11] else " "
            if len(text) > 10:
                self._format = f"%Y-%m-%d{middle}%H:%M:%S%.f" + ("%#z" if zoned else "")
            self._numeric, self.absolute = False, True
            return
        if self._scale is None:
            self._scale = unit_by_magnitude(value)
        self._numeric = True
        self.absolute = value * self._scale >= UNIX_MIN_S

    def column(self, values: Any) -> Floats:
        """Seconds of a polars series (text, numbers or dates); nan where a value is no time."""
        import polars as pl

        if isinstance(values.dtype, pl.Datetime | pl.Date):
            return self._typed(values)
        if self._numeric is None:
            first = values.drop_nulls()
            self.decide(first[0] if len(first) else None)
        if self._numeric:
            scale = self._scale or 1.0
            seconds = values.cast(pl.Float64, strict=False).fill_null(math.nan).to_numpy() * scale
            return _plausible(seconds)
        return self._dates(values)

    def _typed(self, values: Any) -> Floats:
        import polars as pl

        self._numeric, self.absolute = False, True
        moments = values.cast(pl.Datetime("us", getattr(values.dtype, "time_zone", None)))
        if getattr(values.dtype, "time_zone", None) is None:
            self.naive = True
            if self._zone is not timezone.utc:
                moments = moments.dt.replace_time_zone(
                    self._zone_name, ambiguous="earliest", non_existent="null"
                )
        else:
            self.aware = True
        return _plausible(moments.dt.timestamp("us").cast(pl.Float64).fill_null(math.nan).to_numpy() * 1e-6)

    def _dates(self, values: Any) -> Floats:
        import polars as pl

        if self._format is None:
            return self._slowly(values.to_list())
        zoned = self._format.endswith("z")
        parsed = values.str.to_datetime(self._format, strict=False, time_unit="us", cache=False)
        if zoned:
            self.aware = True
        else:
            self.naive = True
            if self._zone is not timezone.utc:
                parsed = parsed.dt.replace_time_zone(
                    self._zone_name, ambiguous="earliest", non_existent="null"
                )
        micros = parsed.dt.timestamp("us")
        seconds: Floats = micros.cast(pl.Float64).fill_null(math.nan).to_numpy() * 1e-6
        odd = np.flatnonzero(np.isnan(seconds))
        if len(odd):  # other spellings, one by one
            seconds = seconds.copy()
            seconds[odd] = self._slowly([values[int(i)] for i in odd])
        return _plausible(seconds)

    def one(self, value: Any) -> float:
        """Seconds of one value from JSON; nan where it is no time."""
        self.decide(value)
        return float(self._slowly([value])[0])

    def _slowly(self, values: list[Any]) -> Floats:
        return _plausible(np.array([self._single(value) for value in values], dtype=np.float64))

    def _single(self, value: Any) -> float:
        if value is None or isinstance(value, bool):
            return math.nan
        if isinstance(value, datetime):
            moment = value
        else:
            try:
                number = float(value)
            except (TypeError, ValueError):
                pass
            else:
                # a number among dates is a Unix time; a number in a numeric column has the column's unit
                return number * (self._scale or 1.0) if self._numeric else number * unit_by_magnitude(number)
            text = _FRACTION.sub(lambda m: "." + m[1][:6].ljust(6, "0"), str(value).strip(), count=1)
            text = re.sub(r"Z$", "+00:00", text, flags=re.I)
            try:
                moment = datetime.fromisoformat(text)
            except ValueError:
                return math.nan
        if moment.tzinfo is None:
            self.naive = True
            return moment.replace(tzinfo=self._zone).timestamp()
        self.aware = True
        return moment.timestamp()


def unit_by_magnitude(value: float) -> float:
    """Seconds per unit of a Unix time in s, ms, µs or ns; 1 for small numbers."""
    size = abs(value)
    return 1e-9 if size >= 1e17 else 1e-6 if size >= 1e14 else 1e-3 if size >= 1e11 else 1.0


def _plausible(seconds: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(seconds) <= _MAX_S, seconds, math.nan)
