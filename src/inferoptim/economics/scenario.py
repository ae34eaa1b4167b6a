"""The flat scenario behind `roi`, its Monte-Carlo and the HTML simulator: named inputs in, named figures out.

`compute` is mirrored line for line by ``simulator.js``; a test compares both in a real browser to 1e-9 relative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inferoptim.economics.business import CashFlow, break_even, capacity_gain, cash_flow, paid_gpus
from inferoptim.economics.checks import finite
from inferoptim.economics.gpu_hour import HOURS_PER_MONTH, HOURS_PER_YEAR
from inferoptim.economics.vector import ratio, where
from inferoptim.errors import ConfigError

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Input:
    """One named input: its bounds and where the simulator's slider starts."""

    name: str
    unit: str
    low: float  # smallest value accepted
    high: float  # largest value accepted
    start: float  # starting position; not a measurement
    strict: bool = False  # low itself is refused


INPUTS: tuple[Input, ...] = (
    Input("requests_per_day", "requests", 0.0, 1e12, 1_000_000.0, strict=True),
    Input("input_tokens", "tokens", 0.0, 1e7, 500.0),
    Input("output_tokens", "tokens", 0.0, 1e7, 200.0, strict=True),
    Input("cache_hit", "share", 0.0, 1.0, 0.0),
    Input("gpu_s_per_m_input", "GPU·s", 0.0, 1e9, 100.0),
    Input("gpu_s_per_m_output", "GPU·s", 0.0, 1e9, 1000.0, strict=True),
    Input("factor", "×", 0.0, 10.0, 0.6, strict=True),
    Input("utilisation", "share", 0.0, 1.0, 0.5, strict=True),
    Input("gpu_hour_price", "money", 0.0, 1e6, 3.0, strict=True),
    Input("gpus_per_node", "GPUs", 0.0, 1e4, 1.0, strict=True),
    Input("committed_gpus", "GPUs", 0.0, 1e6, 0.0),
    Input("commitment_months", "months", 0.0, 600.0, 0.0),
    Input("growth_per_year", "share", -0.99, 100.0, 0.0),
    Input("horizon_months", "months", 1.0, 120.0, 36.0),
    Input("discount_rate", "share", 0.0, 10.0, 0.08),
    Input("migration_cost", "money", 0.0, 1e12, 30_000.0),
    Input("run_cost_per_month", "money", 0.0, 1e12, 0.0),
    Input("ramp_months", "months", 0.0, 120.0, 3.0),
    Input("api_input_price", "money", 0.0, 1e6, 0.0),
    Input("api_cached_price", "money", 0.0, 1e6, 0.0),
    Input("api_output_price", "money", 0.0, 1e6, 0.0),
    Input("power_w", "W", 0.0, 1e5, 0.0),
    Input("pue", "×", 1.0, 10.0, 1.0),
    Input("carbon_g_per_kwh", "g", 0.0, 5000.0, 0.0),
)
BY_NAME: Mapping[str, Input] = {item.name: item for item in INPUTS}
WHOLE = ("gpus_per_node", "committed_gpus", "commitment_months", "horizon_months", "ramp_months")


def check_input(name: str, value: float) -> float:
    """`value` as a float within the bounds of input `name`.

    Raises:
        ConfigError: unknown name (the nearest suggested), out of bounds, or not whole where it must be.
    """
    if name not in BY_NAME:
        import difflib

        close = difflib.get_close_matches(name, BY_NAME, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(BY_NAME)}"
        raise ConfigError(f"unknown scenario input {name!r}: {hint}")
    spec = BY_NAME[name]
    number = finite(name, value)
    if number < spec.low or number > spec.high or (spec.strict and number == spec.low):
        low = f"above {spec.low:g}" if spec.strict else f"{spec.low:g}"
        hint = " (70 % is 0.7)" if spec.unit == "share" else ""
        raise ConfigError(f"{name} is {number:g}: must go from {low} to {spec.high:g}{hint}")
    if name in WHOLE and number != int(number):
        raise ConfigError(f"{name} is {number:g}: must be a whole number")
    return number


def complete(values: Mapping[str, float]) -> dict[str, float]:
    """All inputs checked; those that are absent take their start value."""
    checked = {name: check_input(name, value) for name, value in values.items()}
    return {item.name: checked.get(item.name, item.start) for item in INPUTS}


OUTPUTS: tuple[str, ...] = (
    "gpus_before",
    "gpus_after",
    "paid_gpus_before",
    "paid_gpus_after",
    "per_million_output_before",
    "per_million_output_after",
    "per_million_input_apart_after",
    "per_million_output_apart_after",
    "cost_index",
    "bill_per_month_before",
    "bill_per_month_after",
    "saving_per_year_theoretical",
    "saving_per_year_realisable",
    "saving_first_year",
    "capacity_gain",
    "gain",
    "cost",
    "roi",
    "npv",
    "payback_months",
    "api_per_month",
    "break_even_requests_per_day",
    "always_cheaper_requests_per_day",
    "kwh_per_million_output",
    "carbon_g_per_million_output",
)


