"""Rules and dashboards: the committed files are what the code makes, complete, and what Grafana's own schema accepts."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from inferoptim.deploy.dashboards import all_dashboards, dashboard_json
from inferoptim.deploy.rules import LATENCY_BUCKETS_S, RuleInputs, alerts, prometheus_yaml, rules_yaml
from inferoptim.errors import ConfigError

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"


@pytest.mark.parametrize("dashboard", all_dashboards(), ids=lambda d: d.uid)
def test_the_committed_dashboard_is_the_generated_one(dashboard):
    committed = (MONITORING / "dashboards" / f"{dashboard.uid}.json").read_text(encoding="utf-8")
    assert committed == dashboard_json(dashboard), "run: inferoptim deploy --part monitoring, and copy"


def test_the_committed_rules_are_the_generated_ones():
    assert (MONITORING / "rules.yml").read_text(encoding="utf-8") == rules_yaml(RuleInputs())
    assert (MONITORING / "prometheus.yml").read_text(encoding="utf-8") == prometheus_yaml()


@pytest.mark.parametrize("dashboard", all_dashboards(), ids=lambda d: d.uid)
def test_grafanas_published_schema_keeps_every_field(dashboard):
    """Read into the types of Grafana's Foundation SDK and written again: a field they do not know would be lost."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models import dashboard as schema
    from grafana_foundation_sdk.models import heatmap, stat, table, timeseries

    register_default_plugins()
    options = {
        "stat": stat.Options,
        "timeseries": timeseries.Options,
        "heatmap": heatmap.Options,
        "table": table.Options,
    }

    def through(kind: Any, value: Any) -> Any:
        return json.loads(JSONEncoder().encode(kind.from_json(value)))

    value = json.loads(dashboard_json(dashboard))
    assert not _lost(value, through(schema.Dashboard, value))
    for panel in value["panels"]:
        if panel["type"] == "row":
            continue
        assert not _lost(panel["options"], through(options[panel["type"]], panel["options"])), panel["title"]
        custom = panel["fieldConfig"]["defaults"].get("custom")
        if custom:
            assert not _lost(custom, through(timeseries.FieldConfig, custom)), panel["title"]


def _lost(given: Any, kept: Any, where: str = "") -> list[str]:
    if isinstance(given, dict) and isinstance(kept, dict):
        missing = [f"{where}.{key}" for key in given if key not in kept]
        return missing + [
            p for key in given if key in kept for p in _lost(given[key], kept[key], f"{where}.{key}")
        ]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [
            p for i, (a, b) in enumerate(zip(given, kept, strict=True)) for p in _lost(a, b, f"{where}[{i}]")
        ]
    return [] if given == kept else [f"{where}: {given!r} became {kept!r}"]


@pytest.mark.parametrize("dashboard", all_dashboards(), ids=lambda d: d.uid)
def test_panels_neither_overlap_nor_leave_the_page(dashboard):
    panels = json.loads(dashboard_json(dashboard))["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    for a, b in combinations([p["gridPos"] for p in panels], 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (a, b)
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in panels)


def test_every_alert_has_hold_severity_summary_and_a_runbook_that_names_it():
    found = [
        rule
        for group in yaml.safe_load(rules_yaml(RuleInputs()))["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert len(found) == len(alerts(RuleInputs())) >= 15
    for rule in found:
        assert re.fullmatch(r"\d+[mh]", rule["for"])
        assert rule["labels"]["severity"] in ("page", "ticket", "info")
        assert rule["annotations"]["summary"]
        page = ROOT / rule["annotations"]["runbook_url"]
        assert rule["alert"] in page.read_text(encoding="utf-8").splitlines()[0], page
    pages = {p.stem for p in (ROOT / "docs" / "runbooks").glob("*.md")}
    assert pages == {a.runbook for a in alerts(RuleInputs())}


def test_the_guides_three_rules_are_there_corrected_and_say_why():
    text = rules_yaml(RuleInputs())
    for name in ("HighLatency", "LowThroughput", "GPUMemoryHigh"):
        assert re.search(rf"# guide 7\.3 {name} .*corrected:", text), name


def test_objectives_are_buckets_that_the_server_exports():
    from inferoptim.serving import metrics

    assert set(LATENCY_BUCKETS_S) <= set(metrics.TTFT_BUCKETS)
    assert set(LATENCY_BUCKETS_S) <= set(metrics.Metrics(_ledger()).e2e.buckets)
    with pytest.raises(ConfigError, match=r"nearest are 2 and 2\.5"):
        RuleInputs(ttft_s=2.2)


def _ledger() -> Any:
    from inferoptim.serving.money import Ledger, Prices

    return Ledger(Prices())


@pytest.mark.parametrize(
    "wrong",
    [
        {"objective": 1.0},
        {"objective": 0},
        {"usd_per_million_output_tokens": 0},
        {"job": 'x"} or vector(1) #'},
    ],
)
def test_rule_inputs_that_make_no_rule_are_refused(wrong):
    with pytest.raises(ConfigError):
        RuleInputs(**wrong)
