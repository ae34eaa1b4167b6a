"""What one GPU costs for one hour, owned or rented, every term apart.

Formulas accept numpy arrays wherever they accept floats (the Monte-Carlo runs them on 10 000 draws at once).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from inferoptim.economics.checks import finite, non_negative, positive, share, whole
from inferoptim.errors import ConfigError

HOURS_PER_YEAR = 8760.0
HOURS_PER_MONTH = 730.0  # 8760 / 12


@dataclass(frozen=True, slots=True)
class Term:
    """One line of the price of a GPU hour."""

    name: str
    per_gpu_hour: float
    basis: str  # how it was computed, in words with the figures


@dataclass(frozen=True, slots=True)
class GpuHour:
    """The price of one GPU for one hour and the terms that make it."""

    currency: str
    terms: tuple[Term, ...]
    label: str = ""

    @property
    def total(self) -> float:
        """Sum of the terms, in `currency` per GPU-hour."""
        return sum(term.per_gpu_hour for term in self.terms)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON and tables."""
        return {
            "label": self.label,
            "currency": self.currency,
            "per_gpu_hour": self.total,
            "terms": [{"name": t.name, "per_gpu_hour": t.per_gpu_hour, "basis": t.basis} for t in self.terms],
        }


def capital_recovery_factor(rate: float, years: float) -> float:
    """Yearly payment that repays 1 over `years` at interest `rate`; straight line when the rate is zero.

    Source: Park, Contemporary Engineering Economics, ch. 3: CRF = i (1+i)^n / ((1+i)^n - 1).

    >>> round(capital_recovery_factor(0.08, 3), 5)
    0.38803
    """
    if rate < 1e-12:  # straight line, to eleven digits; the formula would divide by nothing
        return 1.0 / years
    return -rate / math.expm1(-years * math.log1p(rate))  # the same, exact for a rate next to zero


def capital_per_year(capex: float, residual: float, rate: float, years: float) -> float:
    """Level yearly cost of `capex` now, worth `residual` after `years`, at cost of capital `rate`.

    Source: Park, Contemporary Engineering Economics, ch. 6 (capital recovery with return): (P - S) CRF + i S.
    """
    return (capex - residual) * capital_recovery_factor(rate, years) + rate * residual


@dataclass(frozen=True, slots=True)
class OwnedNode:
    """A node that one buys and runs. Money in `currency`; power in watts at the wall of the node."""

    capex: float
    gpus: int
    years: float
    currency: str
    cost_of_capital: float = 0.0  # per year
    residual_share: float = 0.0  # of capex, at the end
    power_w: float = 0.0  # mean draw of the node
    power_measured: bool = False
    pue: float = 1.0
    kwh_price: float = 0.0
    hosting_per_month: float = 0.0
    support_share: float = 0.0  # of capex, per year
    staff_per_year: float = 0.0
    opex_share: float = 0.0  # of capex, per year: a lump where the detail is not known
    availability: float = 1.0  # share of hours that the node can serve

    def __post_init__(self) -> None:
        positive("capex", self.capex)
        whole("GPUs per node", self.gpus)
        positive("amortisation years", self.years)
        non_negative("cost of capital", self.cost_of_capital)
        share("residual share", self.residual_share)
        for name in (
            "power_w",
            "kwh_price",
            "hosting_per_month",
            "support_share",
            "staff_per_year",
            "opex_share",
        ):
            non_negative(name, getattr(self, name))
        share("availability", self.availability, zero=False)
        if finite("PUE", self.pue) < 1:
            raise ConfigError(
                f"PUE is {self.pue:g}: at least 1 (all power of the site / power of the machines)"
            )


