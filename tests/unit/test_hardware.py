"""Hardware: the share of a machine that a container leaves, published peaks, and the measured ceilings' cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inferoptim.errors import UnsupportedError
from inferoptim.hardware import DEVICES, MachineCeilings, cached_ceilings, ceilings, device_peaks, find_device
from inferoptim.hardware.ceilings import _best_of
from inferoptim.hardware.cpu import (
    _cpuinfo,
    last_level_cache_bytes,
    memory_limit_bytes,
    quota_cores,
    usable_cores,
)
from inferoptim.hardware.measure_cpu import find_compiler, native_reader


def machine(root: Path, files: dict[str, str]) -> Path:
    """A folder that looks like `/` to the readers."""
    for name, text in {"proc/meminfo": "MemTotal: 16000000 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


class TestContainerLimits:
    def test_v2_quota_and_memory(self, tmp_path: Path) -> None:
        root = machine(
            tmp_path,
            {
                "proc/self/cgroup": "0::/",
                "sys/fs/cgroup/cpu.max": "150000 100000",
                "sys/fs/cgroup/memory.max": "2147483648",
            },
        )
        assert quota_cores(root) == 1.5
        assert usable_cores(root) == 1  # a second thread would be throttled half of the time
        assert memory_limit_bytes(root) == 2 * 1024**3

    def test_v2_without_limits(self, tmp_path: Path) -> None:
        root = machine(
            tmp_path,
            {
                "proc/self/cgroup": "0::/",
                "sys/fs/cgroup/cpu.max": "max 100000",
                "sys/fs/cgroup/memory.max": "max",
            },
        )
        assert quota_cores(root) is None
        assert memory_limit_bytes(root) is None
        assert usable_cores(root) >= 1

    def test_the_tightest_ancestor_binds(self, tmp_path: Path) -> None:
        root = machine(
            tmp_path,
            {
                "proc/self/cgroup": "0::/slice/job",
                "sys/fs/cgroup/slice/cpu.max": "100000 100000",
                "sys/fs/cgroup/slice/job/cpu.max": "400000 100000",
                "sys/fs/cgroup/slice/memory.max": "1000000000",
                "sys/fs/cgroup/slice/job/memory.max": "max",
            },
        )
        assert quota_cores(root) == 1.0
        assert memory_limit_bytes(root) == 1_000_000_000

    def test_v1_quota_and_its_way_of_writing_no_limit(self, tmp_path: Path) -> None:
        root = machine(
            tmp_path,
            {
                "proc/self/cgroup": "4:memory:/\n2:cpu,cpuacct:/\n0::/",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
        )
        assert quota_cores(root) == 2.5
        assert memory_limit_bytes(root) is None

    def test_v1_inside_a_container_where_the_named_path_is_not_mounted(self, tmp_path: Path) -> None:
        root = machine(
            tmp_path,
            {
                "proc/self/cgroup": "4:memory:/docker/0123abc",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912",
            },
        )
        assert memory_limit_bytes(root) == 512 * 1024**2

    def test_a_system_that_says_nothing(self, tmp_path: Path) -> None:
        assert quota_cores(tmp_path) is None
        assert memory_limit_bytes(tmp_path) is None
        assert last_level_cache_bytes(tmp_path) is None
        assert _cpuinfo(tmp_path) == (None, ())


class TestCpu:
    def test_instructions_by_whole_word(self, tmp_path: Path) -> None:
        root = machine(
            tmp_path, {"proc/cpuinfo": "model name\t: Zen 4\nflags\t\t: fma avx2 avx512f avx512_vnni_not"}
        )
        assert _cpuinfo(root) == ("Zen 4", ("avx2", "fma", "avx512f"))

    def test_arm_features(self, tmp_path: Path) -> None:
        root = machine(tmp_path, {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm"})
        assert _cpuinfo(root) == (None, ("neon", "dotprod", "i8mm"))

    def test_last_level_cache_is_the_highest_data_cache(self, tmp_path: Path) -> None:
        base = "sys/devices/system/cpu/cpu0/cache/index"
        caches = [
            ("1", "48K", "Data"),
            ("1", "64K", "Instruction"),
            ("3", "32M", "Unified"),
            ("2", "1024K", "Unified"),
        ]
        files = {
            f"{base}{i}/{name}": value
            for i, cache in enumerate(caches)
            for name, value in zip(("level", "size", "type"), cache, strict=True)
        }
        assert last_level_cache_bytes(machine(tmp_path, files)) == 32 * 1024**2


class TestPeaks:
    @pytest.mark.parametrize(
        ("driver_name", "expected"),
        [
            ("NVIDIA H100 80GB HBM3", "H100 SXM"),
            ("NVIDIA H100 PCIe", "H100 PCIe"),
            ("NVIDIA H200", "H200"),
            ("NVIDIA B200", "B200"),
            ("NVIDIA A100-SXM4-40GB", "A100 40GB SXM"),
            ("NVIDIA A100-SXM4-80GB", "A100 80GB SXM"),
            ("NVIDIA A100-PCIE-40GB", "A100 40GB PCIe"),
            ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"),
            ("NVIDIA L4", "L4"),
            ("NVIDIA L40S", "L40S"),
            ("NVIDIA A10", "A10"),
            ("Tesla T4", "T4"),
            ("NVIDIA GeForce RTX 4090", "RTX 4090"),
            ("AMD Instinct MI300X", "MI300X"),
        ],
    )
    def test_drivers_names(self, driver_name: str, expected: str) -> None:
        assert device_peaks(driver_name).name == expected

    @pytest.mark.parametrize(
        "other", ["NVIDIA A10G", "NVIDIA L40", "NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4070 Ti"]
    )
    def test_a_near_name_is_another_device(self, other: str) -> None:
        assert find_device(other) is None

    def test_unknown_name_suggests(self) -> None:
        with pytest.raises(UnsupportedError, match=r"did you mean .*L40S"):
            device_peaks("L40SX")

    def test_no_alias_names_two_devices(self) -> None:
        for device in DEVICES:
            assert all(find_device(name) is device for name in (device.name, *device.aliases))

    def test_dense_rates_are_plausible(self) -> None:
        for device in DEVICES:
            assert device.source, f"{device.name} states no source"
            if device.bf16_flops_per_s and device.fp8_flops_per_s:
                ratio = device.fp8_flops_per_s / device.bf16_flops_per_s
                assert ratio == pytest.approx(2, rel=0.02), (
                    f"{device.name}: fp8/bf16 = {ratio}: a sparse figure?"
                )


class TestCeilings:
    def test_weights_that_fit_the_cache_are_bound_by_the_faster_of_the_two_reads(self) -> None:
        measured = MachineCeilings(
            device="x",
            reads_bytes_per_s={"a": 10e9, "b": 12e9},
            cached_read_bytes_per_s=50e9,
            llc_bytes=200_000_000,
        )
        assert measured.read_ceiling() == 12e9
        assert measured.read_ceiling(200_000_000) == 50e9
        assert measured.read_ceiling(200_000_001) == 12e9
        slower_cache = replace(measured, cached_read_bytes_per_s=9e9)
        assert slower_cache.read_ceiling(1) == 12e9

    def test_not_measured_is_none(self) -> None:
        nothing = MachineCeilings(device="x")
        assert nothing.read_ceiling(1) is None
        assert nothing.as_record_fields()["memory_read_bytes_per_s"] is None

    def test_record_fields_are_the_schemas(self) -> None:
        from inferoptim.records.schema import Ceilings

        measured = MachineCeilings(
            device="x", reads_bytes_per_s={"a": 1.0}, gemm_flops_per_s={"int8": 2.0}, num_threads=3
        )
        record = Ceilings(**measured.as_record_fields())
        assert (record.memory_read_bytes_per_s, record.gemm_flops_per_s, record.num_threads) == (
            1.0,
            {"int8": 2.0},
            3,
        )

    def test_a_disturbed_measurement_is_improved_not_replaced(self) -> None:
        disturbed = MachineCeilings(
            device="x",
            reads_bytes_per_s={"a": 5.0, "b": 9.0},
            gemm_flops_per_s={"int8": 7.0},
            others_busy=0.8,
        )
        quiet = replace(
            disturbed, reads_bytes_per_s={"a": 8.0}, gemm_flops_per_s={"float32": 3.0}, others_busy=0.0
        )
        best = _best_of(disturbed, quiet)
        assert best.reads_bytes_per_s == {"a": 8.0, "b": 9.0}
        assert best.gemm_flops_per_s == {"int8": 7.0, "float32": 3.0}
        assert best.others_busy == 0.0

    def test_the_native_reader_reads_every_byte(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("INFEROPTIM_HOME", str(tmp_path))
        reader = native_reader()
        if find_compiler() is None:
            assert reader is None
            return
        assert reader is not None
        words = np.random.default_rng(0).integers(0, 2**63, size=8 * 8 * 2 * 100, dtype=np.uint64)
        expected = 3 * int(words.sum(dtype=object)) % 2**64
        assert reader.stream_read(words.ctypes.data, words.nbytes, 2, 3) == expected

    def test_no_compiler_no_reader(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("INFEROPTIM_HOME", str(tmp_path))
        monkeypatch.setenv("CXX", "/bin/false")
        assert native_reader() is None
        assert list((tmp_path).rglob("*.so")) == []

    def test_measure_cache_and_survive_a_damaged_cache(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch

        monkeypatch.setenv("INFEROPTIM_HOME", str(tmp_path))
        assert cached_ceilings(num_threads=1) is None
        threads_before, steps = torch.get_num_threads(), list[str]()
        measured = ceilings(num_threads=1, on_step=steps.append)
        assert torch.get_num_threads() == threads_before
        assert steps == ["streaming read", "matrix products"]
        assert measured.memory_read_bytes_per_s is not None
        assert {"float32", "bfloat16"} <= set(measured.gemm_flops_per_s)
        assert measured.num_threads == 1
        assert cached_ceilings(num_threads=1) == measured
        assert cached_ceilings(num_threads=2) is None  # another question, another answer
        (file,) = (tmp_path / "ceilings").glob("cpu-*.json")
        for damaged in (
            file.read_text()[:-20],
            "[]",
            '{"format": 0}',
            file.read_text().replace("num_threads", "x"),
        ):
            file.write_text(damaged)
            assert cached_ceilings(num_threads=1) is None
