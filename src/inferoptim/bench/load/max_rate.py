"""The highest rate that still meets the objectives: doubled until it fails, then bisected.

A rate passes when the stated share of its requests met every objective, over the whole probe and over its second half
(a queue that grows shows there first), and the client was not the bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

from inferoptim.records.load_schema import LoadStage, MaxRate, Objectives

MAX_PROBES = 24
MAX_RATE = 1e5


def min_requests(attainment: float) -> int:
    """Fewest requests on which an attainment can be judged: 1 - attainment**n >= 0.95, as for a percentile."""
    return 20 if attainment >= 1 else max(20, math.ceil(math.log(0.05) / math.log(attainment)))


def passed(stage: LoadStage, objectives: Objectives) -> bool:
    """Whether the rate of this probe is sustainable."""
    if stage.stopped_early or stage.attainment is None or stage.attainment_late is None:
        return False
    return min(stage.attainment, stage.attainment_late) >= objectives.attainment


async def find_max_rate(
    probe: Callable[[float], Awaitable[LoadStage | None]],
    objectives: Objectives,
    start_per_s: float,
    tolerance: float = 0.1,
) -> MaxRate:
    """Search from `start_per_s`.

    Args:
        probe: runs one stage at a rate; None when it was interrupted.
        tolerance: stop when the lowest rate that failed is at most this share above the highest that passed.
    """
    low: float | None = None
    high: float | None = None
    goodput: float | None = None
    names: list[str] = []
    note = ""
    rate = start_per_s
    while len(names) < MAX_PROBES:
        stage = await probe(rate)
        if stage is None:
            note = "interrupted"
            break
        names.append(stage.name)
        if passed(stage, objectives):
            if not stage.client.valid:
                note = f"stopped at {rate:g}/s, where the client was the bottleneck: the server may go higher"
                break
            low, goodput = rate, stage.goodput_per_s
        else:
            high = rate
        if low is not None and high is not None:
            if high <= low * (1 + tolerance):
                break
            rate = math.sqrt(low * high)
        elif low is not None:
            rate = low * 2
            if rate > MAX_RATE:
                note = f"passed at {low:g}/s, the highest rate that is tried"
                break
        else:
            assert high is not None
            rate = high / 2
            if rate < start_per_s / 1024:
                note = f"not even {high:g}/s met the objectives"
                break
    else:
        note = f"stopped after {MAX_PROBES} probes"
    return MaxRate(
        highest_passed_per_s=low,
        lowest_failed_per_s=high,
        goodput_per_s=goodput,
        tolerance=tolerance,
        probes=tuple(names),
        note=note,
    )
