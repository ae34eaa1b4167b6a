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
from inferoptim.economics.vector import rint
from inferoptim.errors import ConfigError

NO_RANGE = ("horizon_months", "gpus_per_node")


@dataclass(frozen=True, slots=True)
class Lever:
    """One switch of the simulator: GPU time with it over GPU time without, and who says so."""

    name: str
    factor: float | Range
    source: str
    on: bool = True

    @property
    def input_name(self) -> str:
        """Its name among the inputs that may vary: kept apart from the inputs of the scenario."""
        return f"lever: {self.name}"


@dataclass(frozen=True, slots=True)
class Choice:
    """One configuration that a run measured: its GPU time over the baseline's. Choices exclude each other.

    Factors of single levers are not multiplied here: only what was measured together is offered.
    """

    id: str
    label: str
    factor: float | Range
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that `roi` and the simulator need. Inputs that were not stated take the start values, listed apart."""

    inputs: Mapping[str, float | Range]
    currency: str = "EUR"
    levers: tuple[Lever, ...] = ()
    assumed: tuple[str, ...] = ()  # inputs left at their start value
    title: str = ""
    notes: tuple[str, ...] = field(default=())
    choices: tuple[Choice, ...] = ()
    chosen: str = ""  # id of the choice that `factor` is of

    def central(self) -> dict[str, float]:
        """Every input at its mode."""
        return {name: middle(v) for name, v in self.inputs.items()}

    def varying(self) -> dict[str, float | Range]:
        """The inputs, and beside them the levers that are on: what Monte-Carlo and tornado move."""
        return {**self.inputs, **{lv.input_name: lv.factor for lv in self.levers if lv.on}}

    def model(self, x: Mapping[str, Any]) -> dict[str, Any]:
        """`compute` on `varying()` or draws of it: levers multiply into `factor`, counts are whole."""
        values = {name: rint(x[name]) if name in WHOLE else x[name] for name in BY_NAME}
        on = [x[lv.input_name] for lv in self.levers if lv.on]
        if self.levers:
            values["factor"] = math.prod(on) if on else 1.0
        return compute(values)


def middle(value: float | Range) -> float:
    """The mode of a range; a number itself."""
    return value.mode if isinstance(value, Range) else value


def build(
    stated: Mapping[str, Any],
    *,
    currency: str = "EUR",
    levers: Sequence[Lever] = (),
    title: str = "",
    notes: Sequence[str] = (),
    choices: Sequence[Choice] = (),
    chosen: str = "",
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
    if len({lv.name for lv in levers}) < len(levers):
        raise ConfigError("two levers have the same name")
    for lever in levers:
        low = lever.factor.low if isinstance(lever.factor, Range) else lever.factor
        positive(f"factor of {lever.name}", low)
    if levers:
        product = math.prod(middle(lv.factor) for lv in levers if lv.on)
        values["factor"] = check_input("factor", product)
    filled = complete({name: v for name, v in values.items() if not isinstance(v, Range)})
    inputs = {name: values.get(name, filled[name]) for name in BY_NAME}
    assumed = tuple(name for name in BY_NAME if name not in values)
    return Scenario(inputs, currency, tuple(levers), assumed, title, tuple(notes), tuple(choices), chosen)


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
        name = str(entry["name"])
        factor = parse_range(f"factor of {name}", entry["factor"])
        levers.append(Lever(name, factor, str(entry["source"]), bool(entry.get("on", True))))
    return build(
        data.get("inputs", {}),
        currency=str(data.get("currency", "EUR")).upper(),
        levers=levers,
        title=str(data.get("title", "")),
    )


def spreads(scenario: Scenario, draws: int = DRAWS, seed: int = 0) -> dict[str, Spread]:
    """Every output of the scenario with its spread over the ranges of the inputs."""
    return monte_carlo(scenario.model, scenario.varying(), draws, seed, bounds_of(scenario))


def drivers(scenario: Scenario, output: str) -> tuple[Bar, ...]:
    """Tornado of one output of the scenario."""
    return tornado(scenario.model, scenario.varying(), output)


def bounds_of(scenario: Scenario) -> dict[str, tuple[float, float]]:
    """Where draws of each input are stopped: the tails of a measured range can leave what an input allows."""
    factor = (1e-12, BY_NAME["factor"].high)
    bounds = {lever.input_name: factor for lever in scenario.levers}
    for name, spec in BY_NAME.items():
        bounds[name] = (spec.low + 1e-12 if spec.strict else spec.low, spec.high)
    return bounds
