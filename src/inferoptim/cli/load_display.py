"""What `inferoptim load` prints: one live line while it runs, one table and the caveats at the end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from inferoptim.cli.money import Table
from inferoptim.units import format_seconds

if TYPE_CHECKING:
    from inferoptim.bench.load.run_stage import Live
    from inferoptim.records.load_schema import LoadStage, LoadSummary

FEW = 3  # stages that fit side by side on a terminal
RECENT = 200  # requests behind the live TTFT


def progress_line(live: Live) -> str:
    """One line of what happens now."""
    if not live.stage:
        return "finding the server, warming up…"
    elapsed = max(time.perf_counter() - live.started_s, 1e-9)
    recent = sorted(live.ttft_s[-RECENT:])
    ttft = format_seconds(recent[len(recent) // 2]) if recent else "not yet"
    of = f"/{live.planned}" if live.planned is not None else ""
    total = f" of {live.duration_s:.0f} s" if live.duration_s else " s"
    return (
        f"{live.stage}  {elapsed:.0f}{total}  sent {live.sent}{of}  in flight {live.in_flight}  failed {live.failed}  "
        f"{live.done / elapsed:.1f} requests/s  {live.tokens / elapsed:,.0f} tokens/s  TTFT (recent median) {ttft}"
    )


def stage_table(summary: LoadSummary) -> Table:
    """One row a measure, one column a stage; one short row a stage where there are many (a search)."""
    stages = summary.stages
    if len(stages) > FEW:
        return _many(summary)
    rows: list[list[object]] = [
        ["load", *(s.shape for s in stages)],
        ["requests (failed)", *(f"{s.requests} ({s.requests - s.succeeded})" for s in stages)],
        ["requests/s", *(s.requests_per_s for s in stages)],
        ["output tokens/s", *(s.output_tokens_per_s for s in stages)],
    ]
    if summary.objectives.stated:
        rows += [
            ["goodput, requests/s", *(s.goodput_per_s for s in stages)],
            [
                "met every objective",
                *(None if s.attainment is None else f"{s.attainment:.1%}" for s in stages),
            ],
        ]
    for label, name in (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("ITL", "itl_s"), ("E2E", "e2e_s")):
        rows.append([f"{label} P50 / P95 / P99", *(_percentiles(s, name) for s in stages)])
    rows.append(["ITL jitter, P99 / P50", *(_jitter(s) for s in stages)])
    rows.append(["prompt / output tokens (median)", *(_lengths(s) for s in stages)])
    rows.append(["client: send lag, loop lag (P99 or max)", *(_client(s) for s in stages)])
    return Table(f"{summary.url}  {summary.model}", ["", *(s.name for s in stages)], rows)


def _many(summary: LoadSummary) -> Table:
    rows = [
        [
            s.name,
            s.offered_per_s if s.offered_per_s is not None else f"{s.concurrency} at once",
            f"{s.requests} ({s.requests - s.succeeded})",
            s.requests_per_s,
            None if s.attainment is None else f"{s.attainment:.1%}",
            _time(s.ttft_s, "p50"),
            _time(s.ttft_s, "p95"),
            _time(s.e2e_s, "p50"),
            "yes" if s.client.valid else "NO",
        ]
        for s in summary.stages
    ]
    columns = [
        "stage",
        "asked/s",
        "requests (failed)",
        "done/s",
        "met SLO",
        "TTFT P50",
        "TTFT P95",
        "E2E P50",
        "valid",
    ]
    return Table(f"{summary.url}  {summary.model}", columns, rows)


def _time(found: dict[str, float], name: str) -> str:
    return format_seconds(found[name]) if name in found else "n too small"


def max_rate_lines(summary: LoadSummary) -> list[str]:
    """The answer of --find-max-rate."""
    found = summary.max_rate
    if found is None:
        return []
    line = (
        "no rate met the objectives"
        if found.highest_passed_per_s is None
        else f"highest rate that met the objectives: {found.highest_passed_per_s:.3g} requests/s"
    )
    if found.lowest_failed_per_s is not None:
        line += f"; {found.lowest_failed_per_s:.3g} requests/s did not"
    return [line] + ([found.note] if found.note else [])


def notes(summary: LoadSummary) -> list[str]:
    """What a reader must know, failures first."""
    out = []
    for stage in summary.stages:
        out += [
            f"{stage.name}: {count} × {name}: {stage.error_examples.get(name, '')}".rstrip(": ")
            for name, count in stage.errors.items()
        ]
        if not stage.client.valid:
            out.append(f"{stage.name} is INVALID: {'; '.join(stage.client.reasons)}")
    test = summary.self_test
    shares = [s.client.ceiling_share for s in summary.stages if s.client.ceiling_share is not None]
    if test is not None and shares:
        out.append(
            f"client ceiling here: {test.requests_per_s:,.0f} requests/s, {test.output_tokens_per_s:,.0f} tokens/s; "
            f"this run used at most {max(shares):.1%} of it"
        )
    return out + list(summary.notes)


def _percentiles(stage: LoadStage, name: str) -> str | None:
    found: dict[str, float] = getattr(stage, name)
    if not found:
        return None
    return " / ".join(
        format_seconds(found[p]) if p in found else "n too small" for p in ("p50", "p95", "p99")
    )


def _jitter(stage: LoadStage) -> float | None:
    usual, longest = stage.itl_s.get("p50"), stage.itl_s.get("p99")
    return longest / usual if usual and longest is not None else None


def _lengths(stage: LoadStage) -> str | None:
    if stage.prompt_tokens_p50 is None and stage.output_tokens_p50 is None:
        return None
    values = (stage.prompt_tokens_p50, stage.output_tokens_p50)
    return " / ".join("not said" if v is None else f"{v:g}" for v in values)


def _client(stage: LoadStage) -> str:
    health = stage.client

    def tail(lags: dict[str, float]) -> str:
        return format_seconds(lags.get("p99", lags["max"])) if lags else "–"

    return f"{tail(health.send_lag_s)}, {tail(health.loop_lag_s)}" + ("" if health.valid else " INVALID")
