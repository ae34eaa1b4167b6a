"""In what format each product of a model will be loaded, read from the checkpoint's headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from inferoptim.models.load import read_scheme, read_spec

_INT8, _FLOAT8 = "I8", "F8_E4M3"


@dataclass(frozen=True, slots=True)
class LayerFormats:
    """Of one layer: 'none' (dense), 'fp8', 'int8' or 'int8-weight-only' each."""

    qkv: str
    o: str
    gate_up: str
    down: str


@dataclass(frozen=True, slots=True)
class Formats:
    """Of a model's products."""

    layers: tuple[LayerFormats, ...]
    head: str

    @classmethod
    def of_one(cls, quantization: str, num_layers: int) -> Formats:
        """The same everywhere, as for a dense checkpoint; the head is never float8."""
        layer = LayerFormats(quantization, quantization, quantization, quantization)
        return cls((layer,) * num_layers, "none" if quantization == "fp8" else quantization)


def stored_formats(folder: Path, asked: str) -> Formats:
    """What `load_decoder` makes of a folder on a device with float8.

    Args:
        asked: the setting `quantization`, which counts where the checkpoint is dense, and for a dense head.

    Raises:
        InferOptimError: as `read_spec` and `read_scheme`.
    """
    spec, scheme = read_spec(folder), read_scheme(folder)
    dense = Formats.of_one(asked, spec.num_layers)
    if scheme is None:
        return dense
    stored = _stored(folder)
    eight_bit = "int8" if scheme.dynamic_activations else "int8-weight-only"

    def kind(*modules: str) -> str:
        """Of products that are joined: mixed ones are dequantised."""
        kinds = {_kind(module, stored, eight_bit) for module in modules}
        return kinds.pop() if len(kinds) == 1 else "none"

    layers = []
    for index in range(spec.num_layers):
        attention, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
        layers.append(
            LayerFormats(
                qkv=kind(*(f"{attention}{name}_proj" for name in "qkv")),
                o=kind(f"{attention}o_proj"),
                gate_up=kind(f"{mlp}gate_proj", f"{mlp}up_proj"),
                down=kind(f"{mlp}down_proj"),
            )
        )
    output = "model.embed_tokens" if spec.tied_embeddings else "lm_head"
    head = kind(output)
    return Formats(tuple(layers), dense.head if head == "none" else head)


_Stored = dict[str, tuple[str, list[int]]]  # tensor's name → its type and shape


def _stored(folder: Path) -> _Stored:
    found: _Stored = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            for name in tuple(file.keys()):
                if name.endswith((".weight", ".weight_scale", ".weight_zero_point")):
                    view = file.get_slice(name)
                    found[name] = (view.get_dtype(), list(view.get_shape()))
    return found


def _kind(module: str, stored: _Stored, eight_bit: str) -> str:
    scale, weight = stored.get(f"{module}.weight_scale"), stored.get(f"{module}.weight")
    if scale is None or weight is None or f"{module}.weight_zero_point" in stored:
        return "none"
    shape = scale[1]
    if len(shape) == 2 and shape[1] > 1:  # in groups of input channels: dequantised
        return "none"
    return {_FLOAT8: "fp8", _INT8: eight_bit}.get(weight[0], "none")
