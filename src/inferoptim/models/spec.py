"""What an architecture is: the numbers that one dense decoder needs. Read from a Hugging Face ``config.json``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from inferoptim.errors import DataError, UnsupportedError


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

_SUPPORTED_ROPE = ("default", "linear", "llama3")


def spec_from_config(config: dict[str, Any]) -> ModelSpec:
    """Read a Hugging Face config.

    A field that would change the result and that the decoder does not have is refused, never ignored.

    Args:
        config: the content of ``config.json``, of any transformers version (``rope_parameters``, or ``rope_theta``
            and ``rope_scaling``).

    Raises:
        UnsupportedError: another architecture (named, with what is supported) or an unknown rope scaling.
        DataError: a field is missing or contradicts another.
    """
    architecture = _architecture(config)
    _refuse_unsupported(config, architecture)
    hidden_size = _positive_int(config, "hidden_size")
    num_heads = _positive_int(config, "num_attention_heads")
    num_kv_heads = _positive_int(config, "num_key_value_heads", num_heads)
    num_layers = _positive_int(config, "num_hidden_layers")
    max_position = _positive_int(config, "max_position_embeddings")
    if config.get("head_dim") is None and hidden_size % num_heads:
        raise DataError(
            f"config: hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}"
        )
    head_dim = _positive_int(config, "head_dim", hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise DataError(
            f"config: num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
        )
    if head_dim % 2:
        raise DataError(f"config: head_dim {head_dim} is odd; rotary embeddings turn pairs")
    rope_theta, rope_scaling = _rope(config, max_position)
    bos = config.get("bos_token_id")
    return ModelSpec(
        architecture=architecture,
        vocab_size=_positive_int(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_positive_int(config, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position=max_position,
        rms_norm_eps=_positive_float(config, "rms_norm_eps"),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=architecture == "Qwen2ForCausalLM",
        qk_norm=architecture == "Qwen3ForCausalLM",
        sliding_windows=_sliding_windows(config, architecture, num_layers),
        eos_token_ids=token_ids(config.get("eos_token_id")),
        bos_token_id=None if bos is None else int(bos),
        torch_dtype=str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"),
    )


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures") or []
    supported = ", ".join(SUPPORTED_ARCHITECTURES)
    if not names:
        raise DataError(f"config: no 'architectures'; this build runs {supported}")
    for name in names:
        if name in SUPPORTED_ARCHITECTURES:
            return str(name)
    raise UnsupportedError(f"architecture {names[0]} is not supported; supported: {supported}")


def _refuse_unsupported(config: dict[str, Any], architecture: str) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedError(
            f"{architecture}: activation hidden_act={activation!r} is not supported; supported: silu"
        )
    for flag in ("attention_bias", "mlp_bias"):
        if config.get(flag):
            raise UnsupportedError(
                f"{architecture}: {flag}=true is not supported; supported: no bias, or Qwen2's QKV bias"
            )
    partial = config.get("partial_rotary_factor")
    if partial not in (None, 1, 1.0):
        raise UnsupportedError(
            f"{architecture}: partial_rotary_factor={partial} is not supported; supported: 1.0"
        )


def _rope(config: dict[str, Any], max_position: int) -> tuple[float, RopeScaling | None]:
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if any(isinstance(value, dict) for value in parameters.values()):
        raise UnsupportedError(
            "rope_parameters per layer type are not supported; supported: one set for all layers"
        )
    theta = parameters.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = parameters.get("rope_type", parameters.get("type", "default")) or "default"
    if kind not in _SUPPORTED_ROPE:
        raise UnsupportedError(
            f"rope scaling {kind!r} is not supported; supported: {', '.join(_SUPPORTED_ROPE)}"
        )
    partial = parameters.get("partial_rotary_factor")
    if partial not in (None, 1, 1.0):
        raise UnsupportedError(f"partial_rotary_factor={partial} is not supported; supported: 1.0")
    rope_theta = _positive_float({"rope_theta": theta}, "rope_theta")
    if kind == "default":
        return rope_theta, None
    factor = _positive_float(parameters, "factor")
    if kind == "linear":
        return rope_theta, RopeScaling("linear", factor)
    low, high = (
        _positive_float(parameters, "low_freq_factor"),
        _positive_float(parameters, "high_freq_factor"),
    )
    if low >= high:
        raise DataError(f"config: rope low_freq_factor {low} is not below high_freq_factor {high}")
    # transformers reads the pretraining length from either place, and falls back to the model's own length
    original = {
        "original_max_position_embeddings": config.get("original_max_position_embeddings")
        or parameters.get("original_max_position_embeddings")
    }
    return rope_theta, RopeScaling(
        "llama3",
        factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position=_positive_int(original, "original_max_position_embeddings", max_position),
    )


def _sliding_windows(config: dict[str, Any], architecture: str, num_layers: int) -> tuple[int | None, ...]:
    """Per layer, as transformers resolves it: all layers of Mistral; Qwen by `layer_types` or `max_window_layers`."""
    if architecture == "LlamaForCausalLM":
        return ()  # LlamaForCausalLM never reads sliding_window
    used = architecture == "MistralForCausalLM" or bool(config.get("use_sliding_window", False))
    layer_types = config.get("layer_types")
    if layer_types is not None and architecture != "MistralForCausalLM":
        unknown = sorted(set(layer_types) - {"full_attention", "sliding_attention"})
        if unknown:
            raise UnsupportedError(
                f"{architecture}: layer type {unknown[0]!r} is not supported; supported: full_attention, "
                "sliding_attention"
            )
        if len(layer_types) != num_layers:
            raise DataError(f"config: {len(layer_types)} layer_types for {num_layers} layers")
    if not used or config.get("sliding_window") is None:
        if (
            layer_types is not None
            and "sliding_attention" in layer_types
            and architecture != "MistralForCausalLM"
        ):
            raise DataError("config: layer_types name sliding_attention, but no sliding_window is in use")
        return ()
    window = _positive_int(config, "sliding_window")
    if architecture == "MistralForCausalLM":
        return (window,) * num_layers
    if layer_types is not None:
        return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
    first = int(config.get("max_window_layers", 28))
    windows = tuple(window if layer >= first else None for layer in range(num_layers))
    return windows if any(windows) else ()


def token_ids(value: Any) -> tuple[int, ...]:
    """Ids from a config's field: one, a list, or none."""
    if value is None:
        return ()
    return tuple(int(v) for v in value) if isinstance(value, list | tuple) else (int(value),)


def _positive_int(config: dict[str, Any], field: str, default: int | None = None) -> int:
    value = config.get(field)
    value = default if value is None else value
    if value is None:
        raise DataError(f"config: '{field}' is missing")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"config: '{field}' must be a positive integer, not {value!r}")
    return value


def _positive_float(config: dict[str, Any], field: str) -> float:
    value = config.get(field)
    if value is None:
        raise DataError(f"config: '{field}' is missing")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise DataError(f"config: '{field}' must be a positive number, not {value!r}")
    return float(value)
