"""The report's figures, each a function from facts to one inline SVG, or None where the records hold nothing to draw.

Every figure has its numbers in a table of the same report; colour never carries a meaning alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from inferoptim.records.schema import Interval, RequestRecord
from inferoptim.report.facts import Case, Facts, Rung, bounded, rung_label, usable
from inferoptim.report.kv import KvSeries
from inferoptim.report.language import Language, finite
from inferoptim.report.svg import Canvas, Point, Scale, draw_axes, text_width

WIDTH = 760.0
ROW = 25.0
CDF_POINTS = 160  # a curve of thousands of requests is drawn through this many of its quantiles


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a bar figure: what it is, its coloured parts (from, to, class), its interval, its figures."""

    label: str
    parts: tuple[tuple[float, float, str], ...] = ()
    interval: Interval | None = None
    columns: tuple[str, ...] = ()
    note: str = ""  # instead of a bar: why there is none


def bar_figure(
    name: str,
    title: str,
    description: str,
    bars: Sequence[Bar],
    headings: Sequence[str],
    high: float,
    marks: Sequence[tuple[float, str]],
) -> Markup:
    """Horizontal bars on [0, high] with text columns at the right; `marks` are labelled vertical lines.

    A bar longer than the axis is cut and marked.
    """
    label_width = min(max(text_width(b.label) for b in bars) + 8, 230)
    widths = [
        max(text_width(t) for t in (head, *(b.columns[i] for b in bars if b.columns))) + 14
        for i, head in enumerate(headings)
    ]
    top = 40.0
    canvas = Canvas(name, WIDTH, top + ROW * len(bars) + 8, title, description)
    scale = Scale(0, high, label_width + 6, WIDTH - sum(widths) - 4)
    right = [WIDTH - sum(widths[i + 1 :]) for i in range(len(widths))]
    for at, heading in zip(right, headings, strict=True):
        canvas.text(at, top - 9, heading, "name", "end")
    for value, text in marks:
        canvas.line(scale(value), top - 4, scale(value), top + ROW * len(bars), "mark")
        canvas.text(scale(value), top - 9, text, "tick", "middle" if scale(value) < scale.end - 20 else "end")
    for row, bar in enumerate(bars):
        middle = top + ROW * row + ROW / 2
        canvas.text(0, middle + 4, bar.label, "label", width=label_width)
        if bar.note:
            canvas.text(scale.start, middle + 4, bar.note, "note", width=WIDTH - scale.start)
            continue
        for low, high_end, css in bar.parts:
            start, end = sorted((scale(min(low, high)), scale(min(high_end, high))))
            canvas.rect(start, middle - 7, max(end - start, 1), 14, css)
        if any(
            part[1] > high for part in bar.parts
        ):  # the bar goes on beyond the axis; its figure says how far
            canvas.text(scale.end + 12, middle + 4, "≫", "name", "end")
        elif bounded(bar.interval) and bar.interval:
            low_x, high_x = scale(max(bar.interval.low, 0)), min(scale(bar.interval.high), scale.end)
            canvas.line(low_x, middle, high_x, middle, "whisker")
            canvas.line(low_x, middle - 4, low_x, middle + 4, "whisker")
            canvas.line(high_x, middle - 4, high_x, middle + 4, "whisker")
        for at, text in zip(right, bar.columns, strict=True):
            canvas.text(at, middle + 4, text, "figure", "end")
    return canvas.svg()


