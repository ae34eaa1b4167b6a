"""Total cost of ownership: offers side by side (the guide's 1.2, generalised), and a horizon year by year."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inferoptim.economics.checks import finite, non_negative, positive, whole
from inferoptim.economics.gpu_hour import HOURS_PER_YEAR
from inferoptim.errors import ConfigError


@dataclass(frozen=True, slots=True)
class OfferRow:
    """One line of the guide's table 1.2."""

    label: str
    per_gpu_hour: float
    per_node_hour: float
    per_year: float  # one node, `hours` a year
    gap: float  # per GPU, against the reference: nodes may differ in size


def compare_offers(
    offers: Sequence[tuple[str, float, int]], reference: int = 0, hours: float = HOURS_PER_YEAR
) -> tuple[OfferRow, ...]:
    """Offers (label, price per GPU-hour, GPUs per node) against the one at `reference`.

    Source: guide 1.2.
    """
    if not offers:
        raise ConfigError("nothing to compare: name at least one offer")
    rows = []
    positive("hours a year", hours)
    base = offers[reference][1]
    for label, per_gpu, gpus in offers:
        node = positive(f"price of {label}", per_gpu) * whole(f"GPUs per node of {label}", gpus)
        rows.append(OfferRow(label, per_gpu, node, node * hours, per_gpu / base - 1.0))
    return tuple(rows)


def implied_capex(per_node_year: float, years: float, opex_share: float, *, of_total: bool = False) -> float:
    """Purchase price hidden in a yearly all-in figure, straight line, no residual, no cost of capital.

    `opex_share` is a share of capex a year, or of the yearly total when `of_total`.
    Source: annual = capex / years + opex_share × capex, or annual × (1 - opex_share) = capex / years.
    """
    positive("yearly cost", per_node_year)
    positive("years", years)
    non_negative("opex share", opex_share)
    if of_total:
        return per_node_year * (1.0 - opex_share) * years
    return per_node_year / (1.0 / years + opex_share)


@dataclass(frozen=True, slots=True)
class Year:
    """One year of a horizon; year 0 carries what is paid at the start."""

    year: int
    gpus: float
    gpu_cost: float
    run_cost: float
    one_off: float

    @property
    def total(self) -> float:
        """Money of the year, not discounted."""
        return self.gpu_cost + self.run_cost + self.one_off


@dataclass(frozen=True, slots=True)
class Tco:
    """Total cost over a horizon."""

    currency: str
    years: tuple[Year, ...]
    total: float
    present_value: float


def total_cost(
    *,
    price_per_gpu_hour: float,
    gpus: float,
    gpus_per_node: int,
    years: int,
    currency: str,
    hours_per_year: float = HOURS_PER_YEAR,
    growth_per_year: float = 0.0,
    price_change_per_year: float = 0.0,
    run_cost_per_year: float = 0.0,
    one_off: float = 0.0,
    discount_rate: float = 0.0,
) -> Tco:
    """Whole nodes for a growing need over `years`, each year paid at its end (present value) or just added (total)."""
    from inferoptim.economics.business import paid_gpus

    positive("GPUs", gpus)
    horizon = whole("years", years)
    node = whole("GPUs per node", gpus_per_node)
    positive("price of a GPU-hour", price_per_gpu_hour)
    positive("hours a year", hours_per_year)
    if hours_per_year > HOURS_PER_YEAR:
        raise ConfigError(f"hours a year is {hours_per_year:g}: a year has 8760")
    for name, value in (("growth", growth_per_year), ("price change", price_change_per_year)):
        if finite(name, value) <= -1:
            raise ConfigError(f"{name} is {value:g} a year: must stay above -1 (-100 %)")
    non_negative("run cost", run_cost_per_year)
    non_negative("one-off cost", one_off)
    non_negative("discount rate", discount_rate)
    rows = [Year(0, 0.0, 0.0, 0.0, one_off)] if one_off else []
    present = one_off
    for year in range(1, horizon + 1):
        paid = paid_gpus(gpus * (1.0 + growth_per_year) ** (year - 1), float(node))
        price = price_per_gpu_hour * (1.0 + price_change_per_year) ** (year - 1)
        row = Year(year, paid, paid * price * hours_per_year, run_cost_per_year, 0.0)
        rows.append(row)
        present += row.total / (1.0 + discount_rate) ** year
    return Tco(currency, tuple(rows), sum(row.total for row in rows), present)


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Training against inference over a model's life (guide 1.1 and 6.4)."""

    training: float
    inference: float
    inference_share: float
    months_to_equal: float | None  # when cumulative inference has cost as much as training; None = never


def lifetime(
    *, training_cost: float, inference_per_month: float, months: int, growth_per_year: float = 0.0
) -> Lifetime:
    """Share of inference in the lifetime cost, for stated costs.

    Raises:
        ConfigError: both costs are zero, or a quantity is out of range.
    """
    training = non_negative("training cost", training_cost)
    monthly = non_negative("inference cost a month", inference_per_month)
    if training == 0 and monthly == 0:
        raise ConfigError("training and inference both cost nothing: state at least one")
    if finite("growth", growth_per_year) <= -1:
        raise ConfigError(f"growth is {growth_per_year:g} a year: must stay above -1 (-100 %)")
    spent = 0.0
    equal: float | None = None
    for month in range(1, whole("months", months) + 1):
        cost = monthly * (1.0 + growth_per_year) ** ((month - 1) / 12.0)
        if equal is None and cost > 0 and spent + cost >= training:
            equal = month - 1 + (training - spent) / cost
        spent += cost
    return Lifetime(training, spent, spent / (training + spent), equal)
