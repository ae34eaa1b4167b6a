"""Writes a results folder as the run goes on. Append-only JSON lines; whole files are written aside and renamed.

Order makes a crash harmless: a run's requests and telemetry are written first, its line in runs.jsonl last. What
has no line in runs.jsonl did not happen; `RunWriter.resume` drops such leftovers.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from inferoptim.errors import CapacityError, ConfigError
from inferoptim.records.schema import (
    ConfigurationRecord,
    Environment,
    QualityRecord,
    RequestRecord,
    RunRecord,
    Summary,
    TelemetrySample,
)

JSONL_FILES = ("configurations.jsonl", "runs.jsonl", "requests.jsonl", "telemetry.jsonl", "quality.jsonl")


def write_atomic(path: Path, text: str, then: str = "repeat the command") -> None:
    """Write `text` aside and rename, so that a reader sees the old file or the new one, never half of one.

    Args:
        then: what to do where the disk was full, once there is space again.

    Raises:
        CapacityError: the disk is full.
        ConfigError: the folder cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise explain_os_error(error, path, then) from error


def explain_os_error(
    error: OSError, path: Path, then: str = "repeat the command"
) -> CapacityError | ConfigError:
    """Turn a failed write into one line that says what to do; `then`: once there is space again."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CapacityError(f"disk full while writing {path}: free some space, then {then}")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ConfigError(f"cannot write {path}: {reason}; choose another folder with --out")


def missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that do not exist yet, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove these folders, innermost first, as long as they are empty: a command that failed leaves nothing behind."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def prepare_folder(folder: Path, *, resume: bool, force: bool) -> None:
    """Create the results folder, or refuse it.

    Raises:
        ConfigError: it exists with a run inside (and neither resume nor force), or cannot be written.
    """
    holds_run = (folder / "plan.json").exists()
    if resume and not holds_run:
        raise ConfigError(f"nothing to resume in {folder}: it holds no plan.json")
    if folder.exists() and not resume:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is a file: choose another folder with --out")
        if any(folder.iterdir()) and not force:
            what = "already holds a run" if holds_run else "exists and is not empty"
            raise ConfigError(
                f"{folder} {what}: continue it with --resume, replace it with --force, or choose another --out"
            )
        if force and any(folder.iterdir()) and not holds_run:
            raise ConfigError(
                f"{folder} is not empty and holds no run: --force replaces only a bench's own folder"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
        if force and not resume:
            for name in (
                *JSONL_FILES,
                "plan.json",
                "environment.json",
                "summary.json",
                "report.html",
                "report.md",
            ):
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error


_RESUME = "repeat the command with --resume"


class RunWriter:
    """The only writer of a results folder. Every append is flushed before it returns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resume(self) -> None:
        """Drop what a crash left half-written: broken last lines, and requests or samples of runs never committed."""
        for name in JSONL_FILES:
            path = self.folder / name
            if path.exists():
                lines = [line for line in path.read_text(encoding="utf-8").split("\n") if _is_json(line)]
                self._whole(name, "".join(line + "\n" for line in lines))
        committed = {
            (r["config_id"], r["workload"], r["run_index"])
            for r in _read_lines(self.folder / "runs.jsonl")
            if not r["warmup"]
        }
        for name in ("requests.jsonl", "telemetry.jsonl"):
            path = self.folder / name
            if path.exists():
                kept = [
                    r
                    for r in _read_lines(path)
                    if (r["config_id"], r["workload"], r["run_index"]) in committed
                ]
                self._whole(name, "".join(json.dumps(r) + "\n" for r in kept))

    def plan(self, plan: BaseModel) -> None:
        self._whole("plan.json", plan.model_dump_json(indent=2) + "\n")

    def environment(self, environment: Environment) -> None:
        self._whole("environment.json", environment.model_dump_json(indent=2) + "\n")

    def configuration(self, record: ConfigurationRecord) -> None:
        self._append("configurations.jsonl", [record])

    def run(
        self,
        run: RunRecord,
        requests: Iterable[RequestRecord] = (),
        telemetry: Iterable[TelemetrySample] = (),
    ) -> None:
        """Commit one run: its requests and samples first, its own line last."""
        self._append("requests.jsonl", requests)
        self._append("telemetry.jsonl", telemetry)
        self._append("runs.jsonl", [run])

    def quality(self, record: QualityRecord) -> None:
        self._append("quality.jsonl", [record])

    def summary(self, summary: Summary) -> None:
        self._whole("summary.json", summary.model_dump_json(indent=2) + "\n")

    def _append(self, name: str, records: Iterable[BaseModel]) -> None:
        text = "".join(record.model_dump_json() + "\n" for record in records)
        if not text:
            return
        path = self.folder / name
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise explain_os_error(error, path, _RESUME) from error

    def _whole(self, name: str, text: str) -> None:
        write_atomic(self.folder / name, text, _RESUME)


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
