"""Where a run takes place: what the parent can see, and what only a process with torch can tell."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferoptim.bench.levers import Machine
from inferoptim.hardware import cpu_facts, memory_limit_bytes
from inferoptim.models.hub import ModelFiles
from inferoptim.models.spec import ModelSpec
from inferoptim.records.schema import Ceilings, Environment

if TYPE_CHECKING:
    from inferoptim.hardware import MachineCeilings

PACKAGES = ("torch", "triton", "transformers", "tokenizers", "safetensors", "numpy", "vllm", "tensorrt-llm")


def probe_machine(device: str, num_threads: int | None, *, remeasure: bool = False) -> dict[str, Any]:
    """Runs in a worker: device, levers that exist, kernels and ceilings, as plain values.

    Raises:
        UnsupportedError: cuda was asked for and there is none.
    """
    import torch

    from inferoptim.errors import UnsupportedError
    from inferoptim.hardware import ceilings

    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UnsupportedError("device=cuda, but torch sees no NVIDIA GPU here; run `inferoptim doctor`")
    chosen = "cuda" if device == "cuda" or (device == "auto" and has_cuda) else "cpu"
    gpus = []
    if chosen == "cuda":
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            gpus.append({"name": found.name, "memory_bytes": found.total_memory, "uuid": str(found.uuid)})
        machine = Machine(
            "cuda",
            compute_capability=torch.cuda.get_device_capability(0),
            num_gpus=torch.cuda.device_count(),
            absent_targets=absent_targets("cuda"),
        )
        kernels = {"cuda": torch.version.cuda or ""}
        measured: MachineCeilings = ceilings("cuda", remeasure=remeasure)
        free_bytes = torch.cuda.mem_get_info()[0]
    else:
        from inferoptim.kernels import cpu

        why_not = cpu.why_not()
        machine = Machine(
            "cpu",
            native_step=why_not is None,
            native_step_reason=why_not or "",
            absent_targets=absent_targets("cpu"),
        )
        kernels = {"cpu": f"native-{cpu.isa()}" if why_not is None else "torch operators"}
        measured = ceilings("cpu", num_threads, remeasure=remeasure)
        free_bytes = available_memory_bytes()
    return {
        "machine": machine,
        "gpus": gpus,
        "kernels": kernels,
        "ceilings": measured,
        "free_bytes": free_bytes,
    }


def absent_targets(device: str) -> dict[str, str]:
    """Targets that cannot run here, each with the reason."""
    from inferoptim.targets import trtllm, vllm

    found = {"vllm": vllm.why_not(), "trtllm": trtllm.why_not()}
    if device == "cpu":
        found["trtllm"] = found["trtllm"] or "target trtllm needs an NVIDIA GPU; this bench runs on the CPU"
    return {name: reason for name, reason in found.items() if reason is not None}


def available_memory_bytes() -> int:
    """Memory that new processes may still take: the system's, or what the cgroup leaves."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit = memory_limit_bytes()
    return free if limit is None else min(free, limit)


def capture(
    probed: Mapping[str, Any], files: ModelFiles, spec: ModelSpec, model: str, command: Sequence[str]
) -> Environment:
    """The environment record of a run."""
    import psutil

    facts = cpu_facts()
    commit, dirty = git_state(Path(__file__).parent)
    return Environment(
        hostname_hash=hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12],
        os=f"{_distribution()} · Linux {platform.release()}"
        if platform.system() == "Linux"
        else platform.platform(),
        cpu=facts.model,
        cores=facts.usable_cores,
        memory_bytes=int(psutil.virtual_memory().total),
        gpus=tuple(probed["gpus"]),
        versions=versions(),
        kernels=dict(probed["kernels"]),
        git_commit=commit,
        git_dirty=dirty,
        model=model,
        model_revision=files.revision,
        model_fingerprint=files.fingerprint,
        model_shape=asdict(spec),
        ceilings=ceilings_record(probed["ceilings"]),
        command=" ".join(command),
        started_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def ceilings_record(measured: MachineCeilings) -> Ceilings:
    """The measured ceilings as a record."""
    return Ceilings(
        **{
            **measured.as_record_fields(),
            "cached_read_bytes_per_s": measured.cached_read_bytes_per_s,
            "llc_bytes": measured.llc_bytes,
        }
    )


def versions() -> dict[str, str]:
    """Versions of what decides a measurement; a package that is absent is left out."""
    found = {"python": platform.python_version()}
    for package in ("inference-optim-llm", *PACKAGES):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """(commit, uncommitted changes) of the checkout that the code runs from; (None, None) where there is none."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
        return done.stdout.strip()

    try:
        tracked = git("ls-files", "--error-unmatch", "environment.py")
        return (git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))) if tracked else (None, None)
    except (OSError, subprocess.SubprocessError):
        return None, None


def _distribution() -> str:
    with suppress(OSError, KeyError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return "Linux"
