"""Who gains what on a ladder of levers: cumulative index, and attributions that do or do not depend on the order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inferoptim.economics.checks import positive
from inferoptim.errors import ConfigError

Levers = frozenset[str]


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung of a ladder: index against the first rung (= 100)."""

    label: str
    index: float
    points: float  # index points lost against the rung below
    step: float  # index / index of the rung below
    total_cut: float  # 1 - index / 100


def cost_index(costs: Sequence[tuple[str, float]]) -> tuple[Rung, ...]:
    """Cumulative cost index of a ladder: 100 on the first rung, cost / first cost × 100 above.

    Source: guide 6.2 (100 → 38.5 → 28.6 → 21.7).
    """
    if not costs:
        raise ConfigError("a ladder needs at least one rung")
    base = positive(f"cost of rung {costs[0][0]!r}", costs[0][1])
    rungs: list[Rung] = []
    below = 100.0
    for label, cost in costs:
        index = positive(f"cost of rung {label!r}", cost) / base * 100.0
        rungs.append(Rung(label, index, below - index, index / below, 1.0 - index / 100.0))
        below = index
    return tuple(rungs)


def compound(cuts: Sequence[float]) -> float:
    """Cut of several cuts applied one after another: 1 - Π(1 - c). Savings multiply, they never add.

    >>> round(compound([0.70, 0.25, 0.15]), 3)
    0.809
    """
    return 1.0 - math.prod(1.0 - cut for cut in cuts)


@dataclass(frozen=True, slots=True)
class Attribution:
    """How the cut splits between levers by one method, in index points; or what is missing to say so."""

    method: str
    points: Mapping[str, float] | None
    missing: tuple[Levers, ...] = ()  # configurations that were not measured
    note: str = ""

    def explain(self) -> str:
        """One line a person reads: the split, or what to measure."""
        if self.points is None:
            wanted = "; ".join("+".join(sorted(m)) or "all off" for m in self.missing[:4])
            more = f" and {len(self.missing) - 4} more" if len(self.missing) > 4 else ""
            return f"{self.method}: cannot be attributed, not measured: {wanted}{more}"
        return f"{self.method}: " + ", ".join(f"{name} {value:+.1f}" for name, value in self.points.items())


def attribute(costs: Mapping[Levers, float]) -> tuple[Attribution, ...]:
    """Attribute the whole cut between levers by every method that the measured configurations allow.

    Args:
        costs: cost of each measured configuration, by the set of levers that were on.

    Returns:
        One-at-a-time (each lever alone against none), leave-one-out (all against all but one) and Shapley (mean
        over all orders). Points are of the index (none on = 100). A method whose configurations are not all
        there names the missing ones and gives no figure.

    Source: Shapley, A Value for n-Person Games (1953).

    Raises:
        ConfigError: the configuration with every lever off, or the one with all on, is absent.
    """
    levers = sorted(set().union(*costs)) if costs else []
    everything: Levers = frozenset(levers)
    nothing: Levers = frozenset()
    if not levers or nothing not in costs or everything not in costs:
        raise ConfigError("an attribution needs the cost with every lever off and with all of them on")
    base = positive("cost with every lever off", costs[nothing])
    saved = {on: 100.0 - positive(f"cost of {sorted(on)}", cost) / base * 100.0 for on, cost in costs.items()}
    alone = [frozenset({name}) for name in levers]
    but_one = [everything - {name} for name in levers]
    subsets = [frozenset(c) for size in range(len(levers) + 1) for c in itertools.combinations(levers, size)]
    methods = []
    missing = tuple(s for s in alone if s not in saved)
    methods.append(
        Attribution(
            "one-at-a-time",
            None if missing else {name: saved[frozenset({name})] for name in levers},
            missing,
            "each lever alone; need not sum to the whole",
        )
    )
    missing = tuple(s for s in but_one if s not in saved)
    methods.append(
        Attribution(
            "leave-one-out",
            None if missing else {name: saved[everything] - saved[everything - {name}] for name in levers},
            missing,
            "what is lost when one lever is taken away; need not sum to the whole",
        )
    )
    missing = tuple(s for s in subsets if s not in saved)
    methods.append(
        Attribution(
            "Shapley",
            None if missing else shapley(levers, saved),
            missing,
            "mean over every order; sums to the whole",
        )
    )
    return tuple(methods)


def shapley(levers: Sequence[str], value: Mapping[Levers, float]) -> dict[str, float]:
    """Shapley value of each lever for a value known on every subset.

    Source: Shapley (1953): φ_i = Σ_S |S|! (n-|S|-1)! / n! (v(S∪i) - v(S)).
    """
    n = len(levers)
    result = {}
    for name in levers:
        others = [other for other in levers if other != name]
        total = 0.0
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            for members in itertools.combinations(others, size):
                without = frozenset(members)
                total += weight * (value[without | {name}] - value[without])
        result[name] = total
    return result
