"""What a user may set: engine levers and sampling. Frozen, validated at the border, stored with every run.

Nothing here imports torch. A field that nothing reads does not exist; an unknown field is refused.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from inferoptim.errors import ConfigError, RequestError
from inferoptim.units import GIB

Quantization = Literal["none", "int8", "int8-weight-only", "int4", "fp8"]
KVQuantization = Literal["none", "int8", "fp8"]
Model = TypeVar("Model", bound=BaseModel)
Speculative = Literal["none", "prompt-lookup", "draft"]


class KernelSettings(BaseModel):
    """How kernels cut their work. What is best depends on the machine: `inferoptim build --tune-budget` searches it.

    The defaults are the best of docs/performance.md's machines. On a CPU none changes a result; on a GPU sums are rounded in
    another order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_rows: int = Field(
        48,
        ge=1,
        le=4096,
        description="CPU: tokens of a step for each thread from which on threads share out the tokens (prompts), not the weights.",
    )
    prompt_block: int = Field(
        64,
        ge=8,
        le=1024,
        multiple_of=8,
        description="CPU: tokens of a prompt that go through a layer together.",
    )
    product_tasks: int = Field(
        2, ge=1, le=64, description="CPU: pieces that a product of few tokens is cut into for each thread."
    )
    kv_split_programs: int = Field(
        264,
        ge=1,
        le=8192,
        description="GPU: programs that decode attention is cut into, over sequences, KV heads and parts of each context.",
    )
    few_rows: int | None = Field(
        None,
        ge=0,
        le=32,
        description="GPU: most sequences of a decode step whose products go through this project's own kernels, not cuBLAS "
        "(compute capability 9.0 or later); default: 32, with fp8 weights 16.",
    )
    cuda_attention_rows: int = Field(
        64,
        ge=0,
        le=4096,
        description="GPU: most sequences of a decode step whose 16-bit cache is read by the kernel in CUDA C++, not Triton's.",
    )
    prompt_kernel_rows: int = Field(
        1024,
        ge=1,
        description="GPU: tokens of a step from which on gate, up and SwiGLU are one kernel, not cuBLAS and another "
        "(compute capability 9.0, 16-bit weights).",
    )


class EngineConfig(KernelSettings):
    """One engine configuration: where it runs, its memory, and every lever on or off.

    The defaults are the levers' *on* state that is lossless and safe everywhere; `levers_off` is the first rung.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("smollm2-135m", description="Model name, Hub id, local folder or .gguf file.")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Type of weights, activations and KV-cache; auto = the checkpoint's, where the device has it.",
    )
    num_threads: int | None = Field(
        None, ge=1, description="CPU threads; default: the cores this process may use."
    )
    kernels: Literal["auto", "native", "torch"] = Field(
        "auto",
        description="torch = stock operators; on a CPU, native = compiled C++ (refused when it cannot be built); "
        "on a GPU, auto = Triton kernels.",
    )
    seed: int = Field(0, description="Seed of requests that state none.")

    max_model_len: int | None = Field(
        None, ge=1, description="Longest prompt + output, tokens; default: the model's."
    )
    max_num_seqs: int = Field(32, ge=1, description="Most sequences in one step.")
    max_num_batched_tokens: int = Field(
        2048, ge=1, description="Most tokens computed in one step (the token budget)."
    )
    kv_budget_bytes: int | None = Field(
        None,
        ge=1,
        description="Memory for the KV-cache, the same for paged and contiguous; default: 1 GiB on a CPU, on a GPU what "
        "gpu_memory_utilization leaves. Never more than max_num_seqs sequences of max_model_len could use.",
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of a GPU's memory that may be in use once the engine is loaded."
    )
    block_size: int = Field(16, ge=1, le=256, description="Tokens in one KV block.")

    quantization: Quantization = Field(
        "none",
        description="int8 = weights and activations; int4 (CPU) = 4-bit groups with int8 activations: the blocks of a GGUF file or of "
        "a 4-bit checkpoint as they are, other weights rounded at load; fp8 (GPU) = weights and activations.",
    )
    kv_quantization: KVQuantization = "none"
    compiled_step: bool = Field(True, description="CUDA graphs on a GPU; the fused native step on a CPU.")
    in_flight_batching: bool = True
    paged_kv: bool = True
    prefix_caching: bool = True
    chunked_prefill: bool = True
    speculative: Speculative = "none"
    num_speculative_tokens: int = Field(5, ge=1, le=32)
    draft_model: str | None = Field(
        None,
        description="With speculative=draft: a model of the same vocabulary, or 'self:N' = the target's first N layers, int8.",
    )
    tensor_parallel: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _no_contradiction(self) -> EngineConfig:
        if self.prefix_caching and not self.paged_kv:
            raise ValueError("prefix_caching needs paged_kv: shared prefixes are shared blocks")
        if self.chunked_prefill and not self.in_flight_batching:
            raise ValueError(
                "chunked_prefill needs in_flight_batching: chunks ride along with running decodes"
            )
        if self.speculative == "draft" and not self.draft_model:
            raise ValueError("speculative=draft needs draft_model (a model name, or self:N)")
        if self.speculative != "draft" and self.draft_model:
            raise ValueError("draft_model is set but speculative is not 'draft'")
        if self.device == "cpu" and "fp8" in (self.quantization, self.kv_quantization):
            raise ValueError("fp8 needs an NVIDIA GPU (SM 8.9 or later); on a CPU use int8")
        if self.tensor_parallel > 1:
            raise ValueError(
                "tensor_parallel: this engine runs a model on one device; for several GPUs serve the same folder with vLLM or TensorRT-LLM"
            )
        if self.device == "cuda" and self.quantization == "int4":
            raise ValueError("quantization=int4 has CPU kernels only; on a GPU use int8 or fp8")
        if self.device == "cuda" and self.kernels == "native":
            raise ValueError("kernels=native are CPU kernels; leave kernels=auto on a GPU")
        return self

    @classmethod
    def create(cls, **fields: Any) -> EngineConfig:
        """Build from plain values; a `ConfigError` with one line per wrong field instead of pydantic's report."""
        return create_validated(cls, fields)

    @classmethod
    def levers_off(cls, **fields: Any) -> EngineConfig:
        """The first rung above transformers: our engine, every lever off."""
        off: dict[str, Any] = {
            "quantization": "none",
            "kv_quantization": "none",
            "compiled_step": False,
            "in_flight_batching": False,
            "paged_kv": False,
            "prefix_caching": False,
            "chunked_prefill": False,
            "speculative": "none",
        }
        return cls.create(**{**off, **fields})


