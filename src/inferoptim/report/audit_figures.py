"""The audit's figures, each one inline SVG, or None where the record holds nothing to draw."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from inferoptim.records.audit_record import AuditRecord, Distribution, Series
from inferoptim.report.language import Language
from inferoptim.report.svg import Canvas, Point, Scale, draw_axes, text_width

WIDTH, HEIGHT = 760.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 744.0, 34.0, 206.0


def lengths_figure(record: AuditRecord, language: Language) -> Markup | None:
    """Histograms of prompt and output lengths on one log axis, as steps."""
    found = [
        (name, d, css)
        for name, d, css in (
            ("prompt", record.lengths.prompt, "best"),
            ("output", record.lengths.output, "base"),
        )
        if d is not None and d.maximum > 0
    ]
    if not found:
        return None
    title = language("audit.figure.lengths")
    canvas = Canvas("audit-lengths", WIDTH, HEIGHT, title)
    low = min(max(d.bins[0].low, 1.0) for _, d, _ in found)
    high = max(d.bins[-1].high for _, d, _ in found)
    x = Scale(low, max(high, low * 1.5), LEFT, RIGHT, log=True)
    top = max(b.count / d.n for _, d, _ in found for b in d.bins)
    y = Scale(0, top * 1.08, BOTTOM, TOP)
    draw_axes(
        canvas,
        language,
        x,
        y,
        language("audit.figure.lengths_x"),
        language("audit.figure.lengths_y"),
        y_percent=True,
    )
    at = RIGHT
    for name, d, css in reversed(found):
        canvas.path(_steps(d, x, y), f"curve {css}")
        label = language(f"audit.row.{name}")
        at -= text_width(label) + 34
        canvas.path([(at, TOP - 14), (at + 22, TOP - 14)], f"curve {css}")
        canvas.text(at + 28, TOP - 10, label, "label")
    return canvas.svg()


def _steps(d: Distribution, x: Scale, y: Scale) -> list[Point]:
    points: list[Point] = [(x(max(d.bins[0].low, x.low)), y(0))]
    for b in d.bins:
        if b.high <= x.low:
            continue
        height = y(b.count / d.n)
        points += [(x(max(b.low, x.low)), height), (x(b.high), height)]
    points.append((points[-1][0], y(0)))
    return points


def _over_time(
    name: str, found: Series | None, title: str, y_label: str, language: Language
) -> Markup | None:
    if found is None or len(found.values) < 2:
        return None
    hours = found.step_s * len(found.values) >= 3 * 3600
    unit = 3600.0 if hours else 60.0
    canvas = Canvas(name, WIDTH, HEIGHT, title)
    x = Scale(0, found.step_s * len(found.values) / unit, LEFT, RIGHT)
    y = Scale(0, max(*found.values, 1e-9) * 1.08, BOTTOM, TOP)
    label = language("audit.figure.time_x" if hours else "audit.figure.time_x_minutes")
    draw_axes(canvas, language, x, y, label, y_label)
    points = [(x((i + 0.5) * found.step_s / unit), y(v)) for i, v in enumerate(found.values)]
    canvas.path(points, "curve best")
    return canvas.svg()


def rate_figure(record: AuditRecord, language: Language) -> Markup | None:
    """Arrival rate over time."""
    series = None if record.arrivals is None else record.arrivals.rate_series
    return _over_time(
        "audit-rate", series, language("audit.figure.rate"), language("audit.figure.rate_y"), language
    )


def concurrency_figure(record: AuditRecord, language: Language) -> Markup | None:
    """Requests in flight over time."""
    series = None if record.concurrency is None else record.concurrency.series
    return _over_time(
        "audit-concurrency",
        series,
        language("audit.figure.concurrency"),
        language("audit.figure.concurrency_y"),
        language,
    )


def kv_figure(record: AuditRecord, language: Language) -> Markup | None:
    """KV-cache in demand over time."""
    series = None if record.concurrency is None else record.concurrency.kv_series
    return _over_time(
        "audit-kv", series, language("audit.figure.kv"), language("audit.figure.kv_y"), language
    )


def diurnal_figure(record: AuditRecord, language: Language) -> Markup | None:
    """Mean rate by hour of day, as bars."""
    if record.arrivals is None or record.arrivals.diurnal_per_s is None:
        return None
    values: Sequence[float] = record.arrivals.diurnal_per_s
    title = language("audit.figure.diurnal", zone=record.arrivals.timezone)
    canvas = Canvas("audit-diurnal", WIDTH, HEIGHT, title)
    x = Scale(0, 24, LEFT, RIGHT)
    y = Scale(0, max(*values, 1e-9) * 1.08, BOTTOM, TOP)
    draw_axes(canvas, language, x, y, language("audit.figure.diurnal_x"), language("audit.figure.rate_y"))
    for hour, value in enumerate(values):
        left, right = x(hour + 0.12), x(hour + 0.88)
        canvas.rect(left, y(value), right - left, BOTTOM - y(value), "main")
    return canvas.svg()


def prefix_figure(record: AuditRecord, language: Language) -> Markup | None:
    """Hit rate against cache size; the dashed line is the unbounded cache."""
    if record.prefix is None or len(record.prefix.curve) < 2:
        return None
    curve = record.prefix.curve
    canvas = Canvas("audit-prefix", WIDTH, HEIGHT, language("audit.figure.prefix"))
    x = Scale(curve[0].tokens, curve[-1].tokens * 1.2, LEFT, RIGHT, log=True)
    top = max(record.prefix.reusable.value, max(p.hit_rate for p in curve), 1e-6)
    y = Scale(0, top * 1.12, BOTTOM, TOP)
    draw_axes(
        canvas,
        language,
        x,
        y,
        language("audit.figure.prefix_x"),
        language("audit.figure.prefix_y"),
        y_percent=True,
    )
    canvas.line(LEFT, y(record.prefix.reusable.value), RIGHT, y(record.prefix.reusable.value), "mark")
    points: list[Point] = []
    for a, b in pairwise(curve):
        points += [(x(a.tokens), y(a.hit_rate)), (x(b.tokens), y(a.hit_rate))]
    points.append((x(curve[-1].tokens), y(curve[-1].hit_rate)))
    canvas.path(points, "curve best")
    return canvas.svg()
