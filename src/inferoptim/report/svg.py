"""A few SVG primitives: escaped, accessible, coloured by the page's CSS variables so that both themes are legible.

Drawn by hand rather than with matplotlib because an inline figure must follow the page's theme, stay small, carry
its own title for screen readers, and come out byte for byte the same from the same records on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from inferoptim.report.language import Language, clean

Point = tuple[float, float]
CHARACTER_WIDTH = 6.6  # of the 12 px sans-serif text, a little generous


def text_width(text: str) -> float:
    """Approximate width of `text` in a figure, px."""
    return len(text) * CHARACTER_WIDTH


def shorten(text: str, width: float) -> str:
    """`text` cut to about `width` px, with an ellipsis."""
    room = max(int(width / CHARACTER_WIDTH), 2)
    return text if len(text) <= room else text[: room - 1].rstrip() + "…"


class Canvas:
    """Collects shapes; `svg()` closes them into one element. Lengths in px of the view box."""

    def __init__(self, name: str, width: float, height: float, title: str, description: str = "") -> None:
        self._name, self._width, self._height = name, width, height
        self._title, self._description = title, description
        self._shapes: list[Markup] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        self._shapes.append(
            Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(css, *_px(x1, y1, x2, y2))
        )

    def rect(self, x: float, y: float, width: float, height: float, css: str) -> None:
        self._shapes.append(
            Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
                css, *_px(x, y, max(width, 0), height)
            )
        )

    def circle(self, x: float, y: float, radius: float, css: str) -> None:
        self._shapes.append(
            Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(css, *_px(x, y, radius))
        )

    def path(self, points: Sequence[Point], css: str, closed: bool = False) -> None:
        steps = "L".join(" ".join(_px(x, y)) for x, y in points)
        self._shapes.append(Markup('<path class="{}" d="M{}{}"/>').format(css, steps, "Z" if closed else ""))

    def text(
        self, x: float, y: float, text: str, css: str = "", anchor: str = "start", width: float | None = None
    ) -> None:
        shown = clean(text) if width is None else shorten(clean(text), width)
        full = Markup("<title>{}</title>").format(clean(text)) if shown != clean(text) else Markup()
        at_x, at_y = _px(x, y)
        self._shapes.append(
            Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}{}</text>').format(
                css, at_x, at_y, anchor, full, shown
            )
        )

    def svg(self) -> Markup:
        width, height = _px(self._width, self._height)
        described = f"{self._name}-title {self._name}-desc" if self._description else f"{self._name}-title"
        description = Markup('<desc id="{}-desc">{}</desc>').format(self._name, self._description)
        return Markup(
            '<svg class="fig" viewBox="0 0 {w} {h}" role="img" aria-labelledby="{by}" '
            'xmlns="http://www.w3.org/2000/svg"><title id="{name}-title">{title}</title>{desc}{shapes}</svg>'
        ).format(
            w=width,
            h=height,
            by=described,
            name=self._name,
            title=self._title,
            desc=description if self._description else "",
            shapes=Markup("\n").join(self._shapes),
        )


def _px(*values: float) -> list[str]:
    return [f"{value:.1f}".removesuffix(".0") if math.isfinite(value) else "0" for value in values]


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps [low, high] of the data onto [start, end] px, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    @classmethod
    def around(
        cls, values: Sequence[float], start: float, end: float, zero: bool = False, wide: float = 12
    ) -> Scale:
        """A scale that shows all `values` with a margin; logarithmic where they span more than `wide` times."""
        low, high = min(values), max(values)
        if low > 0 and high / low > wide and not zero:
            margin = (high / low) ** 0.06
            return cls(low / margin, high * margin, start, end, log=True)
        if zero:
            low = min(low, 0.0)
        if high <= low:
            low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
        margin = (high - low) * 0.06
        return cls(low if zero or 0 <= low < margin else low - margin, high + margin, start, end)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the scale."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            decades = range(first, last + 1)
            for mantissas in ((1, 2, 5), (1, 3), (1,)):
                found = [
                    m * 10.0**d for d in decades for m in mantissas if self.low <= m * 10.0**d <= self.high
                ]
                if len(found) <= count + 1:
                    return found or [self.low, self.high]
            return found[:: math.ceil(len(found) / count)]
        raw = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(raw))
        step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= raw), 10 * power)
        first_step = math.ceil(self.low / step - 1e-9)
        last_step = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first_step, last_step + 1)]


def draw_axes(
    canvas: Canvas,
    language: Language,
    x: Scale,
    y: Scale,
    x_label: str,
    y_label: str,
    x_percent: bool = False,
    y_percent: bool = False,
) -> None:
    """Grid, tick labels and axis names of one panel; `x` runs rightwards, `y` upwards (start below end)."""
    left, right, bottom, top = x.start, x.end, y.start, y.end
    for tick in y.ticks():
        at = y(tick)
        canvas.line(left, at, right, at, "grid")
        canvas.text(
            left - 6, at + 4, language.percent(tick, 0) if y_percent else language.tick(tick), "tick", "end"
        )
    taken = -math.inf
    for tick in x.ticks(max(3, int((right - left) / 70))):
        at = x(tick)
        label = language.percent(tick, 0) if x_percent else language.tick(tick)
        canvas.line(at, bottom, at, bottom + 4, "axis")
        if at - text_width(label) / 2 > taken + 6:
            canvas.text(at, bottom + 17, label, "tick", "middle")
            taken = at + text_width(label) / 2
    canvas.line(left, bottom, right, bottom, "axis")
    canvas.text((left + right) / 2, bottom + 36, x_label, "name", "middle")
    canvas.text(left, top - 10, y_label, "name", "start")
