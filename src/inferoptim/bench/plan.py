"""What a bench will do: a validated, fully resolved plan. From flags or YAML; stored with the run."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from inferoptim.bench.yaml_lines import line_of, load_yaml
from inferoptim.config import problems
from inferoptim.errors import ConfigError

Design = Literal["ladder", "one-at-a-time", "leave-one-out", "full"]
TargetName = Literal["transformers", "engine", "vllm", "trtllm"]

WORKLOADS = ("guide", "chat", "chat-short", "summarise", "prompts", "replay")
FROM_FILE = ("prompts", "replay")
_SYNTHETIC = re.compile(r"synthetic:(\d+)/(\d+)")
RESERVED_ENGINE_FIELDS = frozenset(
    {"model", "device", "max_model_len", "kv_budget_bytes", "num_threads", "max_num_seqs"}
)


class PlanPart(BaseModel):
    """Frozen; unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WorkloadPlan(PlanPart):
    """One traffic, at one or several levels of concurrency."""

    name: str = Field(
        "guide",
        description="guide | chat | chat-short | summarise | synthetic:IN/OUT | prompts or replay (with `file`).",
    )
    file: str | None = Field(
        None,
        description="prompts: .txt (one a line) or .jsonl. replay: a workload file, or a ready workload's name.",
    )
    concurrency: tuple[int, ...] = Field((1, 32), min_length=1, description="Requests in flight at any time.")
    requests_per_slot: int | None = Field(
        None,
        ge=1,
        description="Requests of a run = concurrency × this. Default: 1; chat 3, so that slots are refilled; all of a file.",
    )
    prompt_tokens: int | None = Field(None, ge=8, description="guide: prompt length aimed at (default 100).")
    output_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens produced per request. Default: 200 guide, drawn 16…256 chat and 3…48 chat-short, 128 the others.",
    )

    @model_validator(mode="after")
    def _known(self) -> WorkloadPlan:
        synthetic = _SYNTHETIC.fullmatch(self.name)
        if self.name not in WORKLOADS and not synthetic:
            raise ValueError(
                f"unknown workload {self.name!r}: use {', '.join(WORKLOADS)} or synthetic:IN/OUT"
            )
        if synthetic and (int(synthetic[1]) < 1 or int(synthetic[2]) < 1):
            raise ValueError(f"{self.name}: both lengths must be at least 1")
        if (self.name in FROM_FILE) != (self.file is not None):
            raise ValueError("workloads 'prompts' and 'replay' go together with `file`")
        if synthetic and (self.prompt_tokens or self.output_tokens):
            raise ValueError("synthetic:IN/OUT already states its lengths")
        if self.name == "replay" and self.output_tokens:
            raise ValueError("a workload file states its own lengths: output_tokens does not apply")
        if self.prompt_tokens is not None and self.name != "guide":
            raise ValueError("prompt_tokens applies to the guide workload alone")
        if any(c < 1 for c in self.concurrency) or len(set(self.concurrency)) != len(self.concurrency):
            raise ValueError("concurrency levels must be distinct and at least 1")
        return self

    @property
    def synthetic_lengths(self) -> tuple[int, int] | None:
        """(prompt, output) tokens of synthetic:IN/OUT, else None."""
        match = _SYNTHETIC.fullmatch(self.name)
        return (int(match[1]), int(match[2])) if match else None


class QualityPlan(PlanPart):
    """The gate. A configuration that fails it has no speed, no index and no price."""

    enabled: bool = True
    max_perplexity_increase: float = Field(0.02, ge=0, description="Perplexity may rise by this share.")
    max_kl_nats: float = Field(
        0.03, gt=0, description="Mean KL divergence from the unquantised engine, per token."
    )
    min_top1_agreement: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of positions with the same likeliest token. Default: reported, not judged (docs/bench.md says why).",
    )
    max_abs_logit_error: float = Field(
        1e-3, gt=0, description="fp32 engine against fp32 transformers, largest logit gap."
    )
    tokens_per_language: int = Field(
        768, ge=128, description="Tokens of shipped text scored in each language."
    )
    chunk_tokens: int = Field(128, ge=32, description="Length of one scored text; intervals resample these.")
    identity_prompts: int = Field(4, ge=1, le=32)
    identity_tokens: int = Field(
        48, ge=1, description="Greedy tokens that a lossless lever must reproduce, in fp32."
    )

    @model_validator(mode="after")
    def _enough(self) -> QualityPlan:
        if self.tokens_per_language < 2 * self.chunk_tokens:
            raise ValueError("tokens_per_language must hold at least two chunks: one text gives no interval")
        return self


