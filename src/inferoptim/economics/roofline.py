"""Physics of decoding in closed form: bytes and FLOPs of a model, and the floors they put under time.

A floor is a lower bound that no software beats on that card; nothing here predicts what software reaches.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from inferoptim.economics.checks import positive
from inferoptim.errors import ConfigError

BYTES_OF = {
    "fp32": 4.0, "tf32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5, "fp4": 0.5,
}  # fmt: skip


def kv_bytes_per_token(layers: float, kv_heads: float, head_dim: float, element_bytes: float = 2.0) -> float:
    """Bytes of keys and values that one token takes over all layers.

    Source: 2 (K and V) × layers × KV heads × head size × element size; KV heads = query heads for MHA, fewer for
    GQA (Ainslie et al. 2023), one for MQA (Shazeer 2019).

    >>> kv_bytes_per_token(32, 32, 128)  # Llama-2-7B
    524288.0
    """
    return 2.0 * layers * kv_heads * head_dim * element_bytes


@dataclass(frozen=True, slots=True)
class Shape:
    """What the floors need of a dense decoder. Counts of weights; `source` says where they come from."""

    name: str
    body: float  # weights read for every token: linear layers
    head: float  # output head
    embedding: float  # input embedding, stored but not read (0 when tied to the head)
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    source: str = ""

    @property
    def read_per_step(self) -> float:
        """Weights that a decode step reads: body and head."""
        return self.body + self.head

    @property
    def stored(self) -> float:
        """Weights that must lie in memory."""
        return self.body + self.head + self.embedding


def llama_shape(
    name: str,
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    head_dim: int | None = None,
    tied: bool = False,
    source: str = "",
) -> Shape:
    """Shape of a Llama-like decoder (gated MLP, three projections) from its config.

    Source: Touvron et al. 2023; weights = L·(h·(q + 2·kv) + q·h + 3·h·i), norms left out (below 0.01 %).
    """
    dim = head_dim or hidden // heads
    q, kv = heads * dim, kv_heads * dim
    body = layers * (hidden * (q + 2 * kv) + q * hidden + 3 * hidden * intermediate)
    head = vocab * hidden
    return Shape(name, body, head, 0 if tied else head, layers, heads, kv_heads, dim, source)


SHAPES: tuple[Shape, ...] = (
    llama_shape(
        "TinyLlama-1.1B", hidden=2048, intermediate=5632, layers=22, heads=32, kv_heads=4, vocab=32000,
        source="TinyLlama/TinyLlama-1.1B-Chat-v1.0 config.json",
    ),
    llama_shape(
        "Llama-2-7B", hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, vocab=32000,
        source="meta-llama/Llama-2-7b-hf config.json",
    ),
    llama_shape(
        "Llama-2-13B", hidden=5120, intermediate=13824, layers=40, heads=40, kv_heads=40, vocab=32000,
        source="meta-llama/Llama-2-13b-hf config.json",
    ),
    llama_shape(
        "Llama-2-70B", hidden=8192, intermediate=28672, layers=80, heads=64, kv_heads=8, vocab=32000,
        source="meta-llama/Llama-2-70b-hf config.json",
    ),
    llama_shape(
        "Llama-3.1-8B", hidden=4096, intermediate=14336, layers=32, heads=32, kv_heads=8, vocab=128256,
        source="meta-llama/Llama-3.1-8B config.json",
    ),
    llama_shape(
        "Llama-3.1-70B", hidden=8192, intermediate=28672, layers=80, heads=64, kv_heads=8, vocab=128256,
        source="meta-llama/Llama-3.1-70B config.json",
    ),
    llama_shape(
        "Llama-3.2-1B", hidden=2048, intermediate=8192, layers=16, heads=32, kv_heads=8, vocab=128256, head_dim=64,
        tied=True, source="meta-llama/Llama-3.2-1B config.json",
    ),
    llama_shape(
        "Mistral-7B", hidden=4096, intermediate=14336, layers=32, heads=32, kv_heads=8, vocab=32000,
        source="mistralai/Mistral-7B-v0.1 config.json",
    ),
    llama_shape(
        "Qwen2.5-7B", hidden=3584, intermediate=18944, layers=28, heads=28, kv_heads=4, vocab=152064,
        source="Qwen/Qwen2.5-7B config.json",
    ),
    llama_shape(
        "SmolLM2-135M", hidden=576, intermediate=1536, layers=30, heads=9, kv_heads=3, vocab=49152, tied=True,
        source="HuggingFaceTB/SmolLM2-135M-Instruct config.json",
    ),
)  # fmt: skip


def find_shape(name: str) -> Shape:
    """A shape of the table by name.

    Raises:
        ConfigError: unknown; nearest names suggested, and how to give a config instead.
    """
    folded = {shape.name.casefold(): shape for shape in SHAPES}
    wanted = name.rpartition("/")[2].casefold()
    if wanted in folded:
        return folded[wanted]
    starts = [shape for key, shape in folded.items() if wanted.startswith(key)]
    if starts:
        return max(starts, key=lambda shape: len(shape.name))
    close = difflib.get_close_matches(wanted, folded, n=3, cutoff=0.4)
    hint = "did you mean " + ", ".join(folded[c].name for c in close) + "?" if close else ""
    raise ConfigError(
        f"unknown model {name!r}: {hint} Or give its config.json with --config FILE".replace("  ", " ")
    )


def decode_step_floor_s(
    weight_bytes: float,
    kv_bytes: float,
    bandwidth: float,
    flops: float = 0.0,
    peak_flops: float | None = None,
) -> float:
    """Least time of one decode step: all weights and all live KV are read once; FLOPs may take longer.

    Source: roofline, Williams, Waterman, Patterson, CACM 2009.
    """
    read = (weight_bytes + kv_bytes) / positive("bandwidth", bandwidth)
    return max(read, flops / peak_flops) if peak_flops else read