def owned_gpu_hour(node: OwnedNode) -> GpuHour:
    """Price of one available GPU-hour on an owned node, term by term.

    The capital term is split into straight-line depreciation and the cost of the money tied up.
    """
    hours = HOURS_PER_YEAR * node.availability * node.gpus
    residual = node.capex * node.residual_share
    capital = capital_per_year(node.capex, residual, node.cost_of_capital, node.years)
    depreciation = (node.capex - residual) / node.years
    energy_kwh = node.power_w / 1000.0 * node.pue * HOURS_PER_YEAR
    origin = "measured at the GPUs" if node.power_measured else "stated"
    money = node.currency
    rows = [
        (
            "depreciation",
            depreciation,
            f"({node.capex:,.0f} - {residual:,.0f}) {money} over {node.years:g} years",
        ),
        (
            "cost of capital",
            capital - depreciation,
            f"{node.cost_of_capital:.1%} a year, capital-recovery factor",
        ),
        (
            "power",
            energy_kwh * node.kwh_price,
            f"{node.power_w:,.0f} W ({origin}) × PUE {node.pue:g} × {node.kwh_price:g} {money}/kWh",
        ),
        ("hosting", node.hosting_per_month * 12, f"{node.hosting_per_month:,.0f} {money} a month and node"),
        ("support", node.capex * node.support_share, f"{node.support_share:.1%} of capex a year"),
        ("staff", node.staff_per_year, f"{node.staff_per_year:,.0f} {money} a year and node"),
        ("other operation", node.capex * node.opex_share, f"{node.opex_share:.1%} of capex a year"),
    ]
    gross = HOURS_PER_YEAR * node.gpus
    terms = [Term(name, yearly / gross, basis) for name, yearly, basis in rows if yearly != 0]
    if node.availability < 1:
        total = sum(yearly for _, yearly, _ in rows)
        lost = total / hours - total / gross
        terms.append(
            Term("unavailable hours", lost, f"paid but down {1 - node.availability:.2%} of the time")
        )
    return GpuHour(money, tuple(terms), "owned")


@dataclass(frozen=True, slots=True)
class Rental:
    """A rented GPU. `price` is per GPU-hour in `currency`; what the mode adds is stated apart."""

    price: float
    currency: str
    mode: str = "on-demand"
    upfront: float = 0.0  # paid once for the term, per GPU
    term_hours: float = 0.0
    extras_per_hour: float = 0.0  # storage, operating system, egress; per GPU-hour
    interruptions_per_day: float = 0.0  # spot only
    lost_hours_per_interruption: float = 0.0  # work redone + reload, spot only

    def __post_init__(self) -> None:
        positive("price of a GPU-hour", self.price)
        for name in (
            "upfront",
            "term_hours",
            "extras_per_hour",
            "interruptions_per_day",
            "lost_hours_per_interruption",
        ):
            non_negative(name, getattr(self, name))
        if self.upfront:
            positive("term_hours (an upfront fee is spread over its term)", self.term_hours)


def spot_rework_factor(interruptions_per_day: float, lost_hours: float) -> float:
    """Paid hours per useful hour: each useful hour meets `interruptions/24` losses of `lost_hours`, all paid."""
    return 1.0 + interruptions_per_day / 24.0 * lost_hours


def rented_gpu_hour(rental: Rental) -> GpuHour:
    """Price of one useful GPU-hour, rented."""
    money = rental.currency
    terms = [Term("rent", rental.price, f"{rental.mode}, {rental.price:g} {money} per GPU-hour")]
    if rental.upfront:
        terms.append(
            Term(
                "upfront fee",
                rental.upfront / rental.term_hours,
                f"{rental.upfront:,.0f} {money} over {rental.term_hours:,.0f} h",
            )
        )
    if rental.extras_per_hour:
        terms.append(Term("extras", rental.extras_per_hour, "storage, system, egress: stated"))
    rework = spot_rework_factor(rental.interruptions_per_day, rental.lost_hours_per_interruption) - 1.0
    if rework:
        paid = sum(term.per_gpu_hour for term in terms)
        terms.append(
            Term(
                "spot rework",
                paid * rework,
                f"{rental.interruptions_per_day:g} interruptions a day × {rental.lost_hours_per_interruption:g} h lost",
            )
        )
    return GpuHour(money, tuple(terms), rental.mode)