class EndpointPlan(PlanPart):
    """A server that stands beside the other configurations: vLLM, TensorRT-LLM, ours, any OpenAI endpoint."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    url: str = Field(description="Address of the server, with or without /v1. It must serve /v1/completions.")
    model: str | None = Field(None, description="Default: the only one served.")
    api_key_env: str | None = Field(None, description="Name of the environment variable that holds the key.")


class BenchPlan(PlanPart):
    """Everything that decides what is measured; two runs of equal plans on one machine are comparable."""

    name: str = Field("bench", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    model: str = "smollm2-135m"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: int | None = Field(
        None, ge=1, description="CPU threads of every target; default: the cores usable."
    )
    design: Design = "ladder"
    targets: tuple[TargetName, ...] = Field(("transformers", "engine"), min_length=1)
    levers: tuple[str, ...] | None = Field(
        None, description="Levers to study; default: all that this machine has."
    )
    lever_settings: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Other 'on' settings, e.g. {speculative: {speculative: draft, draft_model: 'self:6'}}.",
    )
    engine: dict[str, Any] = Field(
        default_factory=dict, description="EngineConfig fields of every engine rung."
    )
    transformers: dict[str, Any] = Field(
        default_factory=dict, description="Options of the baseline: dtype, static_cache."
    )
    vllm: dict[str, Any] = Field(
        default_factory=dict, description="Options of the target vllm: quantization, kv_quantization, args, …"
    )
    trtllm: dict[str, Any] = Field(default_factory=dict, description="Options of the target trtllm.")
    endpoints: tuple[EndpointPlan, ...] = Field(
        (), description="Servers to measure beside them on the same requests. Their output is not checked."
    )
    sequential_max_requests: int | None = Field(
        None, ge=1, description="Skip the one-request-at-a-time baseline on runs of more requests than this."
    )
    workloads: tuple[WorkloadPlan, ...] = Field((WorkloadPlan.model_construct(),), min_length=1)
    max_model_len: int | None = Field(
        None, ge=1, description="Default: the longest request of the workloads."
    )
    kv_budget_bytes: int | None = Field(
        None,
        ge=1,
        description="KV memory of every engine rung. Default: what contiguous slots of max_model_len need.",
    )
    kv_budget_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Or that default times this: below 1 memory is short, as it is in service, and paging, sharing and KV-cache "
        "formats show what they are worth. One full-length sequence at least.",
    )

    runs: int = Field(50, ge=1, description="Measured runs of each configuration and workload.")
    min_runs: int = Field(2, ge=1, description="Never fewer, whatever seconds_per_case says.")
    seconds_per_case: float | None = Field(
        None,
        gt=0,
        description="Stop repeating a configuration on a workload once its runs took this long together.",
    )
    warmups: int = Field(5, ge=0)
    warmup_output_tokens: int | None = Field(
        None, ge=1, description="On a CPU: shorten warm-ups to this many tokens a request."
    )
    budget_s: float | None = Field(
        None, gt=0, description="Start no measured run past this many seconds (after min_runs)."
    )
    until_separated: bool = Field(
        False, description="Go on past `runs` until neighbours on the ladder can be ranked."
    )
    max_runs: int = Field(200, ge=1, description="Where until_separated gives up.")
    deadline_s: float = Field(
        900, gt=0, description="A load or run that takes longer is a hang: configuration failed."
    )
    telemetry_interval_s: float = Field(0.2, ge=0.01)
    seed: int = 0

    quality: QualityPlan = QualityPlan.model_construct()
    price_per_hour: float | None = Field(
        None, gt=0, description="What one hour of this machine costs; none → cost not stated."
    )
    currency: str = Field("EUR", pattern=r"^[A-Z]{3}$")
    price_source: str = ""

    @field_validator("targets", "levers")
    @classmethod
    def _distinct(cls, values: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if values is not None and len(set(values)) != len(values):
            raise ValueError("an entry is given twice")
        return values

    @model_validator(mode="after")
    def _no_contradiction(self) -> BenchPlan:
        reserved = RESERVED_ENGINE_FIELDS & set(self.engine)
        if reserved:
            raise ValueError(f"engine.{min(reserved)} is set by the plan itself: use the plan's own field")
        if self.kv_budget_bytes is not None and self.kv_budget_share != 1:
            raise ValueError("kv_budget_bytes and kv_budget_share both state the KV memory: give one")
        if self.min_runs > self.runs:
            raise ValueError(f"min_runs ({self.min_runs}) is above runs ({self.runs})")
        if self.until_separated and self.max_runs < self.runs:
            raise ValueError(f"max_runs ({self.max_runs}) is below runs ({self.runs})")
        if len({e.name for e in self.endpoints}) != len(self.endpoints):
            raise ValueError("two endpoints have the same name")
        names = [f"{w.file or w.name}@{c}" for w in self.workloads for c in w.concurrency]
        if len(set(names)) != len(names):
            raise ValueError("two workloads have the same name and concurrency")
        if "engine" not in self.targets and self.design != "ladder":
            raise ValueError(f"design={self.design} studies the engine's levers: add 'engine' to targets")
        for name, options in (("vllm", self.vllm), ("trtllm", self.trtllm)):
            if options and name not in self.targets:
                raise ValueError(f"{name}: options of a target that is not measured; add {name!r} to targets")
            given = RESERVED_ENGINE_FIELDS & set(options)
            if given:
                raise ValueError(f"{name}.{min(given)} is set by the plan itself: use the plan's own field")
        if self.price_source and self.price_per_hour is None:
            raise ValueError("price_source without price_per_hour")
        return self

    @property
    def fingerprint(self) -> str:
        """Identity of the plan, for --resume: everything but the price, which changes no measurement."""
        stable = self.model_dump(mode="json", exclude={"price_per_hour", "currency", "price_source", "name"})
        return hashlib.sha256(repr(sorted(stable.items())).encode()).hexdigest()[:16]


QUICK: dict[str, Any] = {
    "name": "quick",
    "runs": 8,
    "min_runs": 2,
    "seconds_per_case": 40.0,
    "budget_s": 265.0,
    "warmups": 1,
    "warmup_output_tokens": 4,
    "sequential_max_requests": 1,
    "workloads": [
        {"name": "guide", "concurrency": [1], "prompt_tokens": 64, "output_tokens": 40},
        {"name": "chat-short", "concurrency": [32]},
    ],
    "kv_budget_share": 0.25,
    "quality": {"tokens_per_language": 384, "identity_prompts": 3, "identity_tokens": 24},
}
"""What --quick sets; any flag or plan field given wins.

