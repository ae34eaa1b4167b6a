"""The quality gate, before anything is timed: a configuration that gives wrong output is never given a speed.

Lossless levers: in float32, the same greedy tokens as the engine with its levers off, on prompts that share a prefix, with
fewer rows than prompts and a small token budget, so that joining, chunking and sharing really happen. Lossy levers: the
configuration as it will be timed, against the unquantised engine. The engine itself: float32 logits against transformers.
What several configurations have in common is computed once.

On a GPU the kernels compute in 16 bits and round by batch size, so lossless levers are run as they will be timed and every token must
be the choice of the float32 reference (torch operators, same prompts), up to a near-tie; the worst one is reported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inferoptim.bench.levers import BY_NAME, Configuration
from inferoptim.bench.plan import BenchPlan
from inferoptim.bench.process import WorkerProcess
from inferoptim.bench.quality import (
    Comparison,
    choices_record,
    distribution_record,
    first_difference,
    identity_record,
    logits_record,
)
from inferoptim.config import SamplingParams
from inferoptim.errors import EngineDeadError, InferOptimError
from inferoptim.records.schema import QualityRecord
from inferoptim.targets.base import TargetRequest

CHUNK_TOKENS = 64  # token budget of the identity check: its prompts must really be cut
WARM_PASSES = 2  # with prefix caching: the second pass meets a warm cache
_UNQUANTISED = {"quantization": "none", "kv_quantization": "none"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate found of one configuration: its records, or why it could not be checked."""

    records: tuple[QualityRecord, ...] = ()
    died: str | None = None  # the worker died under it
    warning: str | None = None  # it could not be checked; not a failure of the configuration


