"""How one language writes numbers, units and sentences. The words are in `texts/`; the rules are here.

Every figure carries three significant digits unless its unit says otherwise; None and non-finite values are
written as "not measured", never as 0.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from inferoptim.records.schema import Interval
from inferoptim.report.texts import audit_en, audit_fr, en, fr

LanguageCode = Literal["en", "fr"]
CATALOGUES: Mapping[str, Mapping[str, str]] = {
    "en": {**en.TEXTS, **audit_en.TEXTS},
    "fr": {**fr.TEXTS, **audit_fr.TEXTS},
}

_NARROW = "\u202f"  # narrow no-break space: French thousands, and before % ; ! ?
_NO_BREAK = "\u00a0"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SYMBOLS = {"EUR": "€", "USD": "$", "GBP": "£"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure as printed: the estimate, and its interval where there is one. Falsy = not measured."""

    value: str = ""
    interval: str = ""
    tone: Literal["", "good", "bad", "muted"] = ""  # always beside a word or sign that says the same

    def __bool__(self) -> bool:
        return bool(self.value)


def clean(text: object) -> str:
    """One printable line: control, bidirectional and unpaired surrogate characters become visible, not active."""
    line = " ".join(str(text).split())
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs", "Cf") else c for c in line)


def finite(value: float | None) -> float | None:
    """`value`, or None where it is not a finite number."""
    return value if value is not None and math.isfinite(value) else None


class Language:
    """The words and number rules of one report language."""

    def __init__(self, code: LanguageCode) -> None:
        self.code = code
        self._texts = CATALOGUES[code]
        self._french = code == "fr"

    def __call__(self, key: str, **values: object) -> str:
        """The sentence `key`, with its named places filled in."""
        text = self._texts[key]
        return text.format(**values) if values else text

    def has(self, key: str) -> bool:
        return key in self._texts

    def join(self, parts: Iterable[str]) -> str:
        """'a, b and c'."""
        items = list(parts)
        if len(items) < 2:
            return "".join(items)
        return f"{', '.join(items[:-1])} {self('and')} {items[-1]}"

    def fixed(self, value: float, decimals: int) -> str:
        """A number with a set count of decimals, in the language's punctuation."""
        text = f"{value:,.{decimals}f}"
        if text.strip("-0.,") == "":
            text = text.removeprefix("-")
        if self._french:
            text = text.replace(",", _NARROW).replace(".", ",")
        return text.replace("-", "−")

    def number(self, value: float, digits: int = 3) -> str:
        """Three significant digits; powers of ten outside [1e-4, 1e9)."""
        if value == 0:
            return "0"
        magnitude = math.floor(math.log10(abs(value)))
        # 9.996 rounds up to 10.0: one decimal fewer than its magnitude says.
        if round(abs(value) / 10.0**magnitude, digits - 1) >= 10:
            magnitude += 1
        if magnitude < -4 or magnitude >= 9:
            mantissa = self.fixed(value / 10.0**magnitude, digits - 1)
            return f"{mantissa}{_NO_BREAK}×{_NO_BREAK}10{str(magnitude).translate(_SUPERSCRIPTS)}"
        decimals = digits - 1 - magnitude
        return self.fixed(round(value, decimals), max(decimals, 0))

    def tick(self, value: float) -> str:
        """An axis value: as few digits as it needs."""
        if value == 0:
            return "0"
        if not 1e-4 <= abs(value) < 1e7:
            return self.number(
                value, 1 if f"{value:.3e}"[2:5] == "000" or f"{value:.3e}"[3:6] == "000" else 2
            )
        plain = f"{value:.6f}".rstrip("0").rstrip(".")
        return self.fixed(value, len(plain.partition(".")[2]))

    def integer(self, value: float | None) -> str:
        return self("not_measured") if finite(value) is None else self.fixed(value or 0, 0)

    def percent(self, share: float, decimals: int | None = None) -> str:
        """0.124 → '12.4%' or '12,4 %'."""
        points = share * 100
        if decimals is None:
            decimals = 1 if abs(points) < 99.95 else 0
        return self.fixed(points, decimals) + (f"{_NARROW}%" if self._french else "%")

    def times(self, ratio: float) -> str:
        """2.41 → '×2.41'."""
        return f"×{self.number(ratio)}"

    def money(self, amount: float, currency: str) -> str:
        symbol = _SYMBOLS.get(currency, clean(currency))
        if self._french:
            return f"{self.number(amount)}{_NO_BREAK}{symbol}"
        return (
            f"{symbol}{self.number(amount)}"
            if len(symbol) == 1
            else f"{symbol}{_NO_BREAK}{self.number(amount)}"
        )

    def seconds(self, value: float | None) -> str:
        return self.unit_cell(value, _time_unit(value)).value or self("not_measured")

    def bytes(self, value: float | None) -> str:
        """Binary prefixes; 'o' (octet) for a byte in French."""
        if finite(value) is None:
            return self("not_measured")
        amount, units = float(value or 0), ("", "Ki", "Mi", "Gi", "Ti")
        power = 0
        while abs(amount) >= 1024 and power < len(units) - 1:
            amount, power = amount / 1024, power + 1
        text = self.number(amount) if power else self.fixed(amount, 0)
        return f"{text}{_NO_BREAK}{units[power]}{'o' if self._french else 'B'}"

    def bytes_cell(self, value: float | None) -> Cell:
        return Cell() if finite(value) is None else Cell(self.bytes(value))

    def unit_cell(self, value: float | Interval | None, unit: tuple[float, str] = (1.0, "")) -> Cell:
        """A cell whose value is divided by `unit[0]` and followed by `unit[1]`."""
        scale, name = unit
        suffix = f"{_NO_BREAK}{name}" if name else ""
        return self._cell(value, lambda v: self.number(v / scale), suffix=suffix)

    def time_cell(self, value: float | Interval | None) -> Cell:
        centre = value.value if isinstance(value, Interval) else value
        return self.unit_cell(value, _time_unit(centre))

    def percent_cell(self, value: float | Interval | None, decimals: int | None = None) -> Cell:
        return self._cell(value, lambda v: self.percent(v, decimals))

    def times_cell(self, value: float | Interval | None) -> Cell:
        return self._cell(value, self.number, prefix="×")

    def money_cell(self, value: float | Interval | None, currency: str) -> Cell:
        centre = finite(value.value if isinstance(value, Interval) else value)
        if centre is None:
            return Cell()
        cell = self._cell(value, self.number)
        return Cell(self.money(centre, currency), cell.interval)

    def fixed_cell(self, value: float | Interval | None, decimals: int) -> Cell:
        return self._cell(value, lambda v: self.fixed(v, decimals))

    def _cell(self, value, write, prefix: str = "", suffix: str = "") -> Cell:  # type: ignore[no-untyped-def]
        if not isinstance(value, Interval):
            number = finite(value)
            return Cell() if number is None else Cell(prefix + write(number) + suffix)
        if finite(value.value) is None:
            return Cell()
        low, high = finite(value.low), finite(value.high)
        span = "" if low is None or high is None or value.n == 1 else f"{write(low)}–{write(high)}"
        return Cell(prefix + write(value.value) + suffix, span)


def _time_unit(seconds: float | None) -> tuple[float, str]:
    magnitude = abs(seconds) if seconds is not None and math.isfinite(seconds) else 1.0
    if magnitude < 1e-3:
        return 1e-6, "µs"
    if magnitude < 1:
        return 1e-3, "ms"
    if magnitude < 600:
        return 1.0, "s"
    return (60.0, "min") if magnitude < 7200 else (3600.0, "h")