DEFAULT_KV_BUDGET_BYTES = 1 * GIB
MAX_DEVICE_RULES = 48  # biased or barred tokens that a GPU's sampling kernel takes for one request


class SamplingParams(BaseModel):
    """How one request's tokens are chosen and when it stops. temperature=0 is greedy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int = Field(16, ge=1)
    min_tokens: int = Field(
        0, ge=0, description="No stop (end-of-sequence, stop id or string) before this many."
    )
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_k: int = Field(0, ge=0, description="0 = all.")
    top_p: float = Field(1.0, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    logit_bias: dict[int, float] = Field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = Field(
        None, ge=0, le=50, description="Also return the log-probabilities of the N likeliest tokens."
    )
    prompt_logprobs: int | None = Field(None, ge=0, le=50)
    include_stop_str_in_output: bool = False
    grammar: str | None = Field(None, description="llguidance grammar that the output follows to its end.")

    @model_validator(mode="after")
    def _finite(self) -> SamplingParams:
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
        ):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number")
        if any(not math.isfinite(b) for b in self.logit_bias.values()):
            raise ValueError("logit_bias values must be finite numbers")
        if any(s == "" for s in self.stop):
            raise ValueError("an empty stop string would stop everything")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens})")
        if self.grammar is not None and (self.ignore_eos or self.min_tokens):
            raise ValueError("grammar: a grammar says where the output ends; drop ignore_eos and min_tokens")
        return self

    @classmethod
    def create(cls, **fields: Any) -> SamplingParams:
        """Build from plain values; a `RequestError` in one line instead of pydantic's report."""
        try:
            return create_validated(cls, fields)
        except ConfigError as error:
            raise RequestError(str(error)) from error

    @property
    def greedy(self) -> bool:
        """True when the likeliest token is taken, whatever the seed."""
        return self.temperature == 0

    @property
    def penalises(self) -> bool:
        """True when the choice depends on which tokens came before."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    @property
    def plain(self) -> bool:
        """True when the choice is the argmax of the raw logits and nothing else is asked of them."""
        return (
            self.greedy
            and self.logprobs is None
            and self.prompt_logprobs is None
            and not self.min_tokens
            and not self.logit_bias
            and not self.penalises
            and self.grammar is None
        )

    @property
    def on_device(self) -> bool:
        """True when a GPU can choose token after token by itself: the host is asked for nothing in between."""
        rules = len(self.logit_bias) + (len(self.stop_token_ids) if self.min_tokens else 0)
        return (
            self.logprobs is None
            and self.prompt_logprobs is None
            and self.grammar is None
            and rules <= MAX_DEVICE_RULES
        )


def create_validated(model: type[Model], fields: dict[str, Any], where: str = "") -> Model:
    """Validate `fields` into `model`.

    Raises:
        ConfigError: one line naming each wrong field, `where` first (a file and line, if known).
    """
    try:
        return model(**fields)
    except ValidationError as error:
        parts = [f"{'.'.join(map(str, loc))}: {text}" if loc else text for loc, text in problems(error)]
        raise ConfigError((f"{where}: " if where else "") + "; ".join(parts)) from error


def problems(error: ValidationError) -> list[tuple[tuple[str | int, ...], str]]:
    """Where (names of the fields, from the outside in) and what, of each thing that is wrong, in words for a person."""
    found = error.errors()
    # a tuple whose member is wrong counts as too short as well: what is said of the member is enough
    around = {problem["loc"][:n] for problem in found for n in range(len(problem["loc"]))}
    return [
        (
            p["loc"],
            "no such field" if p["type"] == "extra_forbidden" else p["msg"].removeprefix("Value error, "),
        )
        for p in found
        if not p["loc"] or p["loc"] not in around
    ]
