"""The GPU benchmark's phases around their jobs: what is printed and kept of each, with jobs that answer from here."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.gpu import phases, serve, tune

from tests.server import save_tiny_chat_model

CASE = {
    "times_s": [0.5, 0.6],
    "median_s": 0.55,
    "output_tokens_per_s": 360.0,
    "energy_mj_per_output_token": 9.0,
}
SERVED = {
    "case": "32x100+200", "output_tokens_per_s": 11520.0, "tokens_per_event": 1.5, "ttft_s": 0.02, "ttft_alone_s": 0.004,
    "gap_p50_s": 0.0021, "gap_p99_s": 0.006, "start_s": 12.0, "stop_s": 0.4, "exit_status": 0,
    "metrics_busy": {"gpu_power_watts": 410.0}, "metrics_after": {"cost_usd_total": 0.001}, "failed": ["no power"],
}  # fmt: skip


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
    if module == "serve" and function == "in_process":
        return {"times_s": [0.5], "output_tokens_per_s": 12800.0}
    if module == "serve":
        return SERVED
    if function == "side":
        return {"error": "no GPU"}
    return {"error": "not asked"} if function in ("measure", "reference", "search") else {"result": 1}


def arguments(**fields: Any) -> argparse.Namespace:
    fixed = {
        "artefact": [],
        "precisions": "bf16,fp8",
        "cases": "1x100+200",
        "repeats": 2,
        "limit_s": 9.0,
        "model": "m",
        "set": [],
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
    elif name == "serve":
        assert good is False
        assert set(kept) == {"served", "in_process"}
        assert "FAIL serve 32x100+200: 11520 tok/s over HTTP" in printed
        assert "busy: gpu_power_watts 410" in printed
        assert "no power" in printed
        assert "over HTTP 90.0% of that" in printed
    elif name == "sanitizer":
        assert good is False
        assert "compute-sanitizer is not installed" in printed
    else:
        assert f"{name}: not asked" in printed


def test_the_server_is_measured_and_its_metrics_are_held_against_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, where GPU metrics must be absent."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    where = str(save_tiny_chat_model(tmp_path / "m"))
    fields = {"kernels": "torch", "num_threads": 1}
    seen = serve.measure(where, fields, device="cpu", case="4x10+12")
    assert seen["failed"] == []
    assert seen["exit_status"] == 0
    assert seen["output_tokens_per_s"] > 0
    before = {"generation_tokens_total": 0.0}
    wrong = list(serve._wrong(seen, before, {}, seen["metrics_after"], sent=3, requests=1, gpu=True))
    assert "gpu_power_watts is absent under load" in wrong
    assert any(text.startswith("generation_tokens_total grew by") for text in wrong)


def test_the_search_of_a_gpu_runs_from_nothing_and_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the CPU: its trials are what a GPU's are, less the graphs."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(tune, "LIMITS", {"max_batch_size": 2, "max_input_len": 16, "max_output_len": 4})
    where = str(save_tiny_chat_model(tmp_path / "m"))
    fields = {"kernels": "torch", "num_threads": 1, "max_num_batched_tokens": 64}
    seen = tune.search(where, 100.0, engine=fields)
    assert seen["failed"] == []
    assert set(seen["runs"]) == {"max_num_seqs"}
    assert set(seen["steps"]) == {
        "kv_split_programs",
        "few_rows",
        "cuda_attention_rows",
        "prompt_kernel_rows",
        "block_size",
    }
    assert seen["trials"][0]["why"].startswith("the configuration leaves out the kernels")
    assert {trial.get("max_num_seqs") for trial in seen["trials"]} == {None, 8, 16, 64, 128}
    monkeypatch.setattr(phases, "call", lambda *_args, **_fields: seen)
    assert phases.PHASES["tune"](arguments(), lambda _part, _result: None)
    assert f"{seen['trials'][-1]}" in capsys.readouterr().out


def test_a_job_that_cannot_run_says_why() -> None:
    seen = phases.call("start", "no_such_function")
    assert "no_such_function" in seen["error"]
