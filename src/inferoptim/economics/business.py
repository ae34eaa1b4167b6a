"""From a cut in GPU time to money: theoretical and realisable saving, ROI, payback, net present value.

Everything accepts numpy arrays wherever it accepts floats: the Monte-Carlo passes 10 000 draws at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inferoptim.economics.gpu_hour import HOURS_PER_MONTH
from inferoptim.economics.vector import ceil, maximum, ratio, where

CEIL_SLACK = 1e-9  # a demand of 8.0000000001 GPUs is eight GPUs


def paid_gpus(needed: Any, gpus_per_node: Any, committed: Any = 0.0) -> Any:
    """GPUs that one pays for: whole nodes, and never fewer than what is still committed."""
    return maximum(gpus_per_node * ceil(needed / gpus_per_node - CEIL_SLACK), committed)


def capacity_gain(cut: Any) -> Any:
    """Extra work on the same bill when the unit cost falls by `cut`. Either this or a smaller bill, never both.

    Source: the same bill buys 1 / (1 - cut) times the work.

    >>> round(capacity_gain(0.40), 4)
    0.6667
    """
    return cut / (1.0 - cut)


def unit_cut_for(bill_cut: Any, extra_work: Any) -> Any:
    """Cut in unit cost that a smaller bill *and* more work need together.

    Source: unit cost = bill / work.

    >>> round(unit_cut_for(0.40, 0.50), 3)
    0.6
    """
    return 1.0 - (1.0 - bill_cut) / (1.0 + extra_work)


def return_on_investment(gain: Any, cost: Any) -> Any:
    """(gain - cost) / cost; NaN when nothing was spent, because a ratio to zero says nothing.

    Source: definition; the guide's 6.3 prints the gain alone.
    """
    return ratio(gain - cost, cost)


@dataclass(frozen=True, slots=True)
class CashFlow:
    """The months of a project. Money in the currency of the GPU price; months count from 1."""

    bill_before: list[Any]  # paid each month without the change
    bill_after: list[Any]
    cumulative: list[Any]  # realisable saving - costs, from month 0 (= -migration)
    theoretical: Any  # sum of savings if GPUs were sold by the fraction and no commitment held
    gain: Any  # sum of realisable savings
    cost: Any  # migration + running cost
    roi: Any
    npv: Any
    payback_months: Any  # first month whose cumulative is not negative; NaN = not within the horizon
    first_year: Any  # realisable saving of the first 12 months (or of the horizon, if shorter)


def cash_flow(
    *,
    gpus: Any,
    factor: Any,
    price: Any,
    gpus_per_node: Any,
    horizon_months: int,
    growth_per_year: Any = 0.0,
    committed_gpus: Any = 0.0,
    commitment_months: Any = 0.0,
    ramp_months: Any = 0.0,
    migration_cost: Any = 0.0,
    run_cost_per_month: Any = 0.0,
    discount_rate: Any = 0.0,
) -> CashFlow:
    """Month by month: GPUs needed before and after, GPUs paid, saving, cumulative.

    Args:
        gpus: GPUs that today's traffic needs without the change (a fraction is fine).
        factor: GPU time after / before (0.6 = 40 % cut).
        price: money per GPU-hour.
        gpus_per_node: GPUs that are rented or bought together.
        committed_gpus: GPUs that stay paid until `commitment_months` have passed, needed or not.
        ramp_months: months before the change serves traffic.
        discount_rate: per year; month m is discounted by (1 + rate)^(m/12).

    Source: net present value and payback by definition (Brealey, Myers, Allen, Principles of Corporate Finance, ch. 5).
    """
    bill = price * HOURS_PER_MONTH
    cumulative: Any = 0.0 - migration_cost
    npv: Any = 0.0 - migration_cost
    payback: Any = where(cumulative >= 0, 0.0, float("nan"))
    gain: Any = 0.0
    theoretical: Any = 0.0
    first_year: Any = 0.0
    before, after, line = [], [], [cumulative]
    for month in range(1, int(horizon_months) + 1):
        needed = gpus * (1.0 + growth_per_year) ** ((month - 1) / 12.0)
        needed_after = where(ramp_months >= month, needed, needed * factor)
        held = where(commitment_months >= month, committed_gpus, 0.0)
        paid_before = paid_gpus(needed, gpus_per_node, held) * bill
        paid_after = paid_gpus(needed_after, gpus_per_node, held) * bill
        saved = paid_before - paid_after
        net = saved - run_cost_per_month
        theoretical = theoretical + (needed - needed_after) * bill
        gain = gain + saved
        if month <= 12:
            first_year = first_year + saved
        cumulative = cumulative + net
        npv = npv + net / (1.0 + discount_rate) ** (month / 12.0)
        payback = where((payback != payback) & (cumulative >= 0), float(month), payback)  # NaN != NaN
        before.append(paid_before)
        after.append(paid_after)
        line.append(cumulative)
    cost = migration_cost + run_cost_per_month * float(int(horizon_months))
    return CashFlow(
        before,
        after,
        line,
        theoretical,
        gain,
        cost,
        return_on_investment(gain, cost),
        npv,
        payback,
        first_year,
    )


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Volume from which own GPUs cost less than an API, in units per day; NaN = never."""

    first: Any  # the first volume at which the bills meet
    always: Any  # the volume past which no added node makes the API cheaper again


def break_even(node_cost_per_day: Any, node_units_per_day: Any, api_cost_per_unit: Any) -> BreakEven:
    """Where whole nodes meet a price per unit.

    n nodes cost n·c and carry n·k units; the API costs a·V. The bills first meet at V = c/a if one node carries that
    much. Past it, each added node makes the API cheaper for a while, until n·(a·k - c) ≥ c.

    Source: own derivation; checked by brute force over volumes in the tests.
    """
    margin = api_cost_per_unit * node_units_per_day - node_cost_per_day  # earned by one full node
    worth = margin >= -CEIL_SLACK * node_cost_per_day
    first = where(worth, ratio(node_cost_per_day, api_cost_per_unit), float("nan"))
    nodes = ratio(node_cost_per_day, where(margin > CEIL_SLACK * node_cost_per_day, margin, 0.0))
    known = nodes == nodes
    steps = maximum(ceil(where(known, nodes, 1.0) - CEIL_SLACK), 1.0)
    always = where(known, steps * ratio(node_cost_per_day, api_cost_per_unit), float("nan"))
    return BreakEven(first, always)
