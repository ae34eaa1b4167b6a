"""What the bench does on a GPU, as far as it can be seen without one: NVML's meters and the gate for 16-bit kernels.

`StandInNvml` is not NVML: it answers the calls of `GpuMeter` with fixed figures.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from inferoptim.bench.gate import Gate
from inferoptim.bench.levers import Configuration
from inferoptim.bench.plan import QualityPlan, make_plan
from inferoptim.bench.process import WorkerProcess
from inferoptim.bench.quality import Choices, choices_record, logits_record
from inferoptim.bench.telemetry import GpuMeter, Sampler
from inferoptim.bench.worker import Worker
from inferoptim.config import EngineConfig
from tests.tiny import save_tiny_llama, tiny_tokenizer


class StandInNvml:
    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def __init__(self, pids: dict[int, int | None]) -> None:
        self.pids, self.millijoules, self.uuid = pids, 1_000.0, ""

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.uuid = uuid
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: str) -> float:
        self.millijoules += 500
        return self.millijoules

    def nvmlDeviceGetComputeRunningProcesses(self, _handle: str) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.pids.items()]

    def nvmlDeviceGetPowerUsage(self, _handle: str) -> int:
        return 250_000

    def nvmlDeviceGetClockInfo(self, _handle: str, _kind: int) -> int:
        return 1980

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, _handle: str) -> int:
        raise self.NVMLError


def meter(monkeypatch: pytest.MonkeyPatch, pids: dict[int, int | None]) -> GpuMeter:
    monkeypatch.setitem(sys.modules, "pynvml", StandInNvml(pids))
    return GpuMeter("abc")


def test_memory_is_of_the_processes_measured_and_what_nvml_lacks_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = meter(monkeypatch, {os.getpid(): 70, 2: 900})
    assert found.sample({os.getpid()}) == {
        "gpu_memory_bytes": 70, "gpu_power_w": 250.0, "gpu_sm_clock_mhz": 1980.0,
    }  # fmt: skip
    assert cast(Any, found)._nvml.uuid == "GPU-abc"
    assert "gpu_memory_bytes" not in meter(monkeypatch, {2: 900}).sample({1})  # not 0: it was not seen
    assert "gpu_memory_bytes" not in meter(monkeypatch, {1: None}).sample({1})


def test_a_run_has_the_energy_between_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(object(), 10.0, meter(monkeypatch, {}))
    sampler.start()
    seen = sampler.stop()
    assert seen.energy_j == pytest.approx(0.5)
    assert seen.peak_rss_bytes is not None
    assert seen.peak_rss_bytes > 0


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
