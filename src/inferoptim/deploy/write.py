"""Writes a deployment into a folder: every file is made and checked first, then all are written."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from inferoptim.deploy.compose import GRAFANA_DASHBOARDS, GRAFANA_DATASOURCE, ServerInputs, compose_yaml
from inferoptim.deploy.dashboards import all_dashboards, dashboard_json
from inferoptim.deploy.kubernetes import inference_service, manifest, scaled_object
from inferoptim.deploy.ray_app import ray_app
from inferoptim.deploy.rules import RuleInputs, prometheus_yaml, rules_yaml
from inferoptim.errors import ConfigError, DataError
from inferoptim.records.writer import write_atomic

Part = Literal["monitoring", "compose", "kserve", "ray"]
PARTS: tuple[Part, ...] = ("monitoring", "compose", "kserve", "ray")


@dataclass(frozen=True, slots=True)
class DeployInputs:
    """Everything that a deployment's files depend on."""

    server: ServerInputs = field(default_factory=ServerInputs)
    rules: RuleInputs = field(default_factory=RuleInputs)
    parts: tuple[Part, ...] = PARTS
    name: str = "inferoptim"
    namespace: str = "default"
    min_replicas: int = 1
    max_replicas: int = 4
    cpu: str = "4"
    memory: str = "16Gi"
    concurrency: int = 32  # sequences that one replica serves at once
    waiting_per_replica: int = 8
    prometheus: str = "http://prometheus.monitoring:9090"


def monitoring_files(rules: RuleInputs) -> dict[str, str]:
    """Relative path → text: what Prometheus and Grafana read."""
    files = {"rules.yml": rules_yaml(rules), "prometheus.yml": prometheus_yaml(rules.job)}
    files |= {f"dashboards/{d.uid}.json": dashboard_json(d) for d in all_dashboards()}
    return files | {
        "grafana/datasource.yml": GRAFANA_DATASOURCE,
        "grafana/dashboards.yml": GRAFANA_DASHBOARDS,
    }


def deployment_files(inputs: DeployInputs) -> dict[str, str]:
    """Relative path → text of the parts asked for.

    Raises:
        ConfigError: inputs that make no deployment.
    """
    files: dict[str, str] = {}
    server = inputs.server
    if "monitoring" in inputs.parts or "compose" in inputs.parts:
        files |= {f"monitoring/{path}": text for path, text in monitoring_files(inputs.rules).items()}
    if "compose" in inputs.parts:
        files["compose.yaml"] = compose_yaml(
            server,
            build_context=None,
            dockerfile="",
            monitoring="./monitoring",
            grafana="./monitoring/grafana",
        )
    replicas = {"min_replicas": inputs.min_replicas, "max_replicas": inputs.max_replicas}
    if "kserve" in inputs.parts:
        where = {"name": inputs.name, "namespace": inputs.namespace}
        service = inference_service(
            server,
            **where,
            min_replicas=inputs.min_replicas,
            max_replicas=inputs.max_replicas,
            cpu=inputs.cpu,
            memory=inputs.memory,
        )
        scaler = scaled_object(
            **where,
            min_replicas=inputs.min_replicas,
            max_replicas=inputs.max_replicas,
            prometheus=inputs.prometheus,
            waiting_per_replica=inputs.waiting_per_replica,
        )
        files["kserve/inference-service.yaml"] = manifest(service)
        files["kserve/keda.yaml"] = manifest(scaler)
    if "ray" in inputs.parts:
        cpus = max(1, int(float(inputs.cpu))) if inputs.cpu.replace(".", "").isdigit() else 1
        files["ray_app.py"] = ray_app(server, cpus=cpus, concurrency=inputs.concurrency, **replicas)
    return files


def check_syntax(files: Mapping[str, str]) -> None:
    """Every file parses as what it is.

    Raises:
        DataError: the file that does not (a bug in a template).
    """
    for path, text in files.items():
        try:
            if path.endswith((".yml", ".yaml")):
                list(yaml.safe_load_all(text))
            elif path.endswith(".json"):
                json.loads(text)
            elif path.endswith(".py"):
                ast.parse(text)
        except (yaml.YAMLError, ValueError, SyntaxError) as error:
            raise DataError(f"{path}: not valid ({error}); please report it") from error


def check_with_tools(folder: Path) -> dict[str, str]:
    """What the tools that are installed here say of the files: 'ok', 'not installed', or their complaint."""
    checks: list[tuple[str, Sequence[str], str]] = [
        ("rules", ("promtool", "check", "rules", "monitoring/rules.yml"), "monitoring/rules.yml"),
        ("scrape", ("promtool", "check", "config", "monitoring/prometheus.yml"), "monitoring/prometheus.yml"),
        ("compose", (*_compose_command(), "-f", "compose.yaml", "config", "--quiet"), "compose.yaml"),
    ]
    found = {}
    for name, command, file in checks:
        if not (folder / file).is_file():
            continue
        if not command[0] or shutil.which(command[0]) is None:
            found[name] = "not installed here: not checked"
            continue
        with tempfile.TemporaryFile("w+") as output:
            environment = {"GRAFANA_ADMIN_PASSWORD": "only-for-this-check"}
            done = subprocess.run(
                command,
                cwd=folder,
                stdout=output,
                stderr=output,
                timeout=60,
                env={**_environment(), **environment},
            )
            output.seek(0)
            found[name] = "ok" if done.returncode == 0 else " ".join(output.read().split())[-300:]
    return found


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)


def _compose_command() -> tuple[str, ...]:
    """`docker compose` where the plugin is, else `docker-compose`, else nothing."""
    if shutil.which("docker"):
        done = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=30)
        if done.returncode == 0:
            return ("docker", "compose")
    return ("docker-compose",)


def write_files(folder: Path, files: Mapping[str, str], *, force: bool) -> list[Path]:
    """Write all files, each aside and renamed; a file that exists is replaced only with `force`.

    Raises:
        ConfigError: a file exists, or the folder cannot be written. Nothing was written then.
    """
    taken = [path for path in files if (folder / path).exists()]
    if taken and not force:
        raise ConfigError(f"{folder / taken[0]} exists: choose another --out, or replace it with --force")
    written = []
    for path, text in files.items():
        target = folder / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{target.parent}: cannot be made ({error.strerror})") from error
        write_atomic(target, text)
        written.append(target)
    return written
