"""A scenario turned into the self-contained page: data, texts, style and script in one file."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from inferoptim.economics.draws import stream_key
from inferoptim.economics.page import document
from inferoptim.economics.scenario import INPUTS, OUTPUTS, WHOLE
from inferoptim.economics.scenario_file import Scenario, bounds_of, middle
from inferoptim.economics.simulator.texts import TEXTS
from inferoptim.economics.uncertainty import DRAWS, Range
from inferoptim.errors import ConfigError

# Where each slider stands and how far it travels; the field beside it takes anything that the input allows.
SLIDERS: dict[str, tuple[str, float, float, str]] = {
    "requests_per_day": ("traffic", 1e3, 1e9, "log"),
    "input_tokens": ("traffic", 10, 100_000, "log"),
    "output_tokens": ("traffic", 1, 20_000, "log"),
    "cache_hit": ("traffic", 0, 1, "linear"),
    "growth_per_year": ("traffic", -0.5, 3, "linear"),
    "gpu_s_per_m_input": ("speed", 0.1, 100_000, "log"),
    "gpu_s_per_m_output": ("speed", 1, 100_000, "log"),
    "factor": ("levers", 0.05, 1.5, "linear"),
    "utilisation": ("price", 0.02, 1, "linear"),
    "gpu_hour_price": ("price", 0.02, 20, "log"),
    "gpus_per_node": ("price", 1, 16, "linear"),
    "committed_gpus": ("price", 0, 256, "linear"),
    "commitment_months": ("price", 0, 60, "linear"),
    "horizon_months": ("project", 1, 120, "linear"),
    "ramp_months": ("project", 0, 24, "linear"),
    "migration_cost": ("project", 0, 500_000, "linear"),
    "run_cost_per_month": ("project", 0, 50_000, "linear"),
    "discount_rate": ("project", 0, 0.3, "linear"),
    "api_input_price": ("api", 0, 20, "linear"),
    "api_cached_price": ("api", 0, 20, "linear"),
    "api_output_price": ("api", 0, 80, "linear"),
    "power_w": ("energy", 0, 2000, "linear"),
    "pue": ("energy", 1, 2, "linear"),
    "carbon_g_per_kwh": ("energy", 0, 1000, "linear"),
}
SCRIPTS = ("model.js", "charts.js", "page.js")
# The browser itself refuses any request of the page.
POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'\">"
)


def simulator_page(scenario: Scenario, language: str = "en") -> str:
    """The page of `scenario`, opening in `language`.

    Raises:
        ConfigError: no such language.
    """
    if language not in TEXTS:
        raise ConfigError(f"--lang {language!r}: one of {', '.join(TEXTS)}")
    data = json.dumps(page_data(scenario, language), ensure_ascii=False, separators=(",", ":"))
    # `<` never appears inside a script element, so that no title or label can close it.
    body = (
        '<main id="app"></main><noscript>JavaScript computes the figures of this page.</noscript>'
        f'<script type="application/json" id="data">{data.replace("<", chr(92) + "u003c")}</script>'
    )
    title = scenario.title or TEXTS[language]["title"]
    script = "\n".join(_asset(name) for name in SCRIPTS)
    return document(title, body, _asset("page.css"), script, language, POLICY)


def page_data(scenario: Scenario, language: str) -> dict[str, Any]:
    """What the script reads."""
    bounds = bounds_of(scenario)
    inputs = []
    for item in INPUTS:
        value = scenario.inputs[item.name]
        group, low, high, scale = SLIDERS[item.name]
        start = middle(value)
        inputs.append(
            {
                "name": item.name, "unit": item.unit, "low": item.low, "high": item.high, "strict": item.strict,
                "whole": item.name in WHOLE, "value": start, "assumed": item.name in scenario.assumed, "group": group,
                "slider": [min(low, start) if start > 0 or scale == "linear" else low, max(high, start), scale],
                "range": _range(value, item.name, bounds),
            }
        )  # fmt: skip
    levers = [
        {
            "name": lever.input_name, "label": lever.name, "factor": middle(lever.factor), "on": lever.on,
            "source": lever.source, "range": _range(lever.factor, lever.input_name, bounds),
        }
        for lever in scenario.levers
    ]  # fmt: skip
    choices = [
        {
            "id": choice.id, "label": choice.label, "factor": middle(choice.factor),
            "range": _range(choice.factor, "factor", bounds), "caveats": list(choice.caveats),
        }
        for choice in scenario.choices
    ]  # fmt: skip
    return {
        "language": language,
        "texts": TEXTS,
        "title": scenario.title,
        "notes": list(scenario.notes),
        "currency": scenario.currency,
        "draws": DRAWS,
        "whole": list(WHOLE),
        "inputs": inputs,
        "levers": levers,
        "choices": choices,
        "chosen": scenario.chosen,
        "outputs": list(OUTPUTS),
    }


def _range(value: float | Range, name: str, bounds: dict[str, tuple[float, float]]) -> dict[str, Any] | None:
    if not isinstance(value, Range):
        return None
    return {
        "low": value.low, "mode": value.mode, "high": value.high, "shape": value.shape, "key": stream_key(name),
        "bounds": list(bounds[name]),
    }  # fmt: skip


def _asset(name: str) -> str:
    return (files("inferoptim.economics.simulator") / name).read_text(encoding="utf-8")
