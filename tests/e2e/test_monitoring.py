"""A real Prometheus over a real server: the rules hold in promtool, and every expression finds what it asks for."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from inferoptim.deploy.dashboards import all_dashboards, expressions
from inferoptim.deploy.rules import RuleInputs, alerts, prometheus_yaml, recordings, rules_yaml
from tests.server import RunningServer

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="the Debian package prometheus is not installed (apt-get install prometheus)",
)
PATIENCE_S = 90.0


@needs_prometheus
@pytest.mark.parametrize("arguments", [["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]])
def test_promtool_accepts_the_rules_and_their_cases(arguments):
    done = subprocess.run(
        ["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_the_cases_can_fail(tmp_path):
    """A rule that lost its guard against quiet nights must be caught by the cases."""
    weaker = (MONITORING / "rules.yml").read_text().replace(">= 50", ">= 0")
    (tmp_path / "rules.yml").write_text(weaker)
    cases = yaml.safe_load((MONITORING / "rules_test.yml").read_text())
    cases["tests"] = [
        case for case in cases["tests"] if case["name"].startswith("four slow requests at night")
    ]
    assert cases["tests"]
    (tmp_path / "rules_test.yml").write_text(yaml.safe_dump(cases))
    done = subprocess.run(
        ["promtool", "test", "rules", "rules_test.yml"], cwd=tmp_path, capture_output=True, timeout=120
    )
    assert done.returncode != 0


class Prometheus:
    """One Prometheus process with our configuration, sped up."""

    def __init__(self, folder: Path, target: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = prometheus_yaml(target=target).replace("15s", "500ms").replace("30s", "500ms")
        (folder / "prometheus.yml").write_text(config)
        (folder / "rules.yml").write_text(
            rules_yaml(RuleInputs()).replace("interval: 30s", "interval: 500ms")
        )
        self._log = (folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def query(self, expression: str) -> list[dict[str, Any]]:
        data = urllib.parse.urlencode({"query": expression}).encode()
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/api/v1/query", data, timeout=10
            ) as answer:
                return json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()


def _concrete(expression: str) -> str:
    """As Grafana would send it, with everything selected."""
    text = expression.replace("$__rate_interval", "10s").replace("$__range", "1m")
    return text.replace("$job", ".*").replace("$instance", ".*")


def _has_value(result: list[dict[str, Any]]) -> bool:
    return any(math.isfinite(float(series["value"][1])) for series in result)


@needs_prometheus
def test_every_expression_finds_its_series_on_a_server_under_load(server: RunningServer, tmp_path):
    asked = {
        f"{where}: {panel}: {query.legend}": query.expr
        for where, panel, query in expressions(all_dashboards())
        if not set(query.needs) - {"price"}
    }
    asked |= {f"recording: {rule.record}": rule.record for rule in recordings(RuleInputs())}
    asked |= {
        f"alert {alert.name}: {metric}": metric
        for alert in alerts(RuleInputs())
        for metric in re.findall(r"inferoptim[_:][a-z0-9_:]+", alert.expr)
    }
    out = tmp_path / "load"
    command = [
        "load",
        server.url,
        "--concurrency",
        "2",
        "--duration",
        "600",
        "--out",
        str(out),
        "--no-self-test",
    ]
    load = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "inferoptim",
            *command,
            "--input-tokens",
            "24",
            "--output-tokens",
            "12",
            "--max-lag-ms",
            "60000",
        ],
        stdout=subprocess.DEVNULL,
    )
    prometheus = Prometheus(tmp_path, server.url.removeprefix("http://"))
    pause = threading.Event()
    try:
        deadline = time.monotonic() + PATIENCE_S
        missing = dict(asked)
        while missing and time.monotonic() < deadline:
            pause.wait(0.5)  # never set: lets a scrape pass
            try:
                missing = {k: e for k, e in missing.items() if not _has_value(prometheus.query(_concrete(e)))}
            except (ConnectionError, urllib.error.URLError):
                continue  # Prometheus is starting
        assert not missing
        # what this machine does not have is asked too: it must be well formed and find nothing, not fail
        for _, panel, query in expressions(all_dashboards()):
            if "dcgm" in query.needs:
                assert prometheus.query(_concrete(query.expr)) == [], panel
            else:
                prometheus.query(_concrete(query.expr))
        for alert in alerts(RuleInputs()):
            prometheus.query(alert.expr)
        firing = {a["metric"]["alertname"] for a in prometheus.query('ALERTS{alertstate="firing"}')}
        assert not firing  # nothing holds for minutes in a test
    finally:
        load.terminate()
        load.wait(20)
        prometheus.stop()