def cost_waterfall(name: str, facts: Facts, case: Case, language: Language) -> Markup | None:
    """The guide's 6.2 drawn: the cost index of each rung, and what each took off the one before."""
    indices = {r.id: i for r in case.rungs if (i := usable(case.metrics[r.id].cost_index))}
    if not indices:
        return None
    bars = []
    for rung in facts.rungs:
        label = f"{rung.number} {rung_label(rung, language)}"
        index = indices.get(rung.id)
        if index is None:
            note = language(f"status.{rung.status}") if not rung.has_speed else language("not_measured")
            bars.append(Bar(label, note=note))
            continue
        previous = indices.get(rung.config.previous or "")
        change = language("none_mark")
        low, high = index.value, index.value
        parts: tuple[tuple[float, float, str], ...] = ()
        if previous is not None:
            low, high = sorted((index.value, previous.value))
            parts = ((low, high, "saved" if index.value < previous.value else "lost"),)
            share = index.value / previous.value - 1
            change = ("+" if share > 0 else "") + language.percent(share)
        parts = ((0, low, "base" if rung is facts.baseline else "main"), *parts)
        cell = language.unit_cell(index)
        bars.append(
            Bar(
                label,
                parts,
                index,
                (f"{cell.value} ({cell.interval})" if cell.interval else cell.value, change),
            )
        )
    # one slow rung (a baseline that serves one request at a time) must not flatten all others
    after = [i for r, i in indices.items() if not _below_baseline(facts, r)]
    highest = max([100.0, *(i.value for i in after), *(i.high for i in after if bounded(i))])
    return bar_figure(
        name,
        language("figure.waterfall.title", case=case.name),
        language("figure.waterfall.alt"),
        bars,
        (language("column.cost_index"), language("column.change")),
        highest * 1.02,
        [(100, "100")],
    )


def _below_baseline(facts: Facts, config_id: str) -> bool:
    """Whether the baseline builds on this configuration."""
    return facts.baseline is not None and facts.baseline.config.previous == config_id


def ceiling_bars(name: str, facts: Facts, case: Case, language: Language) -> Markup | None:
    """Share of what the machine could do: the physical floor over the measured time."""
    bars = []
    for rung in case.rungs:
        metric = case.metrics[rung.id]
        share = finite(metric.share_of_possible)
        if share is None or share <= 0:
            continue
        css = "base" if rung is facts.baseline else "main"
        bars.append(
            Bar(
                f"{rung.number} {rung_label(rung, language)}",
                ((0, min(share, 1), css),),
                None,
                (language.percent(share),),
            )
        )
    if not bars:
        return None
    return bar_figure(
        name,
        language("figure.ceiling.title", case=case.name),
        language("figure.ceiling.alt"),
        bars,
        (language("column.share"),),
        1.0,
        [(0.5, language.percent(0.5, 0)), (1.0, language.percent(1, 0))],
    )


def frontier(
    name: str, facts: Facts, family: str, cases: Sequence[Case], language: Language
) -> Markup | None:
    """Output rate against median request latency, every rung at every concurrency; the upper left edge is the frontier."""
    points = []
    for order, case in enumerate(cases):
        for rung in case.rungs:
            rate = usable(case.metrics[rung.id].output_tokens_per_s)
            latency = usable(case.metrics[rung.id].e2e_s.get("p50"))
            if rate and latency:
                points.append((rung, order, latency, rate))
    if not points:
        return None
    height, left, right, top, bottom = 420.0, 64.0, WIDTH - 16, 34.0, 362.0
    x = Scale.around([p[2].value for p in points], left, right)
    y = Scale.around([p[3].value for p in points], bottom, top)
    canvas = Canvas(
        name, WIDTH, height, language("figure.frontier.title", family=family), language("figure.frontier.alt")
    )
    draw_axes(canvas, language, x, y, language("axis.e2e_p50"), language("axis.tokens_per_s"))
    edge = _pareto([(p[2].value, p[3].value) for p in points])
    canvas.path(
        [(x(a), y(b)) for a, b in edge] if len(edge) > 1 else [(x(edge[0][0]), y(edge[0][1]))] * 2, "frontier"
    )
    centres = [(x(p[2].value), y(p[3].value)) for p in points]
    boxes = [(cx - 6, cy - 6, cx + 6, cy + 6) for cx, cy in centres]
    for (rung, order, latency, rate), (cx, cy) in zip(points, centres, strict=True):
        css = "base" if rung is facts.baseline else ("best" if rung is cases[order].fastest else "main")
        if bounded(rate):
            canvas.line(cx, y(max(rate.low, y.low)), cx, y(min(rate.high, y.high)), "whisker")
        if bounded(latency):
            canvas.line(x(max(latency.low, x.low)), cy, x(min(latency.high, x.high)), cy, "whisker")
        _marker(canvas, cx, cy, order, css)
        label = str(rung.number)
        at, box = _free_place(cx, cy, text_width(label), boxes, (left, top, right, bottom))
        boxes.append(box)
        canvas.text(*at, label, "point", "middle")
    step = 0.0
    for order, case in enumerate(cases):
        text = language("requests_at_once", n=case.concurrency) if case.concurrency else case.name
        _marker(canvas, left + step + 5, height - 9, order, "main")
        canvas.text(left + step + 16, height - 5, text, "tick")
        step += text_width(text) + 44
    return canvas.svg()


