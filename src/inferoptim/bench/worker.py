"""The process that drives one target; started by `WorkerProcess` with two pipes.

Every public method of `Worker` is a command. Values in and out are plain or records, so that the parent needs no torch.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferoptim.errors import ConfigError, InferOptimError, UnsupportedError
from inferoptim.targets.base import Target, TargetInfo, TargetRequest, TargetResponse

if TYPE_CHECKING:
    from inferoptim.bench.quality import Choices, Comparison
    from inferoptim.hardware.gpu_meter import GpuMeter


@dataclass(slots=True)
class RunResult:
    """One pass over a case. Times are `time.perf_counter()` of the worker; `started_s` is the run's zero."""

    started_s: float
    wall_s: float  # first send → last token
    responses: list[TargetResponse]
    counters: dict[str, float]  # increments during the run
    samples: list[dict[str, Any]] = field(default_factory=list)
    peak_rss_bytes: int | None = None
    cpu_s: float | None = None
    energy_j: float | None = None


class Worker:
    """State of the process: one target and the requests of each case."""

    def __init__(self) -> None:
        self._target: Target | None = None
        self._cases: dict[str, tuple[list[TargetRequest], int | None]] = {}
        self._remote = False  # the target runs elsewhere: this process is only its client
        self._runs = 0
        self._gpu: GpuMeter | None = None

    def probe(self, device: str, num_threads: int | None, remeasure: bool) -> dict[str, Any]:
        """Facts of this machine that need torch, and its ceilings (measured unless cached)."""
        from inferoptim.bench.environment import probe_machine

        return probe_machine(device, num_threads, remeasure=remeasure)

    def load(self, target: str, settings: Mapping[str, Any]) -> TargetInfo:
        """Construct and load the target."""
        if self._target is not None:
            self._target.close()
        self._target, self._remote = make_target(target, settings), target == "openai_http"
        info = self._target.load()
        self._gpu = _open_gpu_meter(str(info.settings.get("device", settings.get("device", ""))))
        return info

    def set_case(self, name: str, requests: list[TargetRequest], concurrency: int | None) -> None:
        """Keep the requests of a case, so that a run sends nothing over the pipe."""
        self._cases[name] = (requests, concurrency)

    def run(self, case: str, most_tokens: int | None, interval_s: float) -> RunResult:
        """Forget what could be warm, then serve the case once under telemetry.

        Args:
            most_tokens: cap the answers (a warm-up); None: as the case says.
            interval_s: between two samples.
        """
        from inferoptim.bench.telemetry import Sampler

        target = self._loaded()
        requests, concurrency = self._cases[case]
        self._runs += 1
        requests = [_renamed(r, self._runs, most_tokens) for r in requests]
        target.reset()
        before = target.counters()
        sampler = Sampler(target, interval_s, self._gpu)
        sampler.start()
        started = time.perf_counter()
        try:
            responses = target.run(requests, concurrency=concurrency)
        finally:
            seen = sampler.stop()
        after = target.counters()
        remote = self._remote
        first = min((r.sent_s for r in responses), default=started)
        last = max((r.finished_s for r in responses), default=started)
        return RunResult(
            started_s=started,
            wall_s=last - first,
            responses=responses,
            counters={name: value - before.get(name, 0.0) for name, value in after.items()},
            samples=[] if remote else seen.samples,
            # of a remote server nothing is metered here: this process is only its client
            peak_rss_bytes=None if remote else seen.peak_rss_bytes,
            cpu_s=None if remote else seen.cpu_s,
            energy_j=None if remote else seen.energy_j,
        )

    # -- quality gate ---------------------------------------------------------------------------------------------

    def greedy(self, requests: list[TargetRequest], concurrency: int, passes: int) -> list[tuple[int, ...]]:
        """Tokens of each request, `passes` times over (the later passes meet a warm prefix cache)."""
        target = self._loaded()
        out: list[tuple[int, ...]] = []
        for number in range(passes):
            self._runs += 1
            named = [_renamed(r, self._runs, None) for r in requests]
            for response in target.run(named, concurrency=concurrency):
                if response.error:
                    raise InferOptimError(f"pass {number + 1}, {response.request_id}: {response.error}")
                out.append(response.token_ids)
        return out

    def write_logits(self, texts: Sequence[Sequence[int]], folder: str) -> None:
        """Store float32 logits of each text as the reference, one .npy a text."""
        import numpy as np

        for index, text in enumerate(texts):
            np.save(Path(folder) / f"{index}.npy", self._loaded().logits(text))

    def largest_logit_error(self, texts: Sequence[Sequence[int]], folder: str) -> list[float]:
        """Largest gap to the stored logits, by text."""
        from inferoptim.bench.quality import largest_gap, load_logits

        return [
            largest_gap(load_logits(Path(folder), index), self._loaded().logits(text))
            for index, text in enumerate(texts)
        ]

    def relative_logit_errors(self, texts: Sequence[Sequence[int]], folder: str) -> list[float]:
        """Relative error against the stored logits, by text."""
        from inferoptim.bench.quality import load_logits, relative_error

        return [
            relative_error(load_logits(Path(folder), index), self._loaded().logits(text))
            for index, text in enumerate(texts)
        ]

    def judge(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Choices]:
        """Answers of another configuration, as this target would have chosen."""
        from inferoptim.bench.quality import judge

        return [
            judge(self._loaded().logits((*prompt, *answer))[len(prompt) - 1 : -1], answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def compare_logits(self, texts: Sequence[Sequence[int]], folder: str) -> list[Comparison]:
        """Each text under this target against the stored reference."""
        from inferoptim.bench.quality import compare, load_logits

        return [
            compare(load_logits(Path(folder), index), self._loaded().logits(text), text)
            for index, text in enumerate(texts)
        ]

    def top_gap(self, token_ids: Sequence[int]) -> float:
        """Gap between the two likeliest next tokens after `token_ids`, in logits."""
        import numpy as np

        last = np.sort(self._loaded().logits(token_ids)[-1])
        return float(last[-1] - last[-2])

    def _loaded(self) -> Target:
        assert self._target is not None, "load() comes first"
        return self._target


def _open_gpu_meter(device: str) -> GpuMeter | None:
    """A meter of the current CUDA device; None on a CPU and where NVML has none."""
    if device != "cuda":
        return None
    from inferoptim.hardware.gpu_meter import cuda_uuids, open_gpu_meters

    meters = open_gpu_meters(cuda_uuids())
    return meters[0] if meters else None


def make_target(name: str, settings: Mapping[str, Any]) -> Target:
    """The target of that name, not yet loaded.

    Raises:
        UnsupportedError: its package is not installed.
    """
    if name == "engine":
        from inferoptim.targets.engine import EngineTarget

        return EngineTarget(settings)
    if name == "openai_http":
        try:
            return _endpoint(settings)
        except ModuleNotFoundError as error:
            raise UnsupportedError(
                f"target openai_http needs the package {error.name}: pip install 'inference-optim-llm[serve]'"
            ) from error
    if name == "vllm":
        from inferoptim.targets.vllm import VllmTarget

        return VllmTarget(settings)
    if name == "trtllm":
        from inferoptim.targets.trtllm import TrtllmTarget

        return TrtllmTarget(settings)
    assert name == "transformers", name
    try:
        import transformers  # noqa: F401  # found out now, in one line, instead of at load()

        from inferoptim.targets.transformers import TransformersTarget
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"target transformers needs the package {error.name}: pip install 'inference-optim-llm[bench]'"
        ) from error
    return TransformersTarget(settings)


def _endpoint(settings: Mapping[str, Any]) -> Target:
    """The client of an OpenAI endpoint; completions only, because there a prompt is sent as exact token ids.

    Raises:
        ConfigError: the variable that should hold the key is not set.
    """
    import os

    from inferoptim.models.hub import resolve_model
    from inferoptim.models.tokenizer import load_tokenizer
    from inferoptim.targets.openai_http import OpenAIHttpTarget

    variable = settings["api_key_env"]
    key = os.environ.get(variable) if variable else None
    if variable and not key:
        raise ConfigError(f"endpoint {settings['url']}: the environment variable {variable} is not set")
    return OpenAIHttpTarget(
        settings["url"],
        model=settings["model"],
        api="completions",
        api_key=key,
        tokenizer=load_tokenizer(resolve_model(settings["tokenizer"]).folder),
    )


def _renamed(request: TargetRequest, run: int, most_tokens: int | None) -> TargetRequest:
    """The request under an id of this run, its answer capped for a warm-up."""
    sampling = request.sampling
    if most_tokens is not None and sampling.max_tokens > most_tokens:
        sampling = sampling.model_copy(update={"max_tokens": most_tokens})
    return replace(request, request_id=f"{run}/{request.request_id}", sampling=sampling)


def serve(connection: Connection) -> None:
    """Answer commands until the parent closes the pipe."""
    worker = Worker()
    while True:
        try:
            method, args = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[str, Any] = ("ok", getattr(worker, method)(*args))
        except Exception as error:
            traceback.print_exc()
            text = " ".join(str(error).split()) or "no message"
            answer = ("error", (type(error).__name__, text))
        try:
            connection.send(answer)
        except OSError:
            return


def _leave_with(lifeline: int) -> None:
    """Wait until the parent's end closes, whatever this process is doing then."""
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)  # a target's own processes (vLLM's engine) too: the worker leads their group


def main() -> None:
    pipe, lifeline, target = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    threading.Thread(target=_leave_with, args=(lifeline,), daemon=True).start()
    if target:
        with suppress(ModuleNotFoundError):  # load() says it, in one line
            import_module(f"inferoptim.targets.{target}")
            if target != "openai_http":
                import_module("transformers" if target == "transformers" else "torch")
    serve(Connection(pipe))
