"""The simulator in real Chromium: its JavaScript against the Python over a grid, its controls, both languages."""

from __future__ import annotations

import html
import itertools
import json
import math
import random
import re
import shutil
import subprocess

import pytest

from inferoptim.economics.scenario import BY_NAME, INPUTS, compute, json_ready
from inferoptim.economics.scenario_file import Choice, Lever, build, drivers, read_scenario, spreads
from inferoptim.economics.simulator import simulator_page
from inferoptim.economics.simulator.texts import EN, FR
from inferoptim.economics.uncertainty import Range

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs the browser 'chromium' (Debian: apt-get install chromium)"
)

SCENARIO = build(
    {
        "requests_per_day": {"low": 4e6, "mode": 5e6, "high": 9e6}, "input_tokens": 700, "output_tokens": 200,
        "gpu_s_per_m_input": 15.0, "gpu_s_per_m_output": {"low": 380, "mode": 400, "high": 430, "shape": "measured"},
        "utilisation": {"low": 0.3, "mode": 0.5, "high": 0.7, "shape": "uniform"}, "gpu_hour_price": 2.9,
        "gpus_per_node": 8, "committed_gpus": {"low": 8, "mode": 16, "high": 24}, "commitment_months": 7,
        "growth_per_year": 0.3, "migration_cost": 40_000, "run_cost_per_month": 700, "api_input_price": 0.15,
        "api_cached_price": 0.075, "api_output_price": 0.6, "power_w": 900, "pue": 1.2, "carbon_g_per_kwh": 56,
    },
    levers=[
        Lever("FP8", Range(0.55, 0.6, 0.68, "measured"), "a test"),
        Lever("batching </script>", 0.75, "a test"),
        Lever("off", 0.5, "a test", on=False),
    ],
    title='Test "scenario" <b>',
)  # fmt: skip


def grid() -> list[dict[str, float]]:
    """Corners of what changes the formulas' branches, and random points in between."""
    corners = itertools.product(
        (0.3, 1.0, 1.7), (0.0, 30_000.0), (1.0, 8.0), (0.0, 0.6), (0.0, 1.0), (-0.5, 0.8)
    )
    points = []
    for factor, migration, node, api, hit, growth in corners:
        points.append(
            {
                "factor": factor, "migration_cost": migration, "gpus_per_node": node, "api_output_price": api,
                "cache_hit": hit, "growth_per_year": growth, "power_w": 700.0 if api else 0.0,
                "carbon_g_per_kwh": 50.0, "committed_gpus": 16.0 * hit, "commitment_months": 6.0,
            }
        )  # fmt: skip
    draw = random.Random(6)
    for _ in range(250):
        point = {}
        for item in INPUTS:
            low, high = max(item.low, 1e-3), min(item.high, 1e7)
            value = math.exp(draw.uniform(math.log(low), math.log(high)))
            if item.unit == "share" and draw.random() < 0.2:
                value = item.high if item.high <= 1 else 0.0
            if not item.strict and draw.random() < 0.15:
                value = max(0.0, item.low)
            whole = item.name in (
                "gpus_per_node",
                "committed_gpus",
                "commitment_months",
                "horizon_months",
                "ramp_months",
            )
            point[item.name] = float(round(value)) or 1.0 if whole else value
        points.append({**point, "factor": draw.uniform(0.05, 3.0)})
    return [{item.name: point.get(item.name, item.start) for item in INPUTS} for point in points]


def in_browser(page: str, script: str, folder) -> dict:
    """Run `script` at the end of the page in Chromium; it assigns to `result`, which comes back."""
    probe = (
        "<script>(() => { let result; try { "
        + script
        + " } catch (e) { result = {error: String(e.stack || e)}; }"
        " const out = document.createElement('pre'); out.id = 'result'; out.textContent = JSON.stringify(result);"
        " document.body.append(out); })();</script></body>"
    )
    file = folder / "page.html"
    file.write_text(page.replace("</body>", probe), encoding="utf-8")
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.S)
    assert found, f"no result from the page: {done.stderr[-500:]}"
    result = json.loads(html.unescape(found.group(1)))
    assert "error" not in result, result["error"]
    return result


def close(theirs: float | None, ours: float | None, what: str) -> None:
    if ours is None or theirs is None:
        assert ours == theirs, f"{what}: Python {ours}, JavaScript {theirs}"
    else:
        assert theirs == pytest.approx(ours, rel=1e-9, abs=1e-300), what


@needs_chromium
def test_javascript_computes_what_python_computes(tmp_path):
    points = grid()
    script = f"""
      const points = {json.dumps(points)}, state = simulator.modelState();
      const plain = (o) => Object.fromEntries(Object.entries(o).map(([k, v]) => [k, Number.isNaN(v) ? null : v]));
      result = {{
        grid: points.map((x) => plain(model.computeWithFlow(x).figures)),
        flow: model.computeWithFlow(points[0]).flow.line,
        central: plain(model.computeWithFlow(model.assemble(state, {{}})).figures),
        spreads: model.spreads(state, simulator.outputs, 10000),
        tornado: model.tornado(state, "npv", model.rangesOf(state)),
      }};"""
    result = in_browser(simulator_page(SCENARIO), script, tmp_path)

    assert len(result["grid"]) == len(points) > 300
    for number, (point, theirs) in enumerate(zip(points, result["grid"], strict=True)):
        ours = json_ready(compute(point))
        assert set(ours) == set(theirs)
        for name, value in ours.items():
            close(theirs[name], value, f"point {number}, {name}")

    python = spreads(SCENARIO)
    for name, spread in python.items():
        close(result["central"][name], spread.value, name)
        for key in ("low", "median", "high", "positive_share", "undefined_share"):
            close(result["spreads"][name][key], getattr(spread, key), f"{name} {key}")

    bars = drivers(SCENARIO, "npv")
    assert [b.name for b in bars] == [b["name"] for b in result["tornado"]]
    for ours, theirs in zip(bars, result["tornado"], strict=True):
        close(theirs["atLow"], ours.at_low, ours.name)
        close(theirs["atHigh"], ours.at_high, ours.name)


