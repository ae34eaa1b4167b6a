"""The GPU benchmark's phases around their jobs: what is printed and kept of each, with jobs that answer from here."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.gpu import phases

CASE = {
    "times_s": [0.5, 0.6],
    "median_s": 0.55,
    "output_tokens_per_s": 360.0,
    "energy_mj_per_output_token": 9.0,
}


def answer(module: str, function: str, **arguments: Any) -> dict[str, Any]:
    if function == "artefact":
        return {"tokens": 64, "our_choice": 1.0}
    if function == "measure" and module == "peer":
        return {"version": "0.25.1", "start_to_first_token_s": 80.0, "cases": {"1x100+200": CASE}}
    if function == "cold":
        run = {"kernels": "none", "first_token_s": 9.0, "imports_s": 4.0, "load_s": 5.0, "prompt_s": 0.1}
        return {"result": [run]}
    if module == "traffic":
        return {"steps": 7, "failed": ["a leak"] if function == "out_of_memory" else []}
    if function == "side":
        return {"error": "no GPU"}
    return {"error": "not asked"} if function in ("measure", "reference") else {"result": 1}


def arguments(**fields: Any) -> argparse.Namespace:
    fixed = {
        "artefact": [],
        "precisions": "bf16,fp8",
        "cases": "1x100+200",
        "repeats": 2,
        "limit_s": 9.0,
        "model": "m",
    }
    return argparse.Namespace(**{**fixed, "workers": 1, "seconds": 1.0, **fields})


@pytest.mark.parametrize("name", phases.PHASES)
def test_every_result_is_kept_before_it_is_printed(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(phases, "call", answer)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: SimpleNamespace() if name == "vllm" else found(name)
    )
    kept: dict[str, Any] = {}

    def keep(part: str, result: dict[str, Any]) -> None:
        kept[part] = result

    asked = arguments(artefact=[SimpleNamespace(name="a")]) if name == "vllm" else arguments()
    good = phases.PHASES[name](asked, keep)
    printed = capsys.readouterr().out
    if name == "vllm":
        assert set(kept) == {"bf16", "fp8", "a"}
        assert (
            "start not measured; 1x100+200 0.5500 s (0.5000-0.6000)" in printed
        )  # an artefact was loading meanwhile
        assert "start to first token 80.0 s" in printed
        assert "'our_choice': 1.0" in printed
    elif name == "start":
        assert "first token after 9.00 s" in printed
    elif name == "beside":
        assert all(result == {"error": "no GPU"} for result in kept.values())
        assert "1x100+200 transformers, static: no GPU" in printed
    elif name == "traffic":
        assert good is False
        assert "ok   traffic: {'steps': 7}" in printed
        assert "FAIL out_of_memory" in printed
        assert "a leak" in printed
    elif name == "sanitizer":
        assert good is False
        assert "compute-sanitizer is not installed" in printed
    else:
        assert f"{name}: not asked" in printed


def test_a_job_that_cannot_run_says_why() -> None:
    seen = phases.call("start", "no_such_function")
    assert "no_such_function" in seen["error"]
