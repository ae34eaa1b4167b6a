"""A whole bench on a tiny random model: real worker processes, one killed, one Ctrl-C, one resume."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from inferoptim.bench import measuring
from inferoptim.bench.plan import BenchPlan, make_plan
from inferoptim.bench.protocol import Bench, resolve
from inferoptim.cli.main import main
from inferoptim.cli.report import publish
from inferoptim.errors import ConfigError
from inferoptim.models.hub import resolve_model
from inferoptim.records.reader import read_run
from tests.bpe import save_bpe_tokenizer
from tests.tiny import save_tiny_llama

RUNS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_llama(folder, vocab_size=512)
    save_bpe_tokenizer(folder, vocab_size=512)
    return folder


def tiny_plan(model: Path, **fields: Any) -> BenchPlan:
    return make_plan(
        {
            "model": str(model),
            "device": "cpu",
            "targets": ["engine"],
            "levers": ["paged_kv", "prefix_caching"],
            "workloads": [
                {"name": "guide", "concurrency": [1, 2], "prompt_tokens": 24, "output_tokens": 6},
            ],
            "runs": RUNS,
            "max_runs": RUNS + 1,
            "warmups": 1,
            "warmup_output_tokens": 2,
            "price_per_hour": 1.0,
            "price_source": "a test",
            "quality": {"tokens_per_language": 256, "identity_prompts": 3, "identity_tokens": 12},
            **fields,
        }
    )  # fmt: skip


class Watcher:
    """An observer that acts at a given measured run."""

    def __init__(self) -> None:
        self.bench: Bench | None = None
        self.phases: list[str] = []
        self.measured: list[str] = []
        self.kill: str | None = None
        self.interrupt_at: int | None = None

    def phase(self, name: str, total: int) -> None:
        self.phases.append(name)
        if name == "measure" and self.kill and self.bench is not None:
            os.kill(self.bench.worker_pids[self.kill], signal.SIGKILL)

    def step(self, what: str, done: int, total: int, left_s: float | None = None) -> None:
        if self.phases[-1] == "measure":
            self.measured.append(what)
            if self.interrupt_at is not None and len(self.measured) > self.interrupt_at:
                raise KeyboardInterrupt

    def note(self, text: str) -> None:
        pass


def start(plan: BenchPlan, folder: Path, watcher: Watcher, **options: Any) -> Bench:
    bench = Bench(
        resolve(plan, resolve_model(plan.model)),
        folder,
        command=["test"],
        observer=watcher,
        publish=lambda written: publish(written, "en"),
        **options,
    )
    watcher.bench = bench
    return bench


def test_killed_interrupted_resumed(model: Path, tmp_path: Path) -> None:
    plan, folder = tiny_plan(model, until_separated=True), tmp_path / "run"
    watcher = Watcher()
    watcher.kill, watcher.interrupt_at = "+paged_kv", 7
    bench = start(plan, folder, watcher)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert not bench.worker_pids, "workers outlive the bench"

    kept = read_run(folder)
    assert kept.summary is not None
    assert kept.summary.protocol["interrupted"] is True
    assert kept.configurations["+paged_kv"].status == "failed"
    assert "SIGKILL" in (kept.configurations["+paged_kv"].error or "")
    done = sum(not r.warmup for r in kept.runs)
    assert 0 < done <= 7
    assert (folder / "report.html").exists()
    assert not list(folder.glob(".reference-*"))

    with pytest.raises(ConfigError, match="already holds a run"):
        start(plan, folder, Watcher())
    with pytest.raises(ConfigError, match="another plan"):
        start(tiny_plan(model, seed=5, until_separated=True), folder, Watcher(), resume=True).run()

    summary = start(plan, folder, Watcher(), resume=True).run()
    final = read_run(folder)
    measured = final.measured_runs()
    assert {c.status for c in summary.configurations} == {"ok"}
    assert summary.warnings == ()
    assert len(summary.configurations) == 3
    for config in summary.configurations:
        for case in ("guide@1", "guide@2"):
            runs = measured[config.config_id, case]
            assert [r.run_index for r in runs] in (list(range(RUNS)), list(range(RUNS + 1)))
            # equal work, in every configuration and run
            assert {(r.prompt_tokens, r.output_tokens, r.num_failed) for r in runs} == {
                (24 * int(case[-1]), 6 * int(case[-1]), 0)
            }
    for metric in summary.metrics:  # neighbours that three runs could not rank had one more
        if metric.separated_from_previous is False:
            assert metric.runs == RUNS + 1
    # what the first part measured was not measured again
    assert [r for r in final.runs if not r.warmup][:done] == [r for r in kept.runs if not r.warmup]
    assert summary.protocol["interrupted"] is False
    assert summary.protocol["schedule"] == "interleaved"
    check_gate_and_figures(folder)


def check_gate_and_figures(folder: Path) -> None:
    run = read_run(folder)
    assert run.summary is not None
    kinds = {(q.config_id, q.kind): q for q in run.quality}
    assert kinds["engine-off", "logits_vs_transformers"].passed
    assert kinds["+paged_kv", "token_identity"].values["identical_tokens"].value == 1.0
    assert kinds["+prefix_caching", "token_identity"].passed
    # the order of the measured runs is not the order of the ladder
    order = [r.config_id for r in sorted(run.runs, key=lambda r: r.order_index) if not r.warmup]
    assert order != sorted(order, key=list(run.configurations).index)
    for metric in run.summary.metrics:
        if metric.runs:
            assert metric.output_tokens_per_s is not None
            assert metric.cost_per_million_output_tokens is not None
            assert metric.cost_per_million_output_tokens.value == pytest.approx(
                1e6 / 3600 / metric.output_tokens_per_s.value
            )
            assert metric.ttft_s["p50"].value > 0
    prefix = [r for r in run.runs if r.config_id == "+prefix_caching" and not r.warmup]
    assert prefix
    assert all(r.counters["prefix_cache_hit_tokens"] == 0 for r in prefix), "a warm cache passed for speed"
    assert json.loads((folder / "economics.json").read_text())["price_per_hour"] == 1.0


def test_wrong_output_has_no_speed_no_index_and_no_price(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        measuring, "interleave_fits", lambda _needed, _free: False
    )  # memory for one at a time
    strict = tiny_plan(
        model,
        levers=["quantization", "paged_kv"],
        runs=2,
        workloads=[{"name": "synthetic:12/4", "concurrency": [2]}],
        quality={
            "tokens_per_language": 256, "max_kl_nats": 1e-12, "identity_prompts": 2, "identity_tokens": 8,
        },
    )  # fmt: skip
    folder = tmp_path / "strict"
    summary = start(strict, folder, Watcher()).run()
    assert summary.protocol["schedule"] == "blocks"
    assert any("one after another" in w for w in summary.warnings)
    status = {c.config_id: c for c in summary.configurations}
    assert status["+quantization"].status == "failed_quality"
    assert "kl_nats" in (status["+quantization"].error or "")
    failed = [m for m in summary.metrics if m.config_id == "+quantization"]
    assert failed
    assert all(
        m.output_tokens_per_s is None and m.cost_index is None and m.cost_per_million_output_tokens is None
        for m in failed
    )
    kinds = {(q.config_id, q.kind) for q in summary.quality}
    assert ("+quantization", "token_identity") not in kinds  # it changes tokens by nature
    # the ladder goes on without it
    assert status["+paged_kv"].status == "ok"
    assert status["+paged_kv"].levers == ("paged_kv",)
    assert status["+paged_kv"].previous == "engine-off"

    # the report can be written again, in French and at another price, without measuring
    assert main(["report", str(folder), "--lang", "fr", "--price-per-hour", "2", "--currency", "usd"]) == 0
    assert main(["report", str(folder), "--lang", "fr"]) == 0  # keeps the price it has
    priced = read_run(folder).summary
    assert priced is not None
    assert (priced.price_per_hour, priced.currency) == (2.0, "USD")
    assert 'lang="fr"' in (folder / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
