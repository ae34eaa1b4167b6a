"""The bench from plan to report: fresh processes, the gate, warm-ups, interleaved runs, records as they come.

Life of a run: resolve model and requests (nothing written yet) → probe the machine → quality gate → load every
configuration in a process of its own, warm it up → rounds of measured runs in random order → summary, prices, report. Where
memory does not hold all configurations at once, they are measured in blocks, one after another; the summary says which.
Whatever ends a run early (Ctrl-C, a full disk), what was committed stays, is summarised, and `--resume` goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from inferoptim.bench import levers
from inferoptim.bench.environment import capture
from inferoptim.bench.gate import Gate
from inferoptim.bench.inputs import Inputs, resolve
from inferoptim.bench.journal import Journal
from inferoptim.bench.levers import Configuration, Machine
from inferoptim.bench.measuring import Measuring, Observer
from inferoptim.bench.plan import BenchPlan
from inferoptim.bench.process import WorkerProcess
from inferoptim.bench.summary import build_summary
from inferoptim.errors import ConfigError
from inferoptim.records.reader import read_run
from inferoptim.records.schema import Summary
from inferoptim.records.writer import RunWriter, missing_folders, prepare_folder, remove_empty

__all__ = ["Bench", "Inputs", "Observer", "resolve"]

LOG = "worker.log"


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
        self._made = missing_folders(folder)
        prepare_folder(folder, resume=resume, force=force)
        self._writer = RunWriter(folder)
        self._journal = Journal(self._writer)
        self._journal.warnings += [note for case in inputs.cases for note in case.notes]
        self._measuring = Measuring(inputs, self._journal, observer, folder / LOG)

    @property
    def worker_pids(self) -> dict[str, int]:
        """Process of each loaded configuration."""
        return self._measuring.worker_pids

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
            self._measuring.measure(rungs, free_bytes)
        except KeyboardInterrupt:
            interrupted = True
            self._observer.note("interrupted: what was measured is kept")
            raise
        finally:
            self._measuring.close()
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
            done = self._journal.records.get(rung.config_id)
            if done is None or done.status in ("failed", "not_run"):
                self._journal.configuration(
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
        self._journal.take_up(earlier)

    def _forget_empty_folder(self) -> None:
        """Leave nothing behind when not even the plan was written."""
        if self._made and not (self.folder / "plan.json").exists():
            (self.folder / LOG).unlink(missing_ok=True)
            remove_empty(self._made)

    # -- quality --------------------------------------------------------------------------------------------------

    def _gate(self, machine: Machine) -> list[Configuration]:
        """Check every configuration of the engine; those that fail are marked, and lose their place in the ladder."""
        rungs = self._rungs
        if not self.plan.quality.enabled:
            self._journal.warnings.append(
                "the quality gate was turned off: no configuration's output was checked"
            )
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
                    self._journal.configuration(rung, "not_supported", rung.unsupported)
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
                        self._journal.warnings.append(verdict.warning)
                    if verdict.died:
                        self._journal.configuration(rung, "failed", verdict.died)
                broken = "; ".join(q.detail for q in records if not q.passed)
                if broken:
                    self._journal.configuration(rung, "failed_quality", broken)
                    self._observer.note(f"{rung.label} fails its quality gate: {broken}")
                    rungs = levers.without_lever(rungs, rung, self.plan, machine, self._in.base)
                elif rung != planned and self._journal.records[rung.config_id].status == "not_run":
                    self._journal.configuration(rung, "not_run", None)
        finally:
            gate.close()
        self._rungs = rungs
        return rungs

    # -- the end --------------------------------------------------------------------------------------------------

    def _finish(self, interrupted: bool) -> Summary:
        folder = read_run(self.folder)
        summary = build_summary(
            folder,
            self.plan,
            {case.name: case.concurrency for case in self._in.cases},
            {
                "schedule": self._measuring.schedule_name,
                "runs": self.plan.runs,
                "min_runs": self.plan.min_runs,
                "seconds_per_case": self.plan.seconds_per_case,
                "warmups": self.plan.warmups,
                "seed": self.plan.seed,
                "workloads": {case.name: case.fingerprint for case in self._in.cases},
                "interrupted": interrupted,
            },
            tuple(dict.fromkeys(self._journal.warnings)),
        )
        self._writer.summary(summary)
        self._publish(self.folder)
        return summary

    def _start(self, name: str) -> WorkerProcess:
        return WorkerProcess(name, self.folder / LOG)
