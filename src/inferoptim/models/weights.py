"""Weights from safetensors shards, one tensor at a time, with the checks that tell a damaged download early."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from inferoptim.errors import DataError
from inferoptim.models.sources import weight_shards
from inferoptim.models.spec import ModelSpec


def load_weights(folder: str | Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Stream every tensor of a Hugging Face folder, in its stored type, shard by shard.

    The tensors are read from a memory map: a tensor occupies memory of its own only while the caller keeps it.

    Raises:
        DataError: a shard is missing or truncated, or disagrees with the index.
    """
    folder = Path(folder)
    for shard, indexed in _shards(folder):
        path = folder / shard
        with _open(path) as file:
            names = list(file.keys())
            if indexed is not None and set(names) != indexed:
                odd = sorted(set(names) ^ indexed)[0]
                where = "the index but not the shard" if odd in indexed else "the shard but not the index"
                raise DataError(
                    f"{path}: tensor '{odd}' is in {where}: shards and index are not of one download; fetch the model again"
                )
            for name in names:
                yield name, file.get_tensor(name)


def weight_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor, from the headers alone (milliseconds, whatever the size).

    Raises:
        DataError: as `load_weights`.
    """
    folder = Path(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for shard, indexed in _shards(folder):
        with _open(folder / shard) as file:
            names = list(file.keys())
            found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        if indexed is not None and set(found) != indexed:
            odd = sorted(set(found) ^ indexed)[0]
            where = "the index but not the shard" if odd in indexed else "the shard but not the index"
            raise DataError(
                f"{folder / shard}: tensor '{odd}' is in {where}: shards and index are not of one download; fetch the model again"
            )
        shapes |= found
    return shapes


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor that `spec` needs, as Hugging Face names them."""
    hidden, q, kv = spec.hidden_size, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (spec.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not spec.tied_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, q),
        "mlp.gate_proj.weight": (spec.intermediate_size, hidden),
        "mlp.up_proj.weight": (spec.intermediate_size, hidden),
        "mlp.down_proj.weight": (hidden, spec.intermediate_size),
    }
    if spec.qkv_bias:
        layer |= {
            "self_attn.q_proj.bias": (q,),
            "self_attn.k_proj.bias": (kv,),
            "self_attn.v_proj.bias": (kv,),
        }
    if spec.qk_norm:
        layer |= {"self_attn.q_norm.weight": (spec.head_dim,), "self_attn.k_norm.weight": (spec.head_dim,)}
    for index in range(spec.num_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes


def check_weights(spec: ModelSpec, shapes: Mapping[str, Iterable[int]]) -> None:
    """Check that a checkpoint has every tensor of `spec`, in its shape, and no other.

    Two leftovers are harmless and accepted: a stored ``lm_head.weight`` of a tied model, and rotary ``inv_freq`` buffers.

    Args:
        shapes: tensor name → shape, as `weight_shapes` gives.

    Raises:
        DataError: the first tensor that is missing, of another shape, or unknown.
    """
    expected = expected_shapes(spec)
    if missing := [name for name in expected if name not in shapes]:
        raise DataError(
            f"the checkpoint lacks {len(missing)} of {len(expected)} tensors of a {spec.architecture}, first '{missing[0]}'"
        )
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            raise DataError(
                f"tensor '{name}' has shape {tuple(shapes[name])}, config.json implies {shape}: they are of two models; fetch "
                "config.json and weights of one revision"
            )
    unknown = [
        n
        for n in shapes
        if n not in expected and n != "lm_head.weight" and not n.endswith("rotary_emb.inv_freq")
    ]
    if unknown:
        raise DataError(
            f"the checkpoint has {len(unknown)} tensors that a {spec.architecture} with this config.json does not use, "
            f"first '{unknown[0]}'"
        )


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor with NaN or infinity.

    Raises:
        DataError: naming the tensor and how many elements are not finite.
    """
    # One of the two is NaN or infinite if any element is: one pass, no mask in memory, in the tensor's own type.
    if tensor.numel() and not all(torch.isfinite(extreme) for extreme in torch.aminmax(tensor)):
        bad = int((~torch.isfinite(tensor)).sum())
        raise DataError(
            f"tensor '{name}' has {bad} of {tensor.numel()} elements that are NaN or infinite: the checkpoint is damaged or was "
            "trained so; fetch it again, or take another revision"
        )


def _shards(folder: Path) -> Iterator[tuple[str, set[str] | None]]:
    """(file name, tensor names that the index gives it); None where a single file needs no index."""
    index = weight_shards(folder)
    if index is None:
        yield "model.safetensors", None
    else:
        yield from index.items()


def _open(path: Path) -> safe_open:
    if not path.is_file():
        raise DataError(f"{path}: missing; fetch the model again with `inferoptim pull MODEL --force`")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: truncated or damaged safetensors file ({error})") from error
