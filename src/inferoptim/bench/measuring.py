"""Measuring: every configuration in a process of its own, warmed up, then rounds of runs in random order.

Where memory does not hold all of them at once, they are measured in blocks, one after another.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from inferoptim.bench.cases import Case
from inferoptim.bench.inputs import Inputs
from inferoptim.bench.journal import Journal, unequal_work
from inferoptim.bench.levers import Configuration
from inferoptim.bench.process import WorkerProcess
from inferoptim.bench.schedule import Cell, Schedule, StopRule, interleave_fits
from inferoptim.bench.summary import separation
from inferoptim.errors import InferOptimError
from inferoptim.records.schema import RunRecord
from inferoptim.records.statistics import separated

WORKER_BYTES = 600 * 1024**2  # a process with torch in it, before its model
GPU_CONTEXT_BYTES = 1536 * 1024**2


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


class Measuring:
    """The loaded configurations of a run, and the order in which they are measured.

    Args:
        inputs: plan and requests; its `base` names the device by now.
        journal: where runs and failures go.
        observer: told what happens.
        log: file of the workers' output.
    """

    def __init__(self, inputs: Inputs, journal: Journal, observer: Observer, log: Path) -> None:
        self._in = inputs
        self.plan = inputs.plan
        self.schedule_name = "interleaved"
        self._journal = journal
        self._observer = observer
        self._log = log
        self._cases = {case.name: case for case in inputs.cases}
        self._workers: dict[str, WorkerProcess] = {}

    @property
    def worker_pids(self) -> dict[str, int]:
        """Process of each loaded configuration."""
        return {config_id: worker.pid for config_id, worker in self._workers.items()}

    def measure(self, rungs: list[Configuration], free_bytes: int) -> None:
        """Measure those that the gate let through; a configuration that an earlier run measured may still lack runs.

        Args:
            free_bytes: memory that the processes may share.
        """
        rungs = [r for r in rungs if self._journal.records[r.config_id].status in ("not_run", "ok")]
        schedule = Schedule(
            [(r.config_id, c.name) for r in rungs for c in self._in.cases if not self._skipped(r, c)],
            StopRule(self.plan.runs, self.plan.min_runs, self.plan.seconds_per_case),
            self.plan.seed,
            {cell: [r.wall_s for r in runs] for cell, runs in self._journal.runs.items()},
        )
        needed = {r.config_id: self._memory_of(r) for r in rungs}
        self.schedule_name = "interleaved" if interleave_fits(needed, free_bytes) else "blocks"
        if self.schedule_name == "interleaved":
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
            self._journal.warnings.append(
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
                self._journal.warnings.append(
                    "--until-separated needs all configurations in memory at once; it was not applied"
                )

    def _rounds(self, schedule: Schedule) -> None:
        for cell in schedule.rounds(self._out_of_time):
            done, expected = schedule.progress()
            label = self._journal.records[cell[0]].label
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
                if cell in schedule.cells and len(self._journal.runs.get(cell, [])) < self.plan.max_runs
            }
            if not unclear or self._out_of_time():
                return
            for cell in self._shuffled(sorted(unclear)):
                self._observer.step(
                    f"until separated: {self._journal.records[cell[0]].label} · {cell[1]}",
                    len(self._journal.runs[cell]),
                    most.runs,
                )
                run = self._one_run(cell)
                if run is None:
                    schedule.drop(cell[0])
                    break
                schedule.record(cell, run.wall_s)

    def _unclear_pair(self, config_id: str, case: str) -> list[Cell]:
        previous = self._journal.records[config_id].previous
        mine, below = (
            self._journal.runs.get((config_id, case)),
            self._journal.runs.get((previous or "", case)),
        )
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
                self._journal.warnings.append(
                    f"{rung.label}: its answers had the length asked, and were not otherwise checked; the machine's "
                    "ceilings, memory and energy are those of this machine, so none is stated for it"
                )
            elif rung.target in ("vllm", "trtllm"):
                loaded["version"] = info.version
                self._journal.warnings.append(
                    f"{rung.label} {info.version}: its answers had the length asked, and were not otherwise checked"
                )
            self._journal.configuration(
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
        """Run and commit a case; None when the configuration failed under it."""
        started_at_s = self._journal.clock_s
        # on a GPU a kernel is compiled when its shape is first met: there a short warm-up would leave that to a measured run
        short = warmup and self._in.base["device"] == "cpu"
        most = self.plan.warmup_output_tokens if short else None
        try:
            result = self._workers[config_id].call(
                "run", case.name, most, self.plan.telemetry_interval_s, timeout_s=self.plan.deadline_s
            )
        except InferOptimError as error:
            self._fail(config_id, error)
            return None
        problem = unequal_work(case, result, most)
        if problem:
            self._fail(config_id, InferOptimError(problem))
            return None
        return self._journal.commit(config_id, case, result, started_at_s, warmup=warmup)

    def _fail(self, config_id: str, error: InferOptimError) -> None:
        self._journal.mark(config_id, "failed", str(error))
        self._observer.note(f"{self._journal.records[config_id].label} failed: {error}")
        worker = self._workers.pop(config_id, None)
        if worker is not None:
            worker.kill()

    def _open(self, rung: Configuration) -> WorkerProcess:
        """The process of a configuration, started now if it is not there yet."""
        if rung.config_id not in self._workers:
            self._workers[rung.config_id] = WorkerProcess(rung.config_id, self._log, rung.target)
        return self._workers[rung.config_id]

    def _unload(self, config_id: str) -> None:
        worker = self._workers.pop(config_id, None)
        if worker is not None:
            worker.close()

    def close(self) -> None:
        """End every worker."""
        for worker in self._workers.values():
            worker.kill()
        self._workers.clear()

    def _out_of_time(self) -> bool:
        return self.plan.budget_s is not None and self._journal.elapsed_s > self.plan.budget_s

    def _skipped(self, rung: Configuration, case: Case) -> bool:
        """One request at a time over many requests takes long and says nothing new."""
        most = self.plan.sequential_max_requests
        return (
            rung.settings.get("batching") == "sequential" and most is not None and len(case.requests) > most
        )

    def _shuffled(self, items: list[Any]) -> list[Any]:
        out = list(items)
        random.Random(f"{self.plan.seed}/{self._journal.order}").shuffle(out)
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


def replace_cells(schedule: Schedule, cells: list[Cell]) -> Schedule:
    """The same rule and history over fewer cells."""
    return replace(schedule, cells=cells)
