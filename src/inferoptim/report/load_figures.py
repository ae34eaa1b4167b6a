"""The figures of the load test's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from inferoptim.records.load_schema import LoadRequestRecord, LoadStage, LoadSummary
from inferoptim.report.figures import CDF_POINTS, WIDTH
from inferoptim.report.language import Language, clean
from inferoptim.report.svg import Canvas, Point, Scale, draw_axes, text_width

DOTS = 1500  # requests drawn in one timeline


def latency_curves(
    summary: LoadSummary, records: Mapping[str, Sequence[LoadRequestRecord]], t: Language
) -> Markup | None:
    """Cumulative share of requests by TTFT and by E2E: the first stage, the last, and those between."""
    panels = []
    for key, index in (("load.axis_ttft", 0), ("load.axis_e2e", 1)):
        curves = [
            (stage, _quantiles(values))
            for stage in summary.stages
            if (
                values := sorted(
                    v for r in records.get(stage.name, ()) if (v := _times(r)[index]) is not None and v > 0
                )
            )
        ]
        if curves:
            panels.append((key, curves))
    if not panels:
        return None
    height, top, bottom, gap = 336.0, 34.0, 258.0, 70.0
    canvas = Canvas("load-cdf", WIDTH, height, t("load.cdf"), t("load.cdf_alt"))
    width = (WIDTH - 56 - 12 - gap * (len(panels) - 1)) / len(panels)
    shown: dict[str, str] = {}
    for column, (key, curves) in enumerate(panels):
        left = 56 + column * (width + gap)
        x = Scale.around([p[0] for _, points in curves for p in points], left, left + width)
        y = Scale(0, 1, bottom, top)
        draw_axes(canvas, t, x, y, t(key), t("load.axis_share"), y_percent=True)
        for number, (stage, points) in enumerate(curves):
            css = "best" if number == len(curves) - 1 else "base" if number == 0 else "other"
            stairs: list[Point] = [(x(points[0][0]), bottom)]
            for value, share in points:
                stairs += [(x(value), stairs[-1][1]), (x(value), y(share))]
            canvas.path(stairs, f"curve {css}")
            shown[css] = t("load.others") if css == "other" else clean(stage.name)
    step = 56.0
    for css, text in shown.items():
        canvas.line(step, height - 18, step + 18, height - 18, f"curve {css}")
        canvas.text(step + 24, height - 14, text, "tick", width=260)
        step += min(text_width(text), 260) + 52
    return canvas.svg()


def timeline(
    name: str, stage: LoadStage, records: Sequence[LoadRequestRecord], t: Language
) -> tuple[Markup, str]:
    """TTFT (E2E where nothing was streamed) of each request by the time it was due; and what was left out."""
    ordered = sorted(records, key=lambda r: r.arrival_s)
    every = -(-len(ordered) // DOTS)
    drawn = ordered[::every]
    points = [(r.arrival_s, v) for r in drawn if r.error is None and (v := _times(r)[0] or _times(r)[1])]
    failed = [r.arrival_s for r in drawn if r.error is not None]
    height, left, right, top, bottom = 236.0, 64.0, WIDTH - 16, 40.0, 178.0
    canvas = Canvas(
        name, WIDTH, height, f"{t('load.timeline')} · {clean(stage.name)}", t("load.timeline_alt")
    )
    times = [p[0] for p in points] + failed
    x = Scale.around([0.0, *times], left, right, zero=True)
    y = Scale.around([p[1] for p in points] or [0.0, 1.0], bottom, top)
    streamed = any(r.first_token_s is not None for r in records)
    draw_axes(canvas, t, x, y, t("load.axis_time"), t("load.axis_ttft") if streamed else t("load.axis_e2e"))
    for at, value in points:
        canvas.circle(x(at), y(value), 2.2, "main")
    for at in failed:
        px = x(at)
        canvas.path([(px - 3, top - 6), (px + 3, top)], "curve base")
        canvas.path([(px + 3, top - 6), (px - 3, top)], "curve base")
    note = t("load.sampled", shown=t.integer(len(drawn)), n=t.integer(len(ordered))) if every > 1 else ""
    return canvas.svg(), note


def _times(record: LoadRequestRecord) -> tuple[float | None, float | None]:
    """(TTFT, E2E) of a request that succeeded."""
    if record.error is not None:
        return None, None
    ttft = None if record.first_token_s is None else record.first_token_s - record.arrival_s
    return ttft, record.finished_s - record.arrival_s


def _quantiles(values: Sequence[float]) -> list[Point]:
    """(value, share of requests at or below it), at most `CDF_POINTS` of them."""
    n = len(values)
    step = max(n - 1, 1) / (CDF_POINTS - 1)
    picks = sorted({round(i * step) for i in range(CDF_POINTS)}) if n > CDF_POINTS else range(n)
    return [(values[i], (i + 1) / n) for i in picks]