def compute(x: Mapping[str, Any]) -> dict[str, Any]:
    """All figures of one scenario. NaN = undefined here (no API price or power stated, never pays back, nothing spent).

    Args:
        x: every name of `INPUTS`; floats, or numpy arrays of equal length (`horizon_months` is one number).
    """
    return compute_with_flow(x)[0]


def compute_with_flow(x: Mapping[str, Any]) -> tuple[dict[str, Any], CashFlow]:
    """`compute`, and the months behind it (for charts)."""
    price, util = x["gpu_hour_price"], x["utilisation"]
    prefill_s = x["input_tokens"] * (1.0 - x["cache_hit"]) * x["gpu_s_per_m_input"] / 1e6
    decode_s = x["output_tokens"] * x["gpu_s_per_m_output"] / 1e6
    request_s = prefill_s + decode_s
    gpus = x["requests_per_day"] * request_s / 86400.0 / util
    per_request = request_s / util * price / 3600.0
    per_million = per_request / x["output_tokens"] * 1e6
    money_per_gpu_s = price / 3600.0 / util * x["factor"]
    paid_before = paid_gpus(gpus, x["gpus_per_node"], 0.0)
    paid_after = paid_gpus(gpus * x["factor"], x["gpus_per_node"], 0.0)
    month = price * HOURS_PER_MONTH
    flow = cash_flow(
        gpus=gpus,
        factor=x["factor"],
        price=price,
        gpus_per_node=x["gpus_per_node"],
        horizon_months=x["horizon_months"],
        growth_per_year=x["growth_per_year"],
        committed_gpus=x["committed_gpus"],
        commitment_months=x["commitment_months"],
        ramp_months=x["ramp_months"],
        migration_cost=x["migration_cost"],
        run_cost_per_month=x["run_cost_per_month"],
        discount_rate=x["discount_rate"],
    )
    cached = x["input_tokens"] * x["cache_hit"]
    api_request = (
        (x["input_tokens"] - cached) * x["api_input_price"]
        + cached * x["api_cached_price"]
        + x["output_tokens"] * x["api_output_price"]
    ) / 1e6
    node_per_day = x["gpus_per_node"] * price * 24.0
    node_requests = ratio(x["gpus_per_node"] * 86400.0 * util, request_s * x["factor"])
    meets = break_even(node_per_day, node_requests, api_request)
    kwh = (
        request_s * x["factor"] / util / 3600.0 * x["power_w"] / 1000.0 * x["pue"] / x["output_tokens"] * 1e6
    )
    kwh = where(x["power_w"] > 0, kwh, NAN)
    carbon = where(x["carbon_g_per_kwh"] > 0, kwh * x["carbon_g_per_kwh"], NAN)
    apart = (
        x["gpu_s_per_m_input"] > 0
    )  # at zero, the time of the prompt stands with the output: not measured apart
    figures = {
        "gpus_before": gpus,
        "gpus_after": gpus * x["factor"],
        "paid_gpus_before": paid_before,
        "paid_gpus_after": paid_after,
        "per_million_output_before": per_million,
        "per_million_output_after": per_million * x["factor"],
        "per_million_input_apart_after": where(
            apart, (1.0 - x["cache_hit"]) * x["gpu_s_per_m_input"] * money_per_gpu_s, NAN
        ),
        "per_million_output_apart_after": where(apart, x["gpu_s_per_m_output"] * money_per_gpu_s, NAN),
        "cost_index": 100.0 * x["factor"],
        "bill_per_month_before": paid_before * month,
        "bill_per_month_after": paid_after * month,
        "saving_per_year_theoretical": gpus * (1.0 - x["factor"]) * price * HOURS_PER_YEAR,
        "saving_per_year_realisable": (paid_before - paid_after) * price * HOURS_PER_YEAR,
        "saving_first_year": flow.first_year,
        "capacity_gain": capacity_gain(1.0 - x["factor"]),
        "gain": flow.gain,
        "cost": flow.cost,
        "roi": flow.roi,
        "npv": flow.npv,
        "payback_months": flow.payback_months,
        "api_per_month": where(api_request > 0, x["requests_per_day"] * api_request * 365.0 / 12.0, NAN),
        "break_even_requests_per_day": meets.first,
        "always_cheaper_requests_per_day": meets.always,
        "kwh_per_million_output": kwh,
        "carbon_g_per_million_output": carbon,
    }
    return figures, flow


def json_ready(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """Figures with None for what is undefined: JSON has no NaN."""
    return {name: None if math.isnan(value) else float(value) for name, value in figures.items()}
