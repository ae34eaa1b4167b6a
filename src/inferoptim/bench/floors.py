"""Physical floors: the least time in which this machine could have done a case's work, from bytes and FLOPs.

Bytes are those of the configuration's own formats; rates are the ceilings measured on this machine. A floor is a lower bound for
one token a sequence and step; verified proposals share a pass over the weights, so a speculative configuration's floor
counts the passes that it really made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inferoptim.records.schema import Ceilings, ConfigurationRecord

FP8_GEMM = "fp8"


@dataclass(frozen=True, slots=True)
class Shape:
    """What the floors need of a model, from the fields that the environment record keeps."""

    body: float  # weights of the linear layers
    head: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Shape | None:
        """None where the shape was not recorded."""
        try:
            h, i, layers = fields["hidden_size"], fields["intermediate_size"], fields["num_layers"]
            heads, kv_heads, dim = fields["num_heads"], fields["num_kv_heads"], fields["head_dim"]
            body = layers * (h * dim * (heads + 2 * kv_heads) + heads * dim * h + 3 * h * i)
            return cls(body, fields["vocab_size"] * h, layers, heads, kv_heads, dim)
        except (KeyError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class Work:
    """One request of a case."""

    prompt_tokens: int  # computed, cached ones left out
    context_tokens: int  # whole prompt
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Floor:
    """What a run needs at least."""

    seconds: float | None  # None where a ceiling was not measured
    read_bytes: float
    flops: float
    mbu_per_s: float | None  # share of the bandwidth that the bytes would take in one second
    mfu_per_s: float | None


def element_bytes(dtype: str) -> float:
    """Bytes of one number of a type by its torch name, or of a quantised format (int4: with a 16-bit scale for 32)."""
    known = {"float32": 4.0, "int8": 1.0, "int8-weight-only": 1.0, "int4": 4.5 / 8, "fp8": 1.0}
    return known.get(dtype, 2.0)


def formats(config: ConfigurationRecord) -> tuple[str, str, str]:
    """(weights, KV-cache, arithmetic) of a configuration, by its settings as loaded."""
    dtype = str(config.settings.get("dtype", "bfloat16"))
    weights = str(config.settings.get("quantization", "none"))
    kv = str(config.settings.get("kv_quantization", "none"))
    arithmetic = (
        dtype if weights in ("none", "int8-weight-only") else "int8" if weights == "int4" else weights
    )
    return (dtype if weights == "none" else weights, dtype if kv == "none" else kv, arithmetic)


def decode_step_s(
    shape: Shape, config: ConfigurationRecord, ceilings: Ceilings, batch: int, context: float
) -> float | None:
    """Floor of one decode step of `batch` sequences that each hold `context` tokens, seconds."""
    _, kv, arithmetic = formats(config)
    weight_bytes = _weight_bytes(shape, config)
    read = ceilings.read_ceiling(weight_bytes)
    rate = _gemm_rate(ceilings, arithmetic)
    if read is None or rate is None:
        return None
    bytes_read = weight_bytes + batch * context * _kv_bytes(shape, kv)
    flops = batch * _token_flops(shape, context, head=True)
    return max(bytes_read / read, flops / rate)


def case_floor(
    shape: Shape,
    config: ConfigurationRecord,
    ceilings: Ceilings,
    work: Sequence[Work],
    concurrency: int,
    passes_per_token: float = 1.0,
) -> Floor:
    """Floor of a whole run.

    Prefill: each prompt token's arithmetic once, the weights at least once. Decode: no fewer passes over the weights than the
    answers take when `concurrency` of them run at a time and every step is full.

    Args:
        passes_per_token: verification passes over output tokens, below 1 where proposals were accepted.
    """
    _, kv, arithmetic = formats(config)
    weight_bytes = _weight_bytes(shape, config)
    tokens = sum(w.output_tokens for w in work)
    # the first token of each answer comes from prefill's own pass
    decoded = sum(max(w.output_tokens - 1, 0) for w in work) * passes_per_token
    longest = max((w.output_tokens - 1 for w in work), default=0) * passes_per_token
    steps = max(decoded / concurrency, longest)
    kv_bytes = _kv_bytes(shape, kv)
    kv_read = (
        sum(
            max(w.output_tokens - 1, 0) * passes_per_token * (w.context_tokens + w.output_tokens / 2)
            for w in work
        )
        * kv_bytes
    )
    prefill_flops = sum(
        w.prompt_tokens * _token_flops(shape, w.context_tokens / 2, head=False) + 2 * shape.head for w in work
    )
    decode_flops = sum(
        max(w.output_tokens - 1, 0) * _token_flops(shape, w.context_tokens + w.output_tokens / 2, head=True)
        for w in work
    )
    read_bytes = weight_bytes * (1 + steps) + kv_read
    flops = prefill_flops + decode_flops
    read, rate = ceilings.read_ceiling(weight_bytes), _gemm_rate(ceilings, arithmetic)
    seconds = None
    if read is not None and rate is not None and tokens:
        prefill = max(weight_bytes / read, prefill_flops / rate)
        decode = max((weight_bytes * steps + kv_read) / read, decode_flops / rate)
        seconds = prefill + decode
    return Floor(
        seconds,
        read_bytes,
        flops,
        None if read is None else read_bytes / read,
        None if rate is None else flops / rate,
    )


def _weight_bytes(shape: Shape, config: ConfigurationRecord) -> float:
    """Of the products; the output head of fp8 keeps the model's type (see `models.load`)."""
    weight, _, _ = formats(config)
    head = str(config.settings.get("dtype", "bfloat16")) if weight == "fp8" else weight
    return shape.body * element_bytes(weight) + shape.head * element_bytes(head)


def _gemm_rate(ceilings: Ceilings, arithmetic: str) -> float | None:
    """Measured rate for a type; float16 runs on the units that were measured with bfloat16.

    Quantised products end in the same units or faster ones: where the quantised rate was measured below bfloat16's,
    the larger of the two is the ceiling.
    """
    rates = ceilings.gemm_flops_per_s
    name = "bfloat16" if arithmetic == "float16" else arithmetic
    known = [rates[n] for n in {name, "bfloat16" if name in ("int8", FP8_GEMM) else name} if n in rates]
    return max(known, default=None)


def _token_flops(shape: Shape, context: float, *, head: bool) -> float:
    """2 FLOPs a weight, and 4·heads·head_dim a token of context and layer for attention."""
    attention = 4.0 * shape.layers * shape.heads * shape.head_dim * context
    return 2.0 * (shape.body + (shape.head if head else 0.0)) + attention


def _kv_bytes(shape: Shape, kv: str) -> float:
    return 2.0 * shape.layers * shape.kv_heads * shape.head_dim * element_bytes(kv)
