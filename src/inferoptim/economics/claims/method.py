"""Claims about method: how many runs an interval needs."""

from __future__ import annotations

import math

from inferoptim.economics.claims.model import Evidence, Finding, Verdict, claim


def runs_for_upper_bound(quantile: float, confidence: float = 0.95) -> int:
    """Fewest independent runs whose largest value bounds `quantile` from above with `confidence`.

    Source: order statistics, P(max < q) = quantile^n ≤ 1 - confidence (Conover, Practical Nonparametric Statistics).

    >>> runs_for_upper_bound(0.95), runs_for_upper_bound(0.99)
    (59, 299)
    """
    return math.ceil(math.log(1 - confidence) / math.log(quantile))


@claim(43, "5.3", "5 warm-ups and 50 runs", "P")
def fifty_runs(evidence: Evidence) -> Finding:
    """What 50 runs can bound."""
    p95, p99 = runs_for_upper_bound(0.95), runs_for_upper_bound(0.99)
    runs = sorted({row["runs"] for row in evidence.rows()})
    return Finding(
        Verdict.CONDITIONS if p95 > 50 else Verdict.HOLDS,
        f"Fine for a median; a 95 % upper bound on P95 needs n ≥ {p95}, on P99 n ≥ {p99}; repeats inside one process are not "
        "independent",
        evidence.cite(f"{', '.join(map(str, runs))} runs a configuration") if runs else None,
        figures={"p95": p95, "p99": p99},
    )