def latency_cdf(name: str, facts: Facts, case: Case, language: Language) -> Markup | None:
    """Cumulative share of requests by latency, of every single request: end to end, and to the first token."""
    panels = []
    for key, read in (("axis.e2e", _e2e), ("axis.ttft", _ttft)):
        curves = []
        for rung in case.rungs:
            values = sorted(
                v
                for r in facts.requests.get((rung.id, case.name), ())
                if (v := read(r)) is not None and v > 0
            )
            if values:
                curves.append((rung, _quantiles(values)))
        if curves:
            panels.append((key, curves))
    if not panels:
        return None
    height, top, bottom = 336.0, 34.0, 258.0
    canvas = Canvas(
        name, WIDTH, height, language("figure.cdf.title", case=case.name), language("figure.cdf.alt")
    )
    gap, width = 70.0, (WIDTH - 56 - 12 - 70.0 * (len(panels) - 1)) / len(panels)
    shown: dict[str, tuple[Rung, str]] = {}
    for column, (key, curves) in enumerate(panels):
        left = 56 + column * (width + gap)
        x = Scale.around([p[0] for _, points in curves for p in points], left, left + width)
        y = Scale(0, 1, bottom, top)
        draw_axes(canvas, language, x, y, language(key), language("axis.share_of_requests"), y_percent=True)
        for rung, points in sorted(curves, key=lambda c: _emphasis(facts, case, c[0]) != "other"):
            css = _emphasis(facts, case, rung)
            stairs: list[Point] = [(x(points[0][0]), bottom)]
            for value, share in points:
                stairs += [(x(value), stairs[-1][1]), (x(value), y(share))]
            canvas.path(stairs, f"curve {css}")
            shown[css] = (rung, css)
    _curve_legend(canvas, language, shown, height - 18)
    return canvas.svg()


def kv_memory(name: str, pair: Sequence[KvSeries], language: Language) -> Markup | None:
    """KV-cache over one run: what is live within what is held, contiguous beside paged, on the same axes."""
    if not pair:
        return None
    height, top, bottom = 330.0, 52.0, 262.0
    canvas = Canvas(name, WIDTH, height, language("figure.kv.title"), language("figure.kv.alt"))
    gap = 64.0
    width = (WIDTH - 64 - 12 - gap * (len(pair) - 1)) / len(pair)
    tokens = [v for s in pair for v in (*(s.reserved), s.capacity or 0)]
    seconds = [s.times[-1] for s in pair]
    for column, series in enumerate(pair):
        left = 64 + column * (width + gap)
        x = Scale(0, max(seconds) or 1.0, left, left + width)
        y = Scale(0, (max(tokens) or 1) * 1.06, bottom, top)
        canvas.text(
            left, top - 30, f"{series.rung.number} {rung_label(series.rung, language)}", "label", width=width
        )
        draw_axes(canvas, language, x, y, language("axis.run_time"), language("axis.kv_tokens"))
        for values, css in ((series.reserved, "held"), (series.used, "live")):
            stairs: list[Point] = [(x(series.times[0]), bottom)]
            for time, value in zip(series.times, values, strict=True):
                stairs += [(x(time), stairs[-1][1]), (x(time), y(value))]
            canvas.path([*stairs, (stairs[-1][0], bottom)], css, closed=True)
        if series.capacity:
            canvas.line(left, y(series.capacity), left + width, y(series.capacity), "mark")
    step = 64.0
    for css, key in (("live", "legend.kv_live"), ("held", "legend.kv_held"), ("mark", "legend.kv_budget")):
        if css == "mark":
            canvas.line(step, height - 12, step + 16, height - 12, css)
        else:
            canvas.rect(step, height - 18, 16, 12, css)
        canvas.text(step + 22, height - 8, language(key), "tick")
        step += text_width(language(key)) + 52
    return canvas.svg()