One request at a time on shorter prompts (64 tokens, not 100) and answers (40, not 200); 32 at once as a service meets them: mixed
lengths, a shared system prompt, and KV memory for 8 of them at full length. Every configuration gets its two runs of each
case; more follow, in rounds, until 265 s after the start.
"""


def make_plan(
    fields: dict[str, Any], where: str = "", lines: dict[tuple[str | int, ...], int] | None = None
) -> BenchPlan:
    """Validate.

    Raises:
        ConfigError: one line naming each wrong field (and its line in the file, if it comes from one).
    """
    try:
        return BenchPlan.model_validate(fields)
    except ValidationError as error:
        parts = []
        for location, text in problems(error):
            field = ".".join(map(str, location))
            line = line_of(location, lines) if lines else None
            parts.append((f"line {line}: " if line else "") + (f"{field}: {text}" if field else text))
        raise ConfigError((f"{where}: " if where else "") + "; ".join(parts)) from error


def load_plan(path: Path, overrides: dict[str, Any] | None = None, *, quick: bool = False) -> BenchPlan:
    """Read a YAML plan; `overrides` (from flags) win over the file, the file over --quick.

    Raises:
        ConfigError: unreadable or invalid; the line and the field are named.
    """
    values, lines = load_yaml(path)
    if "workloads" in values and isinstance(values["workloads"], list):
        values["workloads"] = [_relative_file(w, path.parent) for w in values["workloads"]]
    return make_plan({**(QUICK if quick else {}), **values, **(overrides or {})}, str(path), lines)


def _relative_file(workload: Any, folder: Path) -> Any:
    """A file named in a plan is looked up beside the plan."""
    if isinstance(workload, dict) and isinstance(workload.get("file"), str):
        if workload.get("name") == "replay" and not (folder / workload["file"]).exists():
            return workload  # a ready workload's name
        return {**workload, "file": str((folder / workload["file"]).resolve())}
    return workload
