"""Facts about this CPU and about how much of it this process may use (affinity, cgroup v1 and v2)."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path("/")

# As /proc/cpuinfo writes them (x86 'flags', Arm 'Features') -> our name. Only what a kernel could use.
_ISA = {
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_tile": "amx_tile",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
}


@dataclass(frozen=True)
class CpuFacts:
    """This machine's processor and this process's share of it. None: the system does not say."""

    model: str
    architecture: str  # x86_64, aarch64, ...
    logical_cores: int
    usable_cores: int  # what affinity and quota leave; at least 1
    quota_cores: float | None  # CPU time per second the cgroup allows; None = no quota
    memory_limit_bytes: int | None  # of the cgroup; None = no limit below the machine's memory
    llc_bytes: int | None  # last-level cache, possibly shared with other tenants of the host
    isa: tuple[str, ...]


@cache
def cpu_facts() -> CpuFacts:
    """Read the facts once per process."""
    model, isa = _cpuinfo(ROOT)
    return CpuFacts(
        model=model or f"{platform.machine()} processor",
        architecture=platform.machine(),
        logical_cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        quota_cores=quota_cores(),
        memory_limit_bytes=memory_limit_bytes(),
        llc_bytes=last_level_cache_bytes(),
        isa=isa,
    )


def usable_cores(root: Path = ROOT) -> int:
    """How many threads can really run at once: the smaller of the affinity mask and the cgroup's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = quota_cores(root)
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def quota_cores(root: Path = ROOT) -> float | None:
    """CPU time per second that the cgroup (or any ancestor) allows, in cores; None without a quota."""
    quotas = []
    for folder in _cgroup_folders(root, "cpu"):
        if (text := _read(folder / "cpu.max")) is not None:  # v2: 'max 100000' or '150000 100000'
            quota, _, period = text.partition(" ")
        else:  # v1
            quota, period = (
                _read(folder / "cpu.cfs_quota_us") or "",
                _read(folder / "cpu.cfs_period_us") or "",
            )
        if quota.isdigit() and period.isdigit() and int(period) > 0:  # 'max' and '-1' mean none
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """Memory that the cgroup (or any ancestor) allows; None where there is no limit below the machine's memory."""
    limits = []
    for folder in _cgroup_folders(root, "memory"):
        text = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes") or ""
        if text.isdigit():
            limits.append(int(text))
    limit = min(limits, default=None)
    if limit is None or limit >= _total_memory_bytes(root):  # v1 writes 'no limit' as a huge number
        return None
    return limit


def last_level_cache_bytes(root: Path = ROOT) -> int | None:
    """Size of the highest data or unified cache level of the first core; None where the system does not say."""
    caches: list[tuple[int, int]] = []
    for folder in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, size, kind = (_read(folder / name) or "" for name in ("level", "size", "type"))
        if level.isdigit() and size[:-1].isdigit() and kind != "Instruction":
            caches.append(
                (int(level), int(size[:-1]) * {"K": 1024, "M": 1024**2, "G": 1024**3}.get(size[-1], 1))
            )
    return max(caches)[1] if caches else None


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """Every folder whose limit binds this process: its own cgroup and all ancestors that are visible here.

    Inside a container the path that the kernel names is often not mounted; the mount's root is then its own cgroup.
    """
    folders = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" and not controllers:
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        relative = Path(path.lstrip("/"))
        for mount in mounts:
            folders += [mount / part for part in (relative, *relative.parents) if (mount / part).is_dir()]
    return list(dict.fromkeys(folders))


def _cpuinfo(root: Path) -> tuple[str | None, tuple[str, ...]]:
    model, flags = None, set[str]()
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        key = key.strip()
        if key == "model name" and model is None:
            model = value.strip()
        elif key in ("flags", "Features"):
            flags = set(value.split())
            break  # all cores of one machine say the same; the first is enough
    return model, tuple(name for flag, name in _ISA.items() if flag in flags)


def _total_memory_bytes(root: Path) -> float:
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return float("inf")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
