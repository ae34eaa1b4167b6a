"""A day of traffic: how many replicas each hour needs, and what the day costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inferoptim.economics.checks import non_negative, positive, share, whole
from inferoptim.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Day:
    """Replicas for each of the 24 hours under one policy, and how busy they are."""

    policy: str
    replicas: tuple[int, ...]
    gpu_hours: float
    utilisation: float  # requests served / requests that the paid replicas could serve within the objective


def provision(
    requests_per_s: Sequence[float],
    goodput_per_replica: float,
    gpus_per_replica: int = 1,
    min_replicas: int = 1,
    headroom: float = 0.0,
) -> tuple[Day, Day]:
    """Replicas for a 24-hour profile: provisioned for the peak, and scaled every hour.

    Args:
        requests_per_s: mean arrivals in each hour of the day, 24 values.
        goodput_per_replica: requests/s that one replica serves within the objective.
        headroom: share of capacity kept free (0.2 = plan for 80 % of goodput).

    Raises:
        ConfigError: not 24 values, no traffic at all, or a quantity out of range.
    """
    if len(requests_per_s) != 24:
        raise ConfigError(f"a demand profile has 24 hourly values, this one has {len(requests_per_s)}")
    hours = [non_negative(f"demand at {h} h", value) for h, value in enumerate(requests_per_s)]
    if not any(hours):
        raise ConfigError("the demand profile is zero all day: nothing to price")
    capacity = positive("goodput per replica", goodput_per_replica) * (1.0 - share("headroom", headroom))
    if capacity <= 0:
        raise ConfigError("headroom 1 leaves no capacity: keep it below 1")
    gpus = whole("GPUs per replica", gpus_per_replica)
    floor = whole("min replicas", min_replicas)
    scaled = [max(floor, math.ceil(rate / capacity - 1e-9)) for rate in hours]
    served = sum(hours)
    days = []
    for policy, replicas in (("peak", [max(scaled)] * 24), ("hourly", scaled)):
        paid = sum(replicas)
        days.append(Day(policy, tuple(replicas), float(paid * gpus), served / (paid * goodput_per_replica)))
    return days[0], days[1]


def demand_cost_per_million(day: Day, price_per_gpu_hour: float, tokens_per_day: float) -> float:
    """Money per million tokens of a day provisioned as `day`: GPU-hours × price / tokens served."""
    return day.gpu_hours * price_per_gpu_hour / positive("tokens per day", tokens_per_day) * 1e6
