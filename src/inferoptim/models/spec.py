"""What an architecture is: the numbers that one dense decoder needs. Read from a Hugging Face ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched. Source: transformers ``modeling_rope_utils``."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0  # llama3 only
    high_freq_factor: float = 4.0  # llama3 only
    original_max_position: int = 8192  # llama3 only


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A dense decoder-only transformer. All sizes in elements unless said otherwise."""

    architecture: str  # as in config.json, e.g. 'LlamaForCausalLM'
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False  # RMSNorm over each head of q and k before rotation (Qwen3)
    sliding_windows: tuple[int | None, ...] = ()  # per layer; () = full attention everywhere
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    torch_dtype: str = "bfloat16"

    def window(self, layer: int) -> int | None:
        """Sliding window of `layer` in tokens (a query sees itself and the window-1 tokens before), or None."""
        return self.sliding_windows[layer] if self.sliding_windows else None

    @property
    def body_parameters(self) -> int:
        """Weights of the linear layers of the body, embeddings and head excluded."""
        q, kv, h = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim, self.hidden_size
        return self.num_layers * (h * (q + 2 * kv) + q * h + 3 * h * self.intermediate_size)

    @property
    def head_parameters(self) -> int:
        """Weights of the output head: read at every step, tied to the embedding or not."""
        return self.vocab_size * self.hidden_size

    def kv_bytes_per_token(self, element_bytes: float = 2, scale_bytes: float = 0) -> float:
        """Bytes of KV-cache that one token takes over all layers; `scale_bytes` per head and vector if quantised."""
        return 2 * self.num_layers * self.num_kv_heads * (self.head_dim * element_bytes + scale_bytes)


SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def spec_from_config(config: dict[str, Any]) -> ModelSpec:
    """Read a Hugging Face config.

    Raises:
        UnsupportedError: another architecture (named, with what is supported) or an unknown rope scaling.
        DataError: a field is missing or contradicts another.
    """
    raise NotImplementedError
