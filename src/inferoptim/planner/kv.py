"""KV-cache arithmetic from a model's own config: bytes per token, and what fits on which card. No torch.

Covers multi-head, grouped-query, multi-query and multi-head latent attention, and layers that see only a window.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inferoptim.economics.checks import positive, share, whole
from inferoptim.economics.roofline import BYTES_OF, Shape, find_shape, llama_shape
from inferoptim.errors import CapacityError, ConfigError, DataError, UnsupportedError
from inferoptim.hardware.peaks import DevicePeaks

Kind = Literal["MHA", "GQA", "MQA", "MLA"]
SCALE_BYTES = (
    4.0  # one float32 scale per head and vector when the cache is quantised, as our engine stores it
)


@dataclass(frozen=True, slots=True)
class KVShape:
    """What the cache holds of one token in one layer, and which layers see only a window."""

    kind: Kind
    values_per_layer: int  # cached elements per token and layer, keys and values together
    vectors_per_layer: int  # vectors that carry a scale when quantised
    windows: tuple[int | None, ...]  # per layer, tokens; None = full attention

    @property
    def layers(self) -> int:
        """Number of layers that cache keys and values."""
        return len(self.windows)

    def bytes_per_token_and_layer(self, element_bytes: float, scale_bytes: float = 0.0) -> float:
        """Bytes of one token in one layer."""
        return self.values_per_layer * element_bytes + self.vectors_per_layer * scale_bytes

    def bytes_per_token(self, element_bytes: float, scale_bytes: float = 0.0) -> float:
        """Bytes that one more token takes while every layer still sees it (context within the window)."""
        return self.layers * self.bytes_per_token_and_layer(element_bytes, scale_bytes)

    def bytes_of_sequence(self, tokens: int, element_bytes: float, scale_bytes: float = 0.0) -> float:
        """Bytes that a sequence of `tokens` needs: a windowed layer keeps only its window."""
        held = sum(tokens if window is None else min(tokens, window) for window in self.windows)
        return held * self.bytes_per_token_and_layer(element_bytes, scale_bytes)


def _int(config: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise DataError(f"config: {name} is {value!r}, expected a whole number above zero")
        return value
    return None


def _required(config: Mapping[str, Any], *names: str) -> int:
    value = _int(config, *names)
    if value is None:
        raise DataError(f"config: no {' or '.join(names)}: not the config.json of a decoder-only transformer")
    return value


def kv_shape(config: Mapping[str, Any]) -> KVShape:
    """Read the attention of a Hugging Face ``config.json``.

    Source: MHA Vaswani et al. 2017 (2·h·d elements); GQA Ainslie et al. 2023 (2·h_kv·d); MQA Shazeer 2019 (h_kv = 1);
    MLA DeepSeek-V2 2024, section 2.1 (one latent of kv_lora_rank and one rotary key of qk_rope_head_dim, no values).

    Raises:
        DataError: a field is missing or not a number.
        UnsupportedError: layers that are not attention (state-space, linear attention).
    """
    text = config.get("text_config") or config  # multimodal configs nest the decoder
    layers = _required(text, "num_hidden_layers", "n_layer")
    windows = _windows(text, layers)
    latent = _int(text, "kv_lora_rank")
    if latent is not None:
        rope = _required(text, "qk_rope_head_dim")
        return KVShape("MLA", latent + rope, 1, windows)
    heads = _required(text, "num_attention_heads", "n_head")
    kv_heads = _int(text, "num_key_value_heads", "num_kv_heads", "n_head_kv")
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        kv_heads = 1  # Falcon 7B and GPT-BigCode state the flag and no count
    kv_heads = heads if kv_heads is None else kv_heads
    dim = _int(text, "head_dim")
    if dim is None:
        hidden = _required(text, "hidden_size", "n_embd")
        if hidden % heads:
            raise DataError(
                f"config: hidden size {hidden} is not a multiple of {heads} heads, and no head_dim is given"
            )
        dim = hidden // heads
    if heads % kv_heads:
        raise DataError(f"config: {heads} attention heads are not a multiple of {kv_heads} KV heads")
    kind: Kind = "MHA" if kv_heads == heads else "MQA" if kv_heads == 1 else "GQA"
    return KVShape(kind, 2 * kv_heads * dim, 2 * kv_heads, windows)


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """Window of each layer, as transformers resolves it for the family."""
    types = config.get("layer_types")
    window = _int(config, "sliding_window")
    if types is not None:
        foreign = sorted(
            {str(t) for t in types} - {"full_attention", "sliding_attention", "chunked_attention"}
        )
        if foreign:
            raise UnsupportedError(f"config: layers of type {foreign[0]!r} keep no KV-cache of this kind")
        if len(types) != layers:
            raise DataError(f"config: {len(types)} layer_types for {layers} layers")
        local = window or _int(config, "attention_chunk_size")
        if any(t != "full_attention" for t in types) and local is None:
            raise DataError("config: layer_types name windowed layers, but no sliding_window is given")
        return tuple(None if t == "full_attention" else local for t in types)
    if window is None or config.get("use_sliding_window") is False:
        return (None,) * layers
    family = str(config.get("model_type", ""))
    if family.startswith("llama"):
        return (None,) * layers  # LlamaForCausalLM never reads sliding_window
    pattern = _int(config, "sliding_window_pattern")
    if pattern is None and family == "gemma2":
        pattern = 2
    if pattern is not None:  # every pattern-th layer is global
        return tuple(None if (layer + 1) % pattern == 0 else window for layer in range(layers))
    if family.startswith("qwen"):
        first = config.get("max_window_layers", 28)
        return tuple(window if layer >= int(first) else None for layer in range(layers))
    return (window,) * layers


def dense_parameters(config: Mapping[str, Any], name: str = "model") -> Shape | None:
    """Weights of a dense gated-MLP decoder from its config; None where the config is of another build (experts, MLA)."""
    text = config.get("text_config") or config
    experts = any(text.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts"))
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    if experts or text.get("kv_lora_rank") or any(_int(text, key) is None for key in needed):
        return None
    gated = str(text.get("hidden_act", text.get("hidden_activation", "silu"))) in (
        "silu",
        "swish",
        "gelu_pytorch_tanh",
    )
    if not gated or text.get("multi_query"):
        return None
    heads = _required(text, "num_attention_heads")
    return llama_shape(
        name,
        hidden=_required(text, "hidden_size"),
        intermediate=_required(text, "intermediate_size"),
        layers=_required(text, "num_hidden_layers"),
        heads=heads,
        kv_heads=_int(text, "num_key_value_heads") or heads,
        vocab=_required(text, "vocab_size"),
        head_dim=_int(text, "head_dim"),
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        source="config.json",
    )


def element_bytes(precision: str) -> float:
    """Bytes of one element.

    Raises:
        ConfigError: unknown precision.
    """
    if precision not in BYTES_OF:
        raise ConfigError(f"unknown precision {precision!r}: one of {', '.join(BYTES_OF)}")
    return BYTES_OF[precision]


def kv_scale_bytes(precision: str) -> float:
    """Bytes of scale per cached vector: our engine stores one when the cache is quantised to one byte or less."""
    return SCALE_BYTES if element_bytes(precision) <= 1 else 0.0


@dataclass(frozen=True, slots=True)
class Fit:
    """What one card (or `gpus` of them, tensor-parallel) holds of a model."""

    device: str
    gpus: int
    usable_bytes: float
    weight_bytes: float
    kv_room_bytes: float  # negative = the weights alone do not fit
    kv_bytes_per_token: float
    max_batch: int  # sequences of the asked context
    max_context: int  # tokens of each of `batch` sequences; 0 = none
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON and tables."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def fit(
    kv: KVShape,
    weight_bytes: float,
    device: DevicePeaks,
    *,
    context: int,
    batch: int = 1,
    kv_precision: str = "bf16",
    gpus: int = 1,
    usable: float = 0.9,
    max_position: int | None = None,
) -> Fit:
    """Does `batch` × `context` fit, and what is the most that does?

    Args:
        weight_bytes: weights as stored, over all GPUs.
        context: prompt + output tokens of one sequence.
        usable: share of each card's memory left to weights and KV-cache; the rest is activations and runtime.
        max_position: the model's longest context, which caps `max_context`.

    Under tensor parallelism keys and values are split by KV head; a head is not split, so more GPUs than KV heads
    hold copies (MLA's latent is copied to every GPU).

    Raises:
        ConfigError: a quantity is out of range.
    """
    whole("context", context)
    whole("batch", batch)
    count = whole("GPUs", gpus)
    positive("weight bytes", weight_bytes)
    memory = device.memory_bytes * share("usable memory", usable, zero=False) * count
    size, scale = element_bytes(kv_precision), kv_scale_bytes(kv_precision)
    heads = 1 if kv.kind == "MLA" else kv.vectors_per_layer // 2
    copies = math.ceil(heads / count) * count / heads
    per_sequence = kv.bytes_of_sequence(context, size, scale) * copies
    room = memory - weight_bytes
    max_batch = max(0, math.floor(room / per_sequence + 1e-9)) if room > 0 else 0
    longest = _longest(kv, room / batch / copies, size, scale) if room > 0 else 0
    if max_position is not None:
        longest = min(longest, max_position)
    return Fit(
        device=device.name,
        gpus=count,
        usable_bytes=memory,
        weight_bytes=weight_bytes,
        kv_room_bytes=room,
        kv_bytes_per_token=kv.bytes_per_token(size, scale) * copies,
        max_batch=max_batch,
        max_context=longest,
        fits=max_batch >= batch,
    )


def _longest(kv: KVShape, room: float, size: float, scale: float) -> int:
    """Longest sequence whose cache fits `room` bytes (exact: the need grows with length, so bisect)."""
    low, high = 0, 1
    while kv.bytes_of_sequence(high, size, scale) <= room:
        if high >= 1 << 40:
            return high  # every layer is windowed: no length is too long
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if kv.bytes_of_sequence(middle, size, scale) <= room:
            low = middle
        else:
            high = middle
    return low


def require_fit(result: Fit, batch: int, context: int) -> None:
    """Refuse a plan that does not fit.

    Raises:
        CapacityError: with how much is missing, and the batch and context that would fit.
    """
    if result.fits:
        return
    if result.kv_room_bytes <= 0:
        raise CapacityError(
            f"{result.gpus} × {result.device}: weights of {result.weight_bytes / 1e9:.1f} GB do not fit "
            f"{result.usable_bytes / 1e9:.1f} GB usable: quantise, or take more or larger cards"
        )
    raise CapacityError(
        f"{result.gpus} × {result.device}: {batch} × {context} tokens do not fit; "
        f"fits {result.max_batch} × {context} or {batch} × {result.max_context}"
    )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the calculators need of one model."""

    name: str
    kv: KVShape
    shape: Shape | None
    max_position: int | None
    source: str


def read_config(path: Path) -> dict[str, Any]:
    """Read a ``config.json``, or the one in a folder.

    Raises:
        DataError: unreadable, or not a JSON object.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot read it ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise DataError(f"{file}: not a JSON object")
    return config


def model_facts(model: str, *, offline: bool = False) -> ModelFacts:
    """Facts of a model: a local config.json or folder, a name of the built-in table, or anything `pull` resolves.

    Raises:
        ConfigError, DataError, UnsupportedError: nothing of that name, or a config that cannot be read.
    """
    path = Path(model)
    if path.suffix == ".json" or path.is_dir():
        return facts_of(
            read_config(path), path.name if path.is_dir() else path.parent.name or path.stem, str(path)
        )
    try:
        shape = find_shape(model)
    except ConfigError:
        from inferoptim.models.hub import resolve_model

        files = resolve_model(model, offline=offline)
        return facts_of(read_config(files.folder), files.name, str(files.folder / "config.json"))
    kind: Kind = "MHA" if shape.kv_heads == shape.heads else "GQA"
    kv = KVShape(kind, 2 * shape.kv_heads * shape.head_dim, 2 * shape.kv_heads, (None,) * shape.layers)
    return ModelFacts(shape.name, kv, shape, None, shape.source)


def facts_of(config: Mapping[str, Any], name: str, source: str) -> ModelFacts:
    """Facts from a config already read."""
    text = config.get("text_config") or config
    longest = _int(text, "max_position_embeddings", "n_positions")
    return ModelFacts(name, kv_shape(config), dense_parameters(config, name), longest, source)


def weight_bytes_of(facts: ModelFacts, precision: str) -> float | None:
    """Bytes of the weights: linear layers of the body at `precision`, embedding and head in 16 bits when it is lower."""
    if facts.shape is None:
        return None
    size = element_bytes(precision)
    return facts.shape.body * size + (facts.shape.head + facts.shape.embedding) * max(size, 2.0)
