"""The build's tuner on this machine: what it tried, what it kept, and that the next build is told at once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

LIMITS = {"max_input_len": 256, "max_output_len": 64}


def search(
    model: str, budget_s: float, *, cuda: bool = True, engine: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One search from nothing, then the same question again.

    Args:
        cuda: search what a GPU's build would.
        engine: fields that are fixed; they are not searched.
    """
    from inferoptim.build.tune import TuneRequest, plan, tune
    from inferoptim.hardware.cpu import usable_cores
    from inferoptim.models.hub import resolve_model

    request = TuneRequest(resolve_model(model).folder, dict(engine or {}), LIMITS, budget_s)
    asked_for = plan(request, cuda=cuda, cores=usable_cores())
    with (
        tempfile.TemporaryDirectory() as empty,
        mock.patch("inferoptim.build.tune.cache_root", return_value=Path(empty)),
    ):
        found = tune(request, asked=asked_for)
        begun = time.perf_counter()
        again = tune(request, asked=asked_for)
        again_s = time.perf_counter() - begun
        remembered = len(list(Path(empty, "tuning").glob("*.json")))
    failed = [
        what
        for what, wrong in (
            ("no trial ended within the budget", not found.trials),
            ("the search outlasted its budget", found.spent_s > budget_s + 5),
            ("what was found was not remembered", again != found or remembered != bool(found.trials)),
        )
        if wrong
    ]
    return {
        "model": model,
        "machine": found.machine,
        "steps": {question.name: list(question.values) for question in asked_for.steps},
        "runs": {name: list(values) for name, values in asked_for.runs.items()},
        "trials": [dict(trial) for trial in found.trials],
        "settings": dict(found.settings),
        "spent_s": found.spent_s,
        "again_s": round(again_s, 3),
        "failed": failed,
    }
