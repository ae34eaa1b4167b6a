"""Scenario files (TOML): numbers and ranges of inputs, and the levers whose factors multiply into `factor`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inferoptim.economics.checks import positive
from inferoptim.economics.scenario import BY_NAME, WHOLE, check_input, complete, compute
from inferoptim.economics.toml_file import read_toml
from inferoptim.economics.uncertainty import DRAWS, Bar, Range, Spread, monte_carlo, parse_range, tornado
from inferoptim.errors import ConfigError

NO_RANGE = ("horizon_months", "gpus_per_node")


@dataclass(frozen=True, slots=True)
class Lever:
    """One switch of the simulator: GPU time with it over GPU time without, and who says so."""

    name: str
    factor: float
    source: str
    on: bool = True


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that `roi` and the simulator need. Inputs that were not stated take the start values, listed apart."""

    inputs: Mapping[str, float | Range]
    currency: str = "EUR"
    levers: tuple[Lever, ...] = ()
    assumed: tuple[str, ...] = ()  # inputs left at their start value
    title: str = ""
    notes: tuple[str, ...] = field(default=())

    def central(self) -> dict[str, float]:
        """Every input at its mode."""
        return {name: v.mode if isinstance(v, Range) else v for name, v in self.inputs.items()}


def build(
    stated: Mapping[str, Any],
    *,
    currency: str = "EUR",
    levers: Sequence[Lever] = (),
    title: str = "",
    notes: Sequence[str] = (),
) -> Scenario:
    """Check stated inputs (numbers or ranges) and fill the rest with start values.

    Raises:
        ConfigError: an unknown input, one out of bounds, a range where none is possible, or `factor` stated twice.
    """
    values: dict[str, float | Range] = {}
    for name, raw in stated.items():
        value = raw if isinstance(raw, Range) else parse_range(name, raw)
        if isinstance(value, Range):
            for end in (value.low, value.mode, value.high):
                check_input(name, round(end) if name in WHOLE else end)
            if name in NO_RANGE:
                raise ConfigError(f"{name} cannot be a range: state one number")
            values[name] = value
        else:
            values[name] = check_input(name, value)
    if levers and "factor" in values:
        raise ConfigError("state either `factor` or levers, not both: levers multiply into the factor")
    if levers:
        values["factor"] = math.prod(positive(f"factor of {lv.name}", lv.factor) for lv in levers if lv.on)
    filled = complete({name: v for name, v in values.items() if not isinstance(v, Range)})
    inputs = {name: values.get(name, filled[name]) for name in BY_NAME}
    assumed = tuple(name for name in BY_NAME if name not in values)
    return Scenario(inputs, currency, tuple(levers), assumed, title, tuple(notes))


def read_scenario(path: Path) -> Scenario:
    """Read a scenario file.

    Raises:
        ConfigError: unreadable, not TOML, or an entry that does not check; the file comes first in the message.
    """
    data = read_toml(path)
    try:
        return _from_data(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _from_data(data: Mapping[str, Any]) -> Scenario:
    unknown = sorted(set(data) - {"inputs", "lever", "currency", "title"})
    if unknown:
        raise ConfigError(f"unknown entry {', '.join(unknown)} (expected title, currency, inputs, lever)")
    levers = []
    for entry in data.get("lever", []):
        extra = sorted(set(entry) - {"name", "factor", "source", "on"})
        if extra or "name" not in entry or "factor" not in entry or "source" not in entry:
            raise ConfigError("a lever has name, factor and source (and on = true/false), nothing else")
        levers.append(
            Lever(str(entry["name"]), entry["factor"], str(entry["source"]), bool(entry.get("on", True)))
        )
    return build(
        data.get("inputs", {}),
        currency=str(data.get("currency", "EUR")).upper(),
        levers=levers,
        title=str(data.get("title", "")),
    )


def spreads(scenario: Scenario, draws: int = DRAWS, seed: int = 0) -> dict[str, Spread]:
    """Every output of the scenario with its spread over the ranges of the inputs."""
    import numpy as np

    def model(x: Mapping[str, Any]) -> dict[str, Any]:
        return compute(
            {k: np.rint(v) if k in WHOLE and not isinstance(v, float) else v for k, v in x.items()}
        )

    bounds = {}
    for name, spec in BY_NAME.items():
        low = max(spec.low, 0.0) + 1e-12 if spec.strict else spec.low
        bounds[name] = (low, spec.high)
    return monte_carlo(model, scenario.inputs, draws, seed, bounds)


def drivers(scenario: Scenario, output: str) -> tuple[Bar, ...]:
    """Tornado of one output of the scenario."""
    return tornado(compute, scenario.inputs, output)
