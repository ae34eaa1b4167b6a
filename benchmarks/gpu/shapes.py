"""Shapes, cases and their physical floors.

The floor of a case: every prompt token's products at the measured product rate; then for each decode step whichever is
longer, reading weights and KV-cache once at the measured read rate or the step's products. No norm, no launch, no gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONFIGS: dict[str, dict[str, Any]] = {
    "tiny": {  # TinyLlama-1.1B
        "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4,
    },
    "8b": {  # Llama-3.1-8B
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
}  # fmt: skip
NAMES = {"tiny": "TinyLlama-1.1B", "8b": "Llama-3.1-8B"}


def hf_config(name: str) -> dict[str, Any]:
    """config.json of a shape."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, **CONFIGS[name],
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """`requests` prompts of `n_in` random tokens at once, `n_out` tokens each, greedy."""

    requests: int
    n_in: int
    n_out: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """From '32x100+200'."""
        requests, _, lengths = text.partition("x")
        n_in, _, n_out = lengths.partition("+")
        return cls(int(requests), int(n_in), int(n_out))

    def __str__(self) -> str:
        return f"{self.requests}x{self.n_in}+{self.n_out}"


CASES = tuple(
    map(Case.parse, ("1x100+200", "32x100+200", "256x100+200", "1024x100+200", "64x2000+1", "256x1000+1000"))
)
# vLLM 0.25.1, same shapes, cases and kind of card, medians in seconds, measured 2026-11-23 (docs/performance.md)
VLLM_S: dict[tuple[str, str], dict[str, float]] = {
    ("tiny", "bf16"): dict(zip(map(str, CASES), (0.4353, 0.6252, 1.4923, 5.2224, 0.5245, 7.905), strict=True)),
    ("tiny", "fp8"): dict(zip(map(str, CASES), (0.3875, 0.4671, 1.6014, 5.2123, 0.3955, 9.476), strict=True)),
    ("8b", "bf16"): dict(zip(map(str, CASES), (1.3283, 1.5329, 3.0737, 10.574, 3.0249, 36.42), strict=True)),
    ("8b", "fp8"): dict(zip(map(str, CASES), (0.8945, 1.0917, 2.4030, 8.2419, 2.0702, 29.05), strict=True)),
    ("8b", "fp8+kv8"): {
        "1x100+200": 0.88, "32x100+200": 1.06, "256x100+200": 2.27, "1024x100+200": 7.44, "256x1000+1000": 21.5,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the card was seen to do. Bytes/s of a matrix-vector product; FLOP/s of large products."""

    read: float = 2.748e12
    bf16: float = 777e12
    fp8: float = 1395e12
    int8: float = 853e12


def floor_s(name: str, precision: str, case: Case, ceilings: Ceilings) -> tuple[float, float]:
    """(seconds of the case, seconds of one decode step at its mean context), at the ceilings."""
    c = CONFIGS[name]
    hidden, inter, layers, kv_heads = (
        c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"], c["num_key_value_heads"],
    )  # fmt: skip
    heads = c["num_attention_heads"]
    dim = hidden // heads
    body = layers * (hidden * (heads + 2 * kv_heads) * dim + hidden * heads * dim + 3 * hidden * inter)
    head = c["vocab_size"] * hidden
    eight = precision != "bf16"
    head_eight = precision.startswith("int8")
    peak = {"bf16": ceilings.bf16, "fp8": ceilings.fp8, "int8": ceilings.int8}[precision.split("+")[0]]
    weights = body * (1 if eight else 2) + head * (1 if head_eight else 2)
    kv_bytes = 2 * layers * kv_heads * ((dim + 4) if precision.endswith("+kv8") else 2 * dim)
    n = case.requests
    total = n * case.n_in * 2 * body / peak + n * 2 * head / ceilings.bf16
    total += n * layers * 4 * heads * dim * case.n_in**2 / 2 / ceilings.bf16

    def step(context: float) -> float:
        flops = n * 2 * body / peak + n * 2 * head / ceilings.bf16
        return max((weights + n * context * kv_bytes) / ceilings.read, flops)

    total += sum(step(case.n_in + k) for k in range(case.n_out - 1))
    return total, step(case.n_in + case.n_out / 2)
