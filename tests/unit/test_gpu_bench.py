"""What the bench does on a GPU, as far as it can be seen without one: the gate for 16-bit kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from inferoptim.bench.gate import Gate
from inferoptim.bench.levers import Configuration
from inferoptim.bench.plan import QualityPlan, make_plan
from inferoptim.bench.process import WorkerProcess
from inferoptim.bench.quality import Choices, choices_record, logits_record
from inferoptim.bench.worker import Worker
from inferoptim.config import EngineConfig
from tests.tiny import save_tiny_llama, tiny_tokenizer


class InProcess:
    """A worker in this process whose engine runs on the CPU, whatever device it is told; remembers what it loaded."""

    def __init__(self, spoil: Callable[[Worker], None] | None = None) -> None:
        self.worker, self.loaded, self.spoil = Worker(), [], spoil

    def call(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        if method == "load":
            name, settings = args
            self.loaded.append((name, settings))
            kernels = "torch" if settings.get("device") == "cuda" else settings.get("kernels")
            there = {**settings, "device": "cpu", **({"kernels": kernels} if name == "engine" else {})}
            if name == "engine":
                there["compiled_step"] = False
            self.worker.load(name, there)
            if self.spoil is not None and settings.get("dtype") != "float32":
                self.spoil(self.worker)
            return None
        return getattr(self.worker, method)(*args)

    def kill(self) -> None: ...


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_llama(folder)
    tiny_tokenizer(folder)
    return folder


def gate(model: Path, tmp_path: Path, worker: InProcess) -> tuple[Gate, dict[str, Any]]:
    off = {
        **EngineConfig.levers_off(model=str(model)).model_dump(mode="json"), "device": "cuda", "dtype": "bfloat16",
    }  # fmt: skip
    texts = {
        lang: [tuple((i * 7 + k) % 250 + 3 for i in range(32)) for k in range(2)] for lang in ("en", "fr")
    }
    plan = make_plan(
        {"model": str(model), "quality": {"identity_prompts": 3, "identity_tokens": 12}, "device": "cuda"}
    )
    baseline = {"model": str(model), "device": "cpu"}
    made = Gate(plan, off, baseline, texts, 128, lambda: cast(WorkerProcess, worker), tmp_path)
    return made, off


def test_on_a_gpu_tokens_are_judged_by_the_float32_reference(model: Path, tmp_path: Path) -> None:
    worker = InProcess()
    judged, off = gate(model, tmp_path, worker)
    rung = Configuration(
        "+paged_kv",
        "paged",
        "engine",
        {**off, "paged_kv": True, "prefix_caching": True},
        ("paged_kv", "prefix_caching"),
    )
    (record,) = judged.check(rung).records
    assert record.passed, record.detail
    assert record.values["identical_tokens"].value > 0.9
    own, reference = worker.loaded
    assert own[1]["dtype"] == "bfloat16"
    assert (reference[1]["dtype"], reference[1]["kernels"], reference[1]["paged_kv"]) == (
        "float32",
        "torch",
        False,
    )
    same_numbers = judged.check(Configuration("x", "x", "engine", rung.settings, rung.levers)).records[0]
    assert same_numbers.detail == "as +paged_kv"
    judged.close()


def test_wrong_kernels_fail_the_gate(model: Path, tmp_path: Path) -> None:
    def spoil(worker: Worker) -> None:
        core = cast(Any, worker._target).core
        with torch.inference_mode():
            core._decoder.weights.layers[1].down.weight.mul_(0.5)

    judged, off = gate(model, tmp_path, InProcess(spoil))
    lossless = Configuration("+paged_kv", "paged", "engine", {**off, "paged_kv": True}, ("paged_kv",))
    (record,) = judged.check(lossless).records
    assert not record.passed
    assert "below the float32 reference's choice" in record.detail
    (logits,) = judged.check(Configuration("engine-off", "off", "engine", off)).records
    assert not logits.passed
    assert logits.values["max_abs_logit_error"].value < 1e-3  # the reference itself is right
    assert "16-bit kernels" in logits.detail
    judged.close()


def test_not_a_number_never_passes() -> None:
    nan = float("nan")
    assert not choices_record("c", [Choices(3, 3, 0.0), Choices(3, 0, nan)]).passed
    assert choices_record("c", [Choices(3, 3, 0.0)]).passed
    assert not logits_record("c", [0.0], QualityPlan(), [nan]).passed
    assert logits_record("c", [0.0], QualityPlan(), [0.001]).passed
