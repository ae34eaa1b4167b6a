"""NVML's meters where there is no GPU: the module pynvml is `StandInNvml`, which is not NVML."""

from __future__ import annotations

import os
import sys

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from inferoptim.bench.telemetry import Sampler
from inferoptim.hardware.gpu_meter import GpuMeter, open_gpu_meters
from inferoptim.serving.exporter import Exporter
from inferoptim.serving.metrics import Metrics
from inferoptim.serving.money import Ledger, Prices
from tests.stand_in_nvml import StandInGpu, StandInNvml


def meters(monkeypatch: pytest.MonkeyPatch, *gpus: StandInGpu) -> list[GpuMeter]:
    monkeypatch.setitem(sys.modules, "pynvml", StandInNvml(*gpus))
    return open_gpu_meters(gpu.uuid for gpu in gpus)


def test_memory_is_of_the_processes_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = StandInGpu("GPU-a", processes={7: 70, 8: 5, 9: 900})
    (meter,) = meters(monkeypatch, gpu)
    assert meter.read({7, 8, 100}).process_memory_bytes == 75
    assert meter.read({100}).process_memory_bytes is None, "not 0: it was not seen"
    assert meter.read().process_memory_bytes is None
    gpu.processes = {7: None}
    assert meter.read({7}).process_memory_bytes is None, "the driver does not tell"
    reading = meter.read()
    assert (reading.memory_used_bytes, reading.memory_total_bytes, reading.utilization) == (
        5_000,
        80_000,
        0.4,
    )


def test_a_uuid_without_its_prefix_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", StandInNvml(StandInGpu("GPU-abc", index=3)))
    assert GpuMeter("abc").read().index == 3


def test_energy_is_what_the_counter_moved_by(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = StandInGpu("GPU-a")
    (meter,) = meters(monkeypatch, gpu)
    assert meter.energy_j() == 0.0, "the counter has not moved yet: it does so ten times a second"
    gpu.millijoules += 2_500
    assert meter.energy_j() == meter.read().energy_j == 2.5


def test_what_fails_is_absent_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = StandInGpu("GPU-a", broken={"energy"})
    (meter,) = meters(monkeypatch, gpu)
    gpu.broken.add("power")
    readings = [meter.read() for _ in range(3)]
    assert {(r.energy_j, r.power_w, r.memory_used_bytes) for r in readings} == {(None, None, 5_000)}
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "GPU 0 (GPU-a): energy is not measured: no energy", "GPU 0 (GPU-a): power is not measured: no power",
    ]  # fmt: skip
    gpu.broken.clear()
    assert meter.read().power_w == 250.0, "it came back"
    assert meter.read().energy_j is None, "nobody knows what it was at the start"


def test_a_call_that_this_pynvml_lacks_is_absent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (meter,) = meters(monkeypatch, StandInGpu("GPU-a"))
    monkeypatch.delattr(StandInNvml, "nvmlDeviceGetCurrentClocksEventReasons")
    assert meter.read().throttle_reasons is None
    assert "has no nvmlDeviceGetCurrentClocksEventReasons" in caplog.text


def test_without_nvml_there_is_no_meter_and_one_line_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it raises, as without the package
    assert open_gpu_meters(["GPU-a", "GPU-b"]) == []
    assert [r.getMessage() for r in caplog.records] == [
        "power, energy and memory of the GPU are not measured: pip install 'inference-optim-llm[gpu]'"
    ]
    caplog.clear()
    monkeypatch.setitem(sys.modules, "pynvml", StandInNvml(StandInGpu("GPU-b")))
    (meter,) = open_gpu_meters(["GPU-a", "GPU-b"])
    assert meter.uuid == "GPU-b"
    assert [r.getMessage() for r in caplog.records] == [
        "power, energy and memory of GPU GPU-a are not measured: Not Found"
    ]


# ---- the bench -------------------------------------------------------------------------------------------------------


def test_a_run_has_the_energy_between_its_ends_and_what_nvml_lacks_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = StandInGpu("GPU-a", step_mj=500, processes={os.getpid(): 70, 2: 900}, broken={"reasons"})
    (meter,) = meters(monkeypatch, gpu)
    sampler = Sampler(object(), 10.0, meter)
    sampler.start()
    seen = sampler.stop()
    assert seen.energy_j == pytest.approx(0.5 * (1 + len(seen.samples))), "each sample asks, too"
    fields = {k: v for k, v in seen.samples[0].items() if k.startswith("gpu_")}
    assert fields == {"gpu_memory_bytes": 70, "gpu_power_w": 250.0, "gpu_sm_clock_mhz": 1980.0}
    gpu.broken.add("all")
    sampler = Sampler(object(), 10.0, meter)
    sampler.start()
    seen = sampler.stop()
    assert seen.energy_j is None
    assert not any(key.startswith("gpu_") for sample in seen.samples for key in sample)


# ---- the server ------------------------------------------------------------------------------------------------------


def scrape(gpus: list[GpuMeter]) -> dict[str, dict[str, float]]:
    """GPU metrics by name, then by UUID ("" where there is none)."""
    metrics = Metrics(Ledger(Prices(usd_per_hour=None, usd_per_kwh=3.6), max_tenants=5))
    exporter = Exporter(metrics, "m", os.getpid, alias=False, gpus=gpus)
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(generate_latest(exporter.registry()).decode()):
        if "_gpu_" in family.name or "energy" in family.name:
            name = family.name.removeprefix("inferoptim_")
            found[name] = {s.labels.get("uuid", ""): s.value for s in family.samples}
    return found


def test_every_gpu_of_the_engine_has_metrics_and_what_one_lacks_is_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = StandInGpu("GPU-a", processes={os.getpid(): 60})
    two = StandInGpu("GPU-b", index=1, power_mw=100_000)
    gpus = meters(monkeypatch, one, two)
    one.millijoules += 600_000
    two.millijoules += 400_000
    found = scrape(gpus)
    assert found["gpu_power_watts"] == {"GPU-a": 250.0, "GPU-b": 100.0}
    assert found["gpu_energy_joules"] == {"GPU-a": 600.0, "GPU-b": 400.0}
    assert found["energy_cost_usd"] == {"": pytest.approx(1000 / 3.6e6 * 3.6)}
    assert found["gpu_memory_used_bytes"] == {"GPU-a": 5_000, "GPU-b": 5_000}
    assert found["gpu_process_memory_bytes"] == {"GPU-a": 60}
    two.broken.update({"power", "energy"})
    found = scrape(gpus)
    assert found["gpu_power_watts"] == {"GPU-a": 250.0}
    assert found["gpu_energy_joules"] == {"GPU-a": 600.0}
    assert "energy_cost_usd" not in found, "the cost of one of two GPUs is not the cost"
    one.broken.add("all")
    two.broken.add("all")
    assert scrape(gpus) == {}
    assert scrape([]) == {}
