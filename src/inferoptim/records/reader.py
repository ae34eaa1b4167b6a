"""Reads a results folder back into records: what the report, the summary and `--resume` start from."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from inferoptim.errors import DataError
from inferoptim.records.schema import (
    SCHEMA_VERSION,
    ConfigurationRecord,
    Environment,
    QualityRecord,
    Record,
    RequestRecord,
    RunRecord,
    Summary,
    TelemetrySample,
)

R = TypeVar("R", bound=Record)
Key = tuple[str, str]  # (config_id, workload)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Everything a bench left behind, in memory. Requests and samples of uncommitted runs are already dropped."""

    path: Path
    plan: dict[str, Any]
    environment: Environment | None
    configurations: dict[
        str, ConfigurationRecord
    ]  # by id, in the order in which they first appear; the last line wins
    runs: list[RunRecord]
    requests: list[RequestRecord]
    telemetry: list[TelemetrySample] = field(repr=False)
    quality: list[QualityRecord] = field(default_factory=list)
    summary: Summary | None = None

    def measured_runs(self) -> dict[Key, list[RunRecord]]:
        """Runs that count (no warm-ups), by (config, workload), in the order of their index."""
        groups: dict[Key, list[RunRecord]] = defaultdict(list)
        for run in sorted(self.runs, key=lambda r: r.run_index):
            if not run.warmup:
                groups[run.config_id, run.workload].append(run)
        return dict(groups)

    def requests_by_run(self) -> dict[Key, dict[int, list[RequestRecord]]]:
        """Requests of the measured runs: (config, workload) → run index → requests."""
        groups: dict[Key, dict[int, list[RequestRecord]]] = defaultdict(lambda: defaultdict(list))
        for request in self.requests:
            groups[request.config_id, request.workload][request.run_index].append(request)
        return {key: dict(by_run) for key, by_run in groups.items()}


def read_run(folder: str | Path) -> RunFolder:
    """Read a results folder.

    Raises:
        DataError: the folder holds no run, or a file is damaged (its name and line are given). A broken *last* line
            is what a crash leaves; it is ignored.
    """
    path = Path(folder)
    plan_file = path / "plan.json"
    if not plan_file.exists():
        raise DataError(_lacks(path, "plan.json"))
    plan = _read_json(plan_file)
    runs = _read_jsonl(path / "runs.jsonl", RunRecord)
    committed = {(r.config_id, r.workload, r.run_index) for r in runs if not r.warmup}
    configurations: dict[str, ConfigurationRecord] = {}
    for record in _read_jsonl(path / "configurations.jsonl", ConfigurationRecord):
        configurations[record.config_id] = record
    quality = {(q.config_id, q.kind): q for q in _read_jsonl(path / "quality.jsonl", QualityRecord)}
    return RunFolder(
        path=path,
        plan=plan,
        environment=_read_model(path / "environment.json", Environment),
        configurations=configurations,
        runs=list({(r.config_id, r.workload, r.warmup, r.run_index): r for r in runs}.values()),
        requests=[
            r
            for r in _read_jsonl(path / "requests.jsonl", RequestRecord)
            if (r.config_id, r.workload, r.run_index) in committed
        ],
        telemetry=[
            t
            for t in _read_jsonl(path / "telemetry.jsonl", TelemetrySample)
            if (t.config_id, t.workload, t.run_index) in committed
        ],
        quality=list(quality.values()),
        summary=read_summary(path) if (path / "summary.json").exists() else None,
    )


def _lacks(folder: Path, name: str) -> str:
    if not folder.exists():
        return f"{folder}: there is no such folder"
    if (folder / "load.json").exists():
        return f"{folder} holds a load test, not a bench run"
    return f"{folder} holds no bench run: {name} is missing"


def read_summary(folder: str | Path) -> Summary:
    """Read summary.json alone.

    Raises:
        DataError: it is missing, damaged, or of another schema version.
    """
    path = Path(folder) / "summary.json"
    if not path.exists():
        if (Path(folder) / "plan.json").exists():
            raise DataError(f"{path} is missing: finish the run with `inferoptim bench --resume {folder}`")
        raise DataError(_lacks(Path(folder), "summary.json"))
    version = _read_json(path).get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}")
    summary = _read_model(path, Summary)
    assert summary is not None
    return summary


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict):
        raise DataError(f"{path} is damaged: an object was expected")
    return data


def _read_model(path: Path, model: type[R]) -> R | None:
    if not path.exists():
        return None
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _read_jsonl(path: Path, model: type[R]) -> list[R]:
    if not path.exists():
        return []
    records = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            records.append(model.model_validate_json(line))
        except ValidationError as error:
            if number == len(lines):  # no newline after it: the write was cut short
                break
            first = error.errors()[0]
            raise DataError(
                f"{path} line {number} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            ) from error
    return records
