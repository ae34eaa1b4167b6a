"""The bench from plan to report: fresh processes, the gate, warm-ups, interleaved runs, records as they come.

Life of a run: resolve model and requests (nothing written yet) → probe the machine → quality gate → load every
configuration in a process of its own, warm it up → rounds of measured runs in random order → summary, prices, report. Where
memory does not hold all configurations at once, they are measured in blocks, one after another; the summary says which.
Whatever ends a run early (Ctrl-C, a full disk), what was committed stays, is summarised, and `--resume` goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from inferoptim.bench import levers
from inferoptim.bench.cases import Case, build_cases
from inferoptim.bench.environment import capture
from inferoptim.bench.gate import Gate
from inferoptim.bench.levers import Configuration, Machine
from inferoptim.bench.plan import BenchPlan
from inferoptim.bench.process import WorkerProcess
from inferoptim.bench.quality import scored_texts
from inferoptim.bench.schedule import Cell, Schedule, StopRule, interleave_fits
from inferoptim.bench.summary import build_summary, separation
from inferoptim.errors import ConfigError, InferOptimError
from inferoptim.models.hub import ModelFiles
from inferoptim.models.spec import ModelSpec
from inferoptim.models.tokenizer import Tokenizer
from inferoptim.records.reader import read_run
from inferoptim.records.schema import (
    ConfigurationRecord,
    RequestRecord,
    RunRecord,
    Summary,
    TelemetrySample,
)
from inferoptim.records.statistics import separated
from inferoptim.records.writer import RunWriter, prepare_folder

WORKER_BYTES = 600 * 1024**2  # a process with torch in it, before its model
GPU_CONTEXT_BYTES = 1536 * 1024**2
LOG = "worker.log"


class Observer(Protocol):
    """Who watches a bench: the command line, or a test."""

    def phase(self, name: str, total: int) -> None:
        """A phase begins: probe, quality, load, measure, report; `total` steps are expected (0 = not known)."""
        ...

    def step(self, what: str, done: int, total: int, left_s: float | None = None) -> None:
        """Something is under way: the `done` + 1-th of `total`; seconds left in this phase where they can be told."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should know now."""
        ...


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a plan stands for, resolved; nothing of it depends on the machine."""

    plan: BenchPlan
    files: ModelFiles
    spec: ModelSpec
    tokenizer: Tokenizer
    cases: tuple[Case, ...]
    texts: dict[str, list[tuple[int, ...]]]
    base: dict[str, Any]  # EngineConfig fields of every engine rung, but the device


def resolve(plan: BenchPlan, files: ModelFiles) -> Inputs:
    """Read the model's description and make the requests.

    Raises:
        DataError, UnsupportedError: the model cannot be read or run.
        ConfigError: a workload or quality setting that this model cannot have.
    """
    import json

    from inferoptim.models.spec import spec_from_config
    from inferoptim.models.tokenizer import load_tokenizer

    spec = spec_from_config(json.loads((files.folder / "config.json").read_text(encoding="utf-8")))
    tokenizer = load_tokenizer(files.folder)
    cases = tuple(build_cases(plan, tokenizer, spec.max_position))
    if plan.max_model_len is not None and plan.max_model_len > spec.max_position:
        raise ConfigError(
            f"max_model_len={plan.max_model_len} is above the model's context of {spec.max_position} tokens"
        )
    length = plan.max_model_len or max(case.longest_tokens for case in cases)
    rows = max(case.concurrency for case in cases)
    block = int(plan.engine.get("block_size", 16))
    element = 4 if plan.engine.get("dtype") == "float32" or spec.torch_dtype == "float32" else 2
    slot_bytes = -(-length // block) * block * spec.kv_bytes_per_token(element)
    base = {
        "model": plan.model,
        "num_threads": plan.num_threads,
        "max_model_len": length,
        "max_num_seqs": rows,
        "kv_budget_bytes": plan.kv_budget_bytes
        or int(slot_bytes * max(1, round(rows * plan.kv_budget_share))),
    }
    texts = {str(k): v for k, v in scored_texts(tokenizer, plan.quality, spec.max_position).items()}
    return Inputs(plan, files, spec, tokenizer, cases, texts if plan.quality.enabled else {}, base)


class Bench:
    """One run of a plan into a folder.

    Args:
        inputs: see `resolve`.
        folder: `results/<run>`.
        command: what reproduces it, stored with the run.
        observer: told what happens.
        resume: go on with what the folder holds; else it must be empty or new.
        force: replace an earlier run.
        remeasure: measure the machine's ceilings again.
        publish: writes the report of a summarised folder, also of an interrupted run.

    Raises:
        ConfigError: the folder holds another run, or cannot be written.
    """

    def __init__(
        self,
        inputs: Inputs,
        folder: Path,
        *,
        command: Sequence[str],
        observer: Observer,
        resume: bool = False,
        force: bool = False,
        remeasure: bool = False,
        publish: Callable[[Path], object],
    ) -> None:
        self._in = inputs
        self.plan = inputs.plan
        self.folder = folder
        self._command = command
        self._observer = observer
        self._resume = resume
        self._remeasure = remeasure
        self._publish = publish
        self._new = not folder.exists()
        prepare_folder(folder, resume=resume, force=force)
        self._writer = RunWriter(folder)
        self._cases = {case.name: case for case in inputs.cases}
        self._records: dict[str, ConfigurationRecord] = {}
        self._runs: dict[Cell, list[RunRecord]] = {}
        self._warm: dict[Cell, int] = {}
        self._workers: dict[str, WorkerProcess] = {}
        self._warnings: list[str] = [note for case in inputs.cases for note in case.notes]
        self._schedule_name = "interleaved"
        self._order = 0
        self._offset_s = 0.0
        self._started = time.monotonic()

    @property
    def worker_pids(self) -> dict[str, int]:
        """Process of each loaded configuration."""
        return {config_id: worker.pid for config_id, worker in self._workers.items()}

    def run(self) -> Summary:
        """Do it.

        Returns:
            The summary, which is written and published.

        Raises:
            KeyboardInterrupt: after what was measured was summarised and reported.
            InferOptimError: nothing could be measured, or the disk is full.
        """
        try:
            machine, free_bytes = self._prepare()
        except BaseException:
            self._forget_empty_folder()
            raise
        interrupted = False
        try:
            rungs = self._gate(machine)
            self._measure([r for r in rungs if self._records[r.config_id].status == "not_run"], free_bytes)
        except KeyboardInterrupt:
            interrupted = True
            self._observer.note("interrupted: what was measured is kept")
            raise
        finally:
            self._close_workers()
            self._observer.phase("report", 1)
            summary = self._finish(interrupted)
        return summary

    # -- before anything is measured ------------------------------------------------------------------------------

    def _prepare(self) -> tuple[Machine, int]:
        self._observer.phase("probe", 1)
        self._observer.step("this machine and its ceilings", 0, 1)
        worker = self._start("probe")
        try:
            probed = worker.call(
                "probe",
                self.plan.device,
                self.plan.num_threads,
                self._remeasure,
                timeout_s=self.plan.deadline_s,
            )
        finally:
            worker.kill()
        machine: Machine = probed["machine"]
        self._in.base["device"] = machine.device
        self._rungs = levers.configurations(self.plan, machine, self._in.base)
        if self._resume:
            self._take_up()
        else:
            self._writer.plan(self.plan)
        self._writer.environment(
            capture(probed, self._in.files, self._in.spec, self.plan.model, self._command)
        )
        for rung in self._rungs:
            done = self._records.get(rung.config_id)
            if done is None or done.status in ("failed", "not_run"):
                self._note_configuration(
                    rung, "not_supported" if rung.unsupported else "not_run", rung.unsupported
                )
        return machine, int(probed["free_bytes"])

    def _take_up(self) -> None:
        """Continue an earlier run of the same plan."""
        self._writer.resume()
        earlier = read_run(self.folder)
        stored = BenchPlan.model_validate(earlier.plan)
        if stored.fingerprint != self.plan.fingerprint:
            raise ConfigError(
                f"{self.folder} was measured with another plan: choose another folder with --out"
            )
        self._writer.plan(self.plan)  # equal but for the price, which may be new
        self._records = dict(earlier.configurations)
        for run in earlier.runs:
            self._order = max(self._order, run.order_index + 1)
            self._offset_s = max(self._offset_s, run.started_at_s + run.wall_s)
            if not run.warmup:
                self._runs.setdefault((run.config_id, run.workload), []).append(run)

    def _forget_empty_folder(self) -> None:
        """Leave nothing behind when not even the plan was written."""
        if self._new and not (self.folder / "plan.json").exists():
            (self.folder / LOG).unlink(missing_ok=True)
            self.folder.rmdir()

    # -- quality --------------------------------------------------------------------------------------------------

    def _gate(self, machine: Machine) -> list[Configuration]:
        """Check every configuration of the engine; those that fail are marked, and lose their place in the ladder."""
        rungs = self._rungs
        if not self.plan.quality.enabled:
            self._warnings.append("the quality gate was turned off: no configuration's output was checked")
            return rungs
        earlier = read_run(self.folder).quality
        checked = {q.config_id for q in earlier}
        baseline = None
        if find_spec("transformers") is not None:
            baseline = levers.transformers_settings(self.plan, machine)
        off = levers.engine_settings(self.plan, self._in.base, (), machine)
        gate = Gate(
            self.plan,
            off,
            baseline,
            self._in.texts,
            self._in.spec.max_position,
            lambda: self._start("quality gate"),
            self.folder,
        )
        todo = [r for r in rungs if r.target == "engine" and not r.unsupported]
        self._observer.phase("quality", len(todo))
        try:
            for number, planned in enumerate(todo):
                rung = next(r for r in rungs if r.config_id == planned.config_id)
                if rung.unsupported:
                    self._note_configuration(rung, "not_supported", rung.unsupported)
                    continue
                gate.on_check = lambda what, n=number: self._observer.step(what, n, len(todo))  # type: ignore[misc]
                if rung.config_id in checked:
                    records = tuple(q for q in earlier if q.config_id == rung.config_id)
                else:
                    verdict = gate.check(rung)
                    records = verdict.records
                    for record in records:
                        self._writer.quality(record)
                    if verdict.warning:
                        self._warnings.append(verdict.warning)
                    if verdict.died:
                        self._note_configuration(rung, "failed", verdict.died)
                broken = "; ".join(q.detail for q in records if not q.passed)
                if broken:
                    self._note_configuration(rung, "failed_quality", broken)
                    self._observer.note(f"{rung.label} fails its quality gate: {broken}")
                    rungs = levers.without_lever(rungs, rung, self.plan, machine, self._in.base)
                elif rung != planned and self._records[rung.config_id].status == "not_run":
                    self._note_configuration(rung, "not_run", None)
        finally:
            gate.close()
        self._rungs = rungs
        return rungs

    # -- measuring ------------------------------------------------------------------------------------------------

    def _measure(self, rungs: list[Configuration], free_bytes: int) -> None:
        done = {
            r.config_id for r in self._rungs if self._records[r.config_id].status == "ok"
        }  # of an earlier run, which may still lack runs
        rungs = [r for r in self._rungs if r in rungs or r.config_id in done]
        schedule = Schedule(
            [(r.config_id, c.name) for r in rungs for c in self._in.cases if not self._skipped(r, c)],
            StopRule(self.plan.runs, self.plan.min_runs, self.plan.seconds_per_case),
            self.plan.seed,
            {cell: [r.wall_s for r in runs] for cell, runs in self._runs.items()},
        )
        needed = {r.config_id: self._memory_of(r) for r in rungs}
        self._schedule_name = "interleaved" if interleave_fits(needed, free_bytes) else "blocks"
        if self._schedule_name == "interleaved":
            self._observer.phase("load", len(rungs))
            for number, rung in enumerate(rungs):
                self._observer.step(rung.label, number, len(rungs))
                self._open(rung)
                if number + 1 < len(rungs):
                    self._open(rungs[number + 1])  # imports its libraries meanwhile
                if not self._load(rung):
                    schedule.drop(rung.config_id)
            self._observer.phase("measure", 0)
            self._rounds(schedule)
            if self.plan.until_separated:
                self._go_on(schedule)
        else:
            self._warnings.append(
                "memory does not hold all configurations at once: they were measured one after another, so that a change of the "
                "machine's speed during the run shows as a difference between them"
            )
            self._observer.phase("measure", 0)
            for rung in self._shuffled(rungs):
                if not self._load(rung):
                    schedule.drop(rung.config_id)
                    continue
                own = replace_cells(schedule, [c for c in schedule.cells if c[0] == rung.config_id])
                self._rounds(own)
                self._unload(rung.config_id)
            if self.plan.until_separated:
                self._warnings.append(
                    "--until-separated needs all configurations in memory at once; it was not applied"
                )

    def _rounds(self, schedule: Schedule) -> None:
        for cell in schedule.rounds(self._out_of_time):
            done, expected = schedule.progress()
            label = self._records[cell[0]].label
            self._observer.step(f"{label} · {cell[1]}", done, expected, schedule.left_s())
            run = self._one_run(cell)
            if run is None:
                schedule.drop(cell[0])
            else:
                schedule.record(cell, run.wall_s)

    def _go_on(self, schedule: Schedule) -> None:
        """More runs of the neighbours that cannot be ranked yet."""
        most = StopRule(self.plan.max_runs, self.plan.max_runs)
        while True:
            unclear = {
                cell
                for config_id, case in schedule.cells
                for cell in self._unclear_pair(config_id, case)
                if cell in schedule.cells and len(self._runs.get(cell, [])) < self.plan.max_runs
            }
            if not unclear or self._out_of_time():
                return
            for cell in self._shuffled(sorted(unclear)):
                self._observer.step(
                    f"until separated: {self._records[cell[0]].label} · {cell[1]}",
                    len(self._runs[cell]),
                    most.runs,
                )
                run = self._one_run(cell)
                if run is None:
                    schedule.drop(cell[0])
                    break
                schedule.record(cell, run.wall_s)

    def _unclear_pair(self, config_id: str, case: str) -> list[Cell]:
        previous = self._records[config_id].previous
        mine, below = self._runs.get((config_id, case)), self._runs.get((previous or "", case))
        if not mine or not below:
            return []
        ratio = separation(mine, below, f"{config_id}/{case}/previous")
        return [] if separated(ratio) else [(config_id, case), (previous or "", case)]

    def _one_run(self, cell: Cell) -> RunRecord | None:
        """Run and commit one cell; None when the configuration failed under it."""
        config_id, case_name = cell
        return self._attempt(config_id, self._cases[case_name], warmup=False)

    def _load(self, rung: Configuration) -> bool:
        """Fresh process, model loaded, every case warmed up."""
        try:
            worker = self._open(rung)
            info = worker.call("load", rung.target, dict(rung.settings), timeout_s=self.plan.deadline_s)
            told = ("dtype", "decoder", "num_threads", "token_ids", "prefix_cache_reset")
            loaded = {k: info.settings[k] for k in told if k in info.settings}
            if rung.target == "openai_http":
                loaded |= {"server_version": info.version, "model": info.settings["model"]}
                self._warnings.append(
                    f"{rung.label}: its answers had the length asked, and were not otherwise checked; the machine's "
                    "ceilings, memory and energy are those of this machine, so none is stated for it"
                )
            elif rung.target in ("vllm", "trtllm"):
                loaded["version"] = info.version
                self._warnings.append(
                    f"{rung.label} {info.version}: its answers had the length asked, and were not otherwise checked"
                )
            self._note_configuration(
                rung,
                "ok",
                None,
                settings={**rung.settings, **loaded},
                load_s=info.load_s,
                weight_bytes=info.weight_bytes,
                kv_capacity_bytes=info.kv_capacity_bytes,
                kv_capacity_tokens=info.kv_capacity_tokens,
            )
            for case in self._in.cases:
                if not self._skipped(rung, case):
                    concurrency = None if case.open_loop else case.concurrency
                    worker.call("set_case", case.name, list(case.requests), concurrency)
                    for _ in range(self.plan.warmups):
                        if self._attempt(rung.config_id, case, warmup=True) is None:
                            return False
        except InferOptimError as error:
            self._fail(rung.config_id, error)
            return False
        return True

    def _attempt(self, config_id: str, case: Case, *, warmup: bool) -> RunRecord | None:
        started_at = time.monotonic() - self._started + self._offset_s
        most = self.plan.warmup_output_tokens if warmup else None
        try:
            result = self._workers[config_id].call(
                "run", case.name, most, self.plan.telemetry_interval_s, timeout_s=self.plan.deadline_s
            )
        except InferOptimError as error:
            self._fail(config_id, error)
            return None
        problem = _unequal_work(case, result, most)
        if problem:
            self._fail(config_id, InferOptimError(problem))
            return None
        earlier = self._runs.setdefault((config_id, case.name), [])
        run = RunRecord(
            config_id=config_id,
            workload=case.name,
            run_index=self._warmups_done(config_id, case.name) if warmup else len(earlier),
            warmup=warmup,
            order_index=self._order,
            started_at_s=round(started_at, 6),
            wall_s=result.wall_s,
            num_requests=len(result.responses),
            num_failed=0,
            prompt_tokens=case.prompt_tokens,
            output_tokens=sum(len(r.token_ids) for r in result.responses),
            peak_rss_bytes=result.peak_rss_bytes,
            cpu_s=result.cpu_s,
            energy_j=result.energy_j,
            counters=result.counters,
        )
        self._order += 1
        if warmup:
            self._writer.run(run)
            return run
        self._writer.run(run, _requests(run, case, result), _samples(run, result))
        earlier.append(run)
        return run

    def _warmups_done(self, config_id: str, case: str) -> int:
        key = (config_id, case)
        self._warm[key] = self._warm.get(key, -1) + 1
        return int(self._warm[key])

    def _fail(self, config_id: str, error: InferOptimError) -> None:
        self._note(config_id, "failed", str(error))
        self._observer.note(f"{self._records[config_id].label} failed: {error}")
        worker = self._workers.pop(config_id, None)
        if worker is not None:
            worker.kill()

    # -- the end --------------------------------------------------------------------------------------------------

    def _finish(self, interrupted: bool) -> Summary:
        folder = read_run(self.folder)
        summary = build_summary(
            folder,
            self.plan,
            {case.name: case.concurrency for case in self._in.cases},
            {
                "schedule": self._schedule_name,
                "runs": self.plan.runs,
                "min_runs": self.plan.min_runs,
                "seconds_per_case": self.plan.seconds_per_case,
                "warmups": self.plan.warmups,
                "seed": self.plan.seed,
                "workloads": {case.name: case.fingerprint for case in self._in.cases},
                "interrupted": interrupted,
            },
            tuple(dict.fromkeys(self._warnings)),
        )
        self._writer.summary(summary)
        self._publish(self.folder)
        return summary

    # -- small things ---------------------------------------------------------------------------------------------

    def _start(self, name: str) -> WorkerProcess:
        return WorkerProcess(name, self.folder / LOG)

    def _open(self, rung: Configuration) -> WorkerProcess:
        """The process of a configuration, started now if it is not there yet."""
        if rung.config_id not in self._workers:
            self._workers[rung.config_id] = WorkerProcess(rung.config_id, self.folder / LOG, rung.target)
        return self._workers[rung.config_id]

    def _unload(self, config_id: str) -> None:
        worker = self._workers.pop(config_id, None)
        if worker is not None:
            worker.close()

    def _close_workers(self) -> None:
        for worker in self._workers.values():
            worker.kill()
        self._workers.clear()

    def _out_of_time(self) -> bool:
        return self.plan.budget_s is not None and time.monotonic() - self._started > self.plan.budget_s

    def _skipped(self, rung: Configuration, case: Case) -> bool:
        """One request at a time over many requests takes long and says nothing new."""
        most = self.plan.sequential_max_requests
        return (
            rung.settings.get("batching") == "sequential" and most is not None and len(case.requests) > most
        )

    def _shuffled(self, items: list[Any]) -> list[Any]:
        import random

        out = list(items)
        random.Random(f"{self.plan.seed}/{self._order}").shuffle(out)
        return out

    def _memory_of(self, rung: Configuration) -> int:
        """Bytes that a loaded configuration is expected to take where free memory was asked for."""
        if rung.target == "openai_http":
            return WORKER_BYTES
        spec = self._in.spec
        number = 4 if "float32" in (rung.settings.get("dtype"), spec.torch_dtype) else 2
        weights = (spec.body_parameters + 2 * spec.head_parameters) * number
        kv = int(rung.settings.get("kv_budget_bytes") or self._in.base["kv_budget_bytes"])
        own = GPU_CONTEXT_BYTES if self._in.base["device"] == "cuda" else WORKER_BYTES
        return int(own + 1.3 * weights + kv)

    def _note_configuration(self, rung: Configuration, status: Any, error: str | None, **fields: Any) -> None:
        record = ConfigurationRecord(
            config_id=rung.config_id,
            label=rung.label,
            target=rung.target,
            levers=rung.levers,
            added_lever=rung.added_lever,
            previous=rung.previous,
            is_baseline=rung.is_baseline,
            status=status,
            error=error,
            **{"settings": dict(rung.settings), **fields},
        )
        self._records[rung.config_id] = record
        self._writer.configuration(record)

    def _note(self, config_id: str, status: Any, error: str) -> None:
        record = self._records[config_id].model_copy(update={"status": status, "error": error})
        self._records[config_id] = record
        self._writer.configuration(record)


def replace_cells(schedule: Schedule, cells: list[Cell]) -> Schedule:
    """The same rule and history over fewer cells."""
    return replace(schedule, cells=cells)


def _unequal_work(case: Case, result: Any, most: int | None) -> str | None:
    """Why this run is not the work that every configuration does; None when it is."""
    for request, response in zip(case.requests, result.responses, strict=True):
        if response.error:
            return f"{case.name}, request {request.request_id}: {response.error}"
        wanted = min(request.sampling.max_tokens, most or request.sampling.max_tokens)
        if len(response.token_ids) != wanted:
            return (
                f"{case.name}, request {request.request_id}: {len(response.token_ids)} tokens produced, {wanted} asked: "
                "not the work that the others do"
            )
    hits = result.counters.get("prefix_cache_hit_tokens", 0)
    if hits > case.shareable_tokens:
        return (
            f"{case.name}: {hits:.0f} prompt tokens came from the prefix cache, but the requests share only "
            f"{case.shareable_tokens}: the cache was warm from an earlier run"
        )
    return None


def _requests(run: RunRecord, case: Case, result: Any) -> Iterator[RequestRecord]:
    import hashlib

    zero = result.started_s
    for request, response in zip(case.requests, result.responses, strict=True):
        sent = response.sent_s - zero
        times = response.token_times_s
        digest = hashlib.sha256(repr(tuple(response.token_ids)).encode()).hexdigest()
        yield RequestRecord(
            config_id=run.config_id,
            workload=run.workload,
            run_index=run.run_index,
            request_id=request.request_id,
            arrival_s=round(request.arrival_offset_s if case.open_loop else sent, 6),
            sent_s=round(sent, 6),
            first_token_s=round(times[0] - zero, 6) if times else None,
            finished_s=round(response.finished_s - zero, 6),
            token_times_s=tuple(round(t - zero, 6) for t in times) if times else None,
            prompt_tokens=len(request.prompt_token_ids),
            cached_prompt_tokens=response.num_cached_prompt_tokens,
            output_tokens=len(response.token_ids),
            output_sha256=digest,
        )


def _samples(run: RunRecord, result: Any) -> Iterator[TelemetrySample]:
    for sample in result.samples:
        yield TelemetrySample(
            config_id=run.config_id, workload=run.workload, run_index=run.run_index, **sample
        )
