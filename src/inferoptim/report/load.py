"""What a report is made of: the records of a run, its summary, and what economics wrote beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferoptim.errors import DataError
from inferoptim.records.reader import RunFolder, read_run
from inferoptim.records.schema import Summary


@dataclass(frozen=True)
class Records:
    """One run, read. `economics` is the content of economics.json, or None where there is none."""

    folder: RunFolder
    summary: Summary
    economics: dict[str, Any] | None = None


def load_records(folder: Path) -> Records:
    """Read a results folder.

    Raises:
        DataError: no run there, no summary yet, or a damaged file (named, with its line).
    """
    run = read_run(folder)
    if run.summary is None:
        raise DataError(
            f"{folder} has no summary.json: finish the run with `inferoptim bench --resume {folder}`"
        )
    return Records(run, run.summary, _economics(folder / "economics.json"))


def _economics(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}): remove it, or write it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: an object was expected, found {type(content).__name__}")
    return content