@dataclass
class Gate:
    """Checks configurations one after another, in a process of its own.

    Args:
        plan: thresholds and amounts.
        off: settings of the engine with its levers off.
        transformers: settings of the baseline, or None where it is not installed.
        texts: scored texts by language.
        context: longest sequence of the model, tokens.
        start: makes a fresh worker process.
        scratch: folder for reference logits; a temporary folder inside it is removed at the end.
    """

    plan: BenchPlan
    off: Mapping[str, Any]
    transformers: Mapping[str, Any] | None
    texts: Mapping[str, Sequence[tuple[int, ...]]]
    context: int
    start: Callable[[], WorkerProcess]
    scratch: Path
    on_check: Callable[[str], None] = lambda _what: None
    _worker: WorkerProcess | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = None
    _identity_reference: list[tuple[int, ...]] | None = None
    _identity: dict[tuple[str, ...], tuple[str, QualityRecord]] = field(default_factory=dict)
    _numerics: dict[tuple[str, ...], tuple[str, dict[str, list[Comparison]]]] = field(default_factory=dict)
    _reference_written: bool = False

    def check(self, config: Configuration) -> Verdict:
        """Judge one configuration of the engine; the worker is replaced when it dies."""
        records: list[QualityRecord] = []
        try:
            if not config.levers and self.transformers is not None:
                records.append(self._logits(config))
            if any(BY_NAME[name].lossless for name in config.levers):
                records.append(self._token_identity(config))
            if config.lossy_levers:
                records.append(self._distribution(config))
        except EngineDeadError as error:
            self._drop_worker()
            return Verdict(tuple(records), died=f"in the quality gate: {error}")
        except InferOptimError as error:
            return Verdict(tuple(records), warning=f"quality of {config.label} not checked: {error}")
        return Verdict(tuple(records))

    def close(self) -> None:
        """End the worker and remove the reference."""
        self._drop_worker()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    # -- the three checks -----------------------------------------------------------------------------------------

    def _logits(self, config: Configuration) -> QualityRecord:
        texts = [found[0] for found in self.texts.values()]
        folder = self._subfolder("transformers")
        self.on_check("transformers, float32 logits")
        self._load("transformers", {**(self.transformers or {}), "dtype": "float32"})
        self._call("write_logits", texts, folder)
        self.on_check("engine, float32 logits")
        self._load("engine", self._reference() if self._on_gpu else self._float32(config.settings, ()))
        gaps = self._call("largest_logit_error", texts, folder)
        errors: list[float] = []
        if self._on_gpu:
            self.on_check("engine, logits of the GPU's kernels")
            self._load("engine", self._scoring(config.settings))
            errors = self._call("relative_logit_errors", texts, folder)
        return logits_record(config.config_id, gaps, self.plan.quality, errors)

    def _token_identity(self, config: Configuration) -> QualityRecord:
        key = tuple(name for name in config.levers if BY_NAME[name].lossless)
        if key in self._identity:
            first, record = self._identity[key]
            return record.model_copy(
                update={"config_id": config.config_id, "detail": _with_note(record.detail, f"as {first}")}
            )
        if self._on_gpu:
            record = self._near_identity(config, key)
            self._identity[key] = (config.config_id, record)
            return record
        if self._identity_reference is None:
            self.on_check("engine with its levers off, reference answers")
            self._load("engine", self._float32(self.off, ()))
            self._identity_reference = self._greedy(1)
        self.on_check(f"{config.label}, same tokens")
        self._load("engine", self._float32(config.settings, key))
        passes = WARM_PASSES if "prefix_caching" in key else 1
        found = self._greedy(passes)
        prompts, reference = self._prompts() * passes, self._identity_reference * passes
        gaps = {}
        for i, (a, b) in enumerate(zip(reference, found, strict=True)):
            if a != b:
                known = (*prompts[i].prompt_token_ids, *a[: first_difference(a, b)])
                gaps[i] = self._call("top_gap", known)
        record = identity_record(config.config_id, reference, found, gaps)
        self._identity[key] = (config.config_id, record)
        return record

    def _near_identity(self, config: Configuration, key: tuple[str, ...]) -> QualityRecord:
        """Answers of the configuration in its own type, each token judged by the float32 reference."""
        self.on_check(f"{config.label}, greedy tokens")
        self._load("engine", self._lossless(config.settings, key))
        passes = WARM_PASSES if "prefix_caching" in key else 1
        found = self._greedy(passes)
        self.on_check(f"{config.label}, judged in float32")
        self._load("engine", self._reference())
        prompts = [r.prompt_token_ids for r in self._prompts()] * passes
        return choices_record(config.config_id, self._call("judge", prompts, found))

    def _distribution(self, config: Configuration) -> QualityRecord:
        settings = config.settings
        key = tuple(
            str(settings.get(n))
            for n in (
                "quantization",
                "kv_quantization",
                "compiled_step",
                "kernels",
                "dtype",
                "tensor_parallel",
            )
        )
        note = ""
        if key in self._numerics:
            first, compared = self._numerics[key]
            note = f"same arithmetic as {first}, scored there"
        else:
            texts = [text for found in self.texts.values() for text in found]
            folder = self._subfolder("unquantised")
            if not self._reference_written:
                self.on_check("unquantised engine, reference distribution")
                self._load("engine", self._scoring(self.off))
                self._call("write_logits", texts, folder)
                self._reference_written = True
            self.on_check(f"{config.label}, distribution")
            self._load("engine", self._scoring(settings))
            flat: list[Comparison] = self._call("compare_logits", texts, folder)
            compared, at = {}, 0
            for language, found in self.texts.items():
                compared[language] = flat[at : at + len(found)]
                at += len(found)
            self._numerics[key] = (config.config_id, compared)
        return distribution_record(config.config_id, compared, self.plan.quality, note)

    # -- settings -------------------------------------------------------------------------------------------------

    @property
    def _on_gpu(self) -> bool:
        return bool(self.off.get("device") == "cuda")

    def _reference(self) -> dict[str, Any]:
        """The engine on torch's operators in float32, its levers off."""
        return {**self._float32(self.off, ()), "kernels": "torch"}

    def _float32(self, settings: Mapping[str, Any], levers: tuple[str, ...]) -> dict[str, Any]:
        """The configuration's lossless part in float32; see `_lossless`."""
        return {**self._lossless(settings, levers), "dtype": "float32"}

    def _lossless(self, settings: Mapping[str, Any], levers: tuple[str, ...]) -> dict[str, Any]:
        """The configuration without its quantisation, on memory and a token budget that make its levers work."""
        longest = max(len(r.prompt_token_ids) + r.sampling.max_tokens for r in self._prompts())
        fields = {
            **settings,
            **_UNQUANTISED,
            "max_model_len": max(longest, self._text_tokens()),
            "kv_budget_bytes": None,
            "max_num_seqs": self._rows(),
        }
        if "chunked_prefill" in levers:
            fields["max_num_batched_tokens"] = CHUNK_TOKENS
        return fields

    def _scoring(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **settings,
            "max_model_len": self._text_tokens(),
            "kv_budget_bytes": None,
            "max_num_seqs": 1,
        }

    def _rows(self) -> int:
        return max(1, self.plan.quality.identity_prompts - 1)

    def _text_tokens(self) -> int:
        return max(len(text) for found in self.texts.values() for text in found)

    def _prompts(self) -> list[TargetRequest]:
        """Beginnings of the scored texts behind one shared prefix, of different lengths."""
        quality = self.plan.quality
        pool = [text for pair in zip(*self.texts.values(), strict=True) for text in pair]
        new = min(quality.identity_tokens, self.context // 4)
        sampling = SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True)
        shared = pool[-1][: min(48, self.context // 4)]
        room = self.context - len(shared) - new
        out = []
        for number in range(quality.identity_prompts):
            own = pool[number % len(pool)][:room]
            ids = (*shared, *own[: max(8, len(own) * (number % 4 + 1) // 4)])
            out.append(TargetRequest(f"q{number}", "", ids, sampling))
        return out

    def _greedy(self, passes: int) -> list[tuple[int, ...]]:
        answers: list[tuple[int, ...]] = self._call("greedy", self._prompts(), self._rows(), passes)
        return answers

    # -- the worker -----------------------------------------------------------------------------------------------

    def _load(self, target: str, settings: Mapping[str, Any]) -> None:
        self._call("load", target, dict(settings))

    def _call(self, method: str, *args: Any) -> Any:
        if self._worker is None:
            self._worker = self.start()
        return self._worker.call(method, *args, timeout_s=self.plan.deadline_s)

    def _drop_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _subfolder(self, name: str) -> str:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(dir=self.scratch, prefix=".reference-")
        path = Path(self._folder.name) / name
        path.mkdir(exist_ok=True)
        return str(path)


def _with_note(detail: str, note: str) -> str:
    return f"{detail}; {note}" if detail else note
