"""Grafana dashboards as code: three pages for three readers (on call, platform, finance), committed as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from inferoptim.deploy.page_finops import finops
from inferoptim.deploy.page_hardware import hardware
from inferoptim.deploy.page_service import service
from inferoptim.deploy.panels import Dashboard, Panel, Query

SCHEMA_VERSION = 39
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def all_dashboards() -> tuple[Dashboard, ...]:
    """The three pages."""
    return service(), hardware(), finops()


def expressions(dashboards: Sequence[Dashboard]) -> list[tuple[str, str, Query]]:
    """(dashboard, panel, query) of everything that is asked of Prometheus."""
    return [(d.uid, p.title, q) for d in dashboards for p in d.panels for q in p.queries]


@dataclass(slots=True)
class _Grid:
    """Places panels from left to right on Grafana's 24 columns."""

    x: int = 0
    y: int = 0
    tallest: int = 0
    made: list[dict[str, Any]] = field(default_factory=list)

    def place(self, width: int, height: int) -> dict[str, int]:
        if self.x + width > 24:
            self.new_line()
        at = {"x": self.x, "y": self.y, "w": width, "h": height}
        self.x += width
        self.tallest = max(self.tallest, height)
        return at

    def new_line(self) -> None:
        self.x, self.y, self.tallest = 0, self.y + self.tallest, 0


def dashboard_json(dashboard: Dashboard) -> str:
    """The file Grafana provisions; the same bytes for the same code."""
    grid = _Grid()
    for title, panels in dashboard.rows:
        grid.new_line()
        grid.made.append(
            {
                "id": len(grid.made) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": grid.place(24, 1),
            }
        )
        grid.new_line()
        for panel in panels:
            grid.made.append(_panel(panel, len(grid.made) + 1, grid.place(panel.width, panel.height)))
    value = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": list(dashboard.tags),
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "inferoptim",
                "tags": ["inferoptim"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
            }
        ],
        "templating": {"list": _variables()},
        "panels": grid.made,
    }
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _variables() -> list[dict[str, Any]]:
    def choice(name: str, label: str, query: str) -> dict[str, Any]:
        return {
            "type": "query",
            "name": name,
            "label": label,
            "datasource": _SOURCE,
            "query": {"query": query, "refId": "variable"},
            "refresh": 2,
            "sort": 1,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        }

    return [
        {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"},
        choice("job", "Job", "label_values(inferoptim_engine_up, job)"),
        choice("instance", "Instance", 'label_values(inferoptim_engine_up{job=~"$job"}, instance)'),
    ]


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "text" if panel.kind == "stat" else "green", "value": None}]
    if panel.thresholds:
        steps = [
            {"color": colour, "value": None if index == 0 else value}
            for index, (value, colour) in enumerate(panel.thresholds)
        ]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "noValue": "not measured",
        "thresholds": {"mode": "absolute", "steps": steps},
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
    }
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 25 if panel.stack else 0,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stack else "none", "group": "A"},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.note,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": [_target(panel, query, "ABCDEFGH"[i]) for i, query in enumerate(panel.queries)],
    }


def _target(panel: Panel, query: Query, ref: str) -> dict[str, Any]:
    instant = panel.kind == "table"
    return {
        "refId": ref,
        "datasource": _SOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "instant": instant,
        "range": not instant,
        "format": {"heatmap": "heatmap", "table": "table"}.get(panel.kind, "time_series"),
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "value",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
    if panel.kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.kind == "heatmap":
        return {
            "calculate": False,
            "yAxis": {"unit": "short"},
            "color": {"scheme": "Blues", "mode": "scheme"},
        }
    return {"showHeader": True, "cellHeight": "sm"}