@needs_chromium
def test_controls_move_the_figures_in_both_languages_and_the_state_is_saved(tmp_path):
    script = """
      const type = (name, text) => {
        const el = document.querySelector(`input[type=text][data-name=${name}]`);
        el.value = text; el.dispatchEvent(new Event("input", {bubbles: true}));
        return el.getAttribute("aria-invalid");
      };
      const says = () => document.querySelector(".says").textContent;
      const paths = () => [...document.querySelectorAll("svg .line")].map((p) => p.getAttribute("d")).join();
      result = {before: says(), drawn: paths(), svgs: document.querySelectorAll("svg").length,
                bars: document.querySelectorAll(".bar").length, assumed: document.querySelectorAll(".assumed").length};
      result.refused = [type("utilisation", "120 %"), type("gpu_hour_price", "-3"), type("requests_per_day", "many")];
      result.kept = simulator.modelState().values.utilisation;
      result.taken = [type("utilisation", "80 %"), type("requests_per_day", "12,000,000"), type("horizon_months", "24")];
      const slider = document.querySelector("input[type=range][data-name=migration_cost]");
      slider.value = 1000; slider.dispatchEvent(new Event("input", {bubbles: true}));
      document.querySelectorAll("[data-lever]")[2].click();
      result.state = simulator.modelState();
      result.after = says(); result.redrawn = paths(); result.hash = location.hash;
      result.file = simulator.scenarioFile();
      document.querySelector('[data-lang="fr"]').click();
      result.french = says(); result.lang = document.documentElement.lang;
      result.typedFrench = type("utilisation", "55,5 %"); result.half = simulator.modelState().values.utilisation;
      document.querySelector('[data-do="reset"]').click();
      result.reset = simulator.modelState().values.utilisation;
      result.bold = document.querySelectorAll("h1 b, .pick b").length;
    """
    result = in_browser(simulator_page(SCENARIO), script, tmp_path)

    assert result["svgs"] == 3  # cash flow, bill, API; the tornado is made of boxes
    assert result["bars"] >= 4
    assert result["assumed"] == len(SCENARIO.assumed)
    assert result["refused"] == ["true"] * 3
    assert result["kept"] == 0.5
    assert result["taken"] == ["false"] * 3
    values = result["state"]["values"]
    assert (values["utilisation"], values["requests_per_day"], values["horizon_months"]) == (0.8, 12e6, 24)
    assert values["migration_cost"] == 500_000
    # The range went with its slider: 0.3 to 0.7 around 0.5 becomes 0.48 to 1 (1.12 is stopped at the bound).
    moved = result["state"]["ranges"]["utilisation"]
    assert (moved["low"], moved["high"]) == pytest.approx((0.48, 1.0))
    assert result["before"] != result["after"]
    assert result["drawn"] != result["redrawn"]
    assert "utilisation=0.8" in result["hash"]
    assert (result["lang"], result["typedFrench"], result["half"]) == ("fr", "false", 0.555)
    assert "le million de tokens" in result["french"]
    assert result["reset"] == 0.5
    assert result["bold"] == 0  # a title or a label never becomes markup

    saved = tmp_path / "scenario.toml"
    saved.write_text(result["file"], encoding="utf-8")
    again = read_scenario(saved)
    assert again.title == SCENARIO.title
    assert [lever.on for lever in again.levers] == [True, True, True]
    central = again.central()
    assert central["utilisation"] == 0.8
    assert central["factor"] == pytest.approx(0.6 * 0.75 * 0.5)
    assert set(again.assumed) == set(SCENARIO.assumed) - {"horizon_months"}


@needs_chromium
def test_measured_configurations_exclude_each_other(tmp_path):
    base = {name: SCENARIO.inputs[name] for name in BY_NAME if name not in ("factor", *SCENARIO.assumed)}
    scenario = build(
        {**base, "factor": Range(0.4, 0.5, 0.6, "measured")},
        choices=[Choice("fast", "fast", Range(0.4, 0.5, 0.6, "measured")), Choice("slow", "slow", 0.9, ("one run",))],
        chosen="fast",
    )  # fmt: skip
    script = """
      const factor = () => model.assemble(simulator.modelState(), {}).factor;
      result = {first: factor(), ranged: "factor" in simulator.modelState().ranges};
      document.querySelectorAll("[name=choice]")[1].click();
      result.second = factor(); result.rangedSecond = "factor" in simulator.modelState().ranges;
      result.caveat = document.querySelector(".pick .warn").textContent; result.says = document.querySelector(".says").textContent;
    """
    result = in_browser(simulator_page(scenario), script, tmp_path)
    assert (result["first"], result["second"]) == (0.5, 0.9)
    assert (result["ranged"], result["rangedSecond"]) == (True, False)
    assert "one run" in result["caveat"]
    assert "slow" in result["says"]


def test_the_page_stands_alone():
    page = simulator_page(SCENARIO, "fr")
    assert "default-src 'none'" in page  # the browser itself refuses any request
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert page.count("</script>") == 2  # the title cannot close the data
    assert '<html lang="fr">' in page


def test_every_text_exists_in_both_languages_with_the_same_holes():
    assert set(EN) == set(FR)
    for key, text in EN.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", FR[key])), key
    assert {f"in.{item.name}" for item in INPUTS} <= set(EN)
