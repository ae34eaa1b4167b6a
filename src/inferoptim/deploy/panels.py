"""What a Grafana dashboard is made of here: queries, panels, pages, and PromQL written once.

A query says what it needs (`needs`) beyond a server that answers: a GPU, DCGM, a stated price, speculation. What it does
not have it cannot draw, and the panel says so instead of showing zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Need = Literal["price", "gpu", "dcgm", "speculation", "energy_price"]
Kind = Literal["timeseries", "stat", "heatmap", "table"]
JOB = 'job=~"$job"'
INSTANCE = f'{JOB},instance=~"$instance"'
RATE = "$__rate_interval"
DECODE, PREFILL = f'{INSTANCE},phase="decode"', f'{INSTANCE},phase="prefill"'
CACHED, PROMPT = f'{INSTANCE},kind="cached"', f'{INSTANCE},kind="prompt"'


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and its legend."""

    expr: str
    legend: str = ""
    needs: tuple[Need, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; `note` is what the reader should know, shown behind the panel's (i)."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    note: str = ""
    kind: Kind = "timeseries"
    width: int = 8  # of 24
    height: int = 7
    stack: bool = False
    maximum: float | None = None
    thresholds: tuple[tuple[float, str], ...] = ()  # (from, colour)


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    description: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    tags: tuple[str, ...] = ("inferoptim",)

    @property
    def panels(self) -> list[Panel]:
        """All panels, in order."""
        return [panel for _, panels in self.rows for panel in panels]


def rate(metric: str, by: str = "", labels: str = INSTANCE) -> str:
    """Sum of the rate of a counter, over what the page has selected."""
    clause = f" by ({by})" if by else ""
    return f"sum{clause} (rate({metric}{{{labels}}}[{RATE}]))"


def quantiles(metric: str) -> tuple[Query, ...]:
    """P50, P95 and P99 from a histogram's buckets, over all selected instances together."""
    buckets = f"sum by (le) (rate({metric}_bucket{{{INSTANCE}}}[{RATE}]))"
    return tuple(
        Query(f"histogram_quantile({q}, {buckets})", f"P{round(q * 100)}") for q in (0.5, 0.95, 0.99)
    )


def mean(metric: str, legend: str) -> Query:
    """Mean of a histogram's observations."""
    return Query(f"{rate(metric + '_sum')} / {rate(metric + '_count')}", legend)