def _marker(canvas: Canvas, x: float, y: float, order: int, css: str) -> None:
    """Shape tells the concurrency: circle, square, triangle, diamond."""
    if order % 4 == 0:
        canvas.circle(x, y, 4.5, css)
    elif order % 4 == 1:
        canvas.rect(x - 4, y - 4, 8, 8, css)
    elif order % 4 == 2:
        canvas.path([(x, y - 5.5), (x + 5, y + 4), (x - 5, y + 4)], css, closed=True)
    else:
        canvas.path([(x, y - 5.5), (x + 5.5, y), (x, y + 5.5), (x - 5.5, y)], css, closed=True)


Box = tuple[float, float, float, float]


def _free_place(x: float, y: float, width: float, boxes: Sequence[Box], frame: Box) -> tuple[Point, Box]:
    """Where a point's number goes: the nearest of sixteen places that touches no other number or point."""
    best: tuple[float, Point, Box] | None = None
    for reach in (13.0, 22.0, 32.0):
        for dx, dy in ((0, -1), (1, -0.6), (-1, -0.6), (1, 0.6), (-1, 0.6), (0, 1.15), (1, 0), (-1, 0)):
            cx, cy = x + dx * (reach + width / 2 - 4), y + dy * reach
            box = (cx - width / 2 - 1, cy - 7, cx + width / 2 + 1, cy + 6)
            inside = (
                box[0] >= frame[0] and box[1] >= frame[1] - 8 and box[2] <= frame[2] and box[3] <= frame[3]
            )
            overlap = sum(_overlap(box, other) for other in boxes) + (0 if inside else 1e3)
            if best is None or overlap < best[0]:
                best = (overlap, (cx, cy + 4), box)
            if overlap == 0:
                return best[1], best[2]
    assert best is not None
    return best[1], best[2]


def _overlap(a: Box, b: Box) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def _pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both latency (lower) and rate (higher), by latency."""
    edge: list[Point] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not edge or y > edge[-1][1]:
            edge.append((x, y))
    return edge


def _emphasis(facts: Facts, case: Case, rung: Rung) -> str:
    if rung is case.fastest:
        return "best"
    return "base" if rung is facts.baseline else "other"


def _curve_legend(canvas: Canvas, language: Language, shown: dict[str, tuple[Rung, str]], y: float) -> None:
    step = 56.0
    for css in ("base", "best", "other"):
        if css not in shown:
            continue
        rung = shown[css][0]
        text = language("legend.others") if css == "other" else f"{rung.number} {rung_label(rung, language)}"
        canvas.line(step, y, step + 18, y, f"curve {css}")
        canvas.text(step + 24, y + 4, text, "tick", width=260)
        step += min(text_width(text), 260) + 52


def _e2e(request: RequestRecord) -> float | None:
    return None if request.error else finite(request.finished_s - request.arrival_s)


def _ttft(request: RequestRecord) -> float | None:
    if request.error or request.first_token_s is None:
        return None
    return finite(request.first_token_s - request.arrival_s)


def _quantiles(values: Sequence[float]) -> list[Point]:
    """(value, share of requests at or below it), at most `CDF_POINTS` of them, first and last kept."""
    n = len(values)
    picks = (
        sorted({round(i * (n - 1) / (CDF_POINTS - 1)) for i in range(CDF_POINTS)})
        if n > CDF_POINTS
        else range(n)
    )
    return [(values[i], (i + 1) / n) for i in picks]
