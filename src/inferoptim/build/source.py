"""The model to build from, one layer at a time: float32 copies of a layer's tensors, and its forward pass.

The forward pass is the decoder's own arithmetic on whole sequences, without a KV-cache, open at the four products of a
layer so that calibration can see their inputs and put a quantised product in their place.

Legend: B sequences · L tokens of each · H hidden size · K input features · N output features · D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open

from inferoptim.build.products import product
from inferoptim.errors import UnsupportedError
from inferoptim.kernels import stock
from inferoptim.models.load import read_scheme, read_spec
from inferoptim.models.rotary import cos_sin, inverse_frequencies
from inferoptim.models.sources import weight_shards
from inferoptim.models.spec import ModelSpec
from inferoptim.models.weights import check_finite, check_weights, expected_shapes, weight_shapes

# The four products of a layer and the checkpoint's modules in each, in the order of their outputs.
PRODUCTS: dict[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
ObserveKV = Callable[[torch.Tensor, torch.Tensor], None]  # keys (rotated) and values, [B * L, Hkv, D]
Product = Callable[
    [str, torch.Tensor], torch.Tensor
]  # (product's name, inputs [B, L, K]) → outputs without bias


@dataclass(slots=True)
class Layer:
    """One layer's tensors in float32, by their names inside the layer; calibration rewrites them."""

    index: int
    tensors: dict[str, torch.Tensor] = field(repr=False)

    def weight(self, product: str) -> torch.Tensor:
        """[N, K] of a product, its modules' rows back to back (a copy where there are several)."""
        parts = [self.tensors[f"{module}.weight"] for module in PRODUCTS[product]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def exact(self, product: str, x: torch.Tensor) -> torch.Tensor:
        """A product as it is, without bias: x [..., K] → [..., N]."""
        return F.linear(x, self.weight(product))

    def set_weight(self, product: str, weight_NK: torch.Tensor) -> None:
        """Put a changed weight in the place of a product's modules."""
        names = [f"{module}.weight" for module in PRODUCTS[product]]
        parts = torch.split(weight_NK, [self.tensors[name].shape[0] for name in names])
        self.tensors |= {name: part.contiguous() for name, part in zip(names, parts, strict=True)}

    def bias(self, product: str) -> torch.Tensor | None:
        """[N], or None where the architecture has none."""
        parts = [self.tensors.get(f"{module}.bias") for module in PRODUCTS[product]]
        present = [part for part in parts if part is not None]
        return torch.cat(present) if present else None


class SourceModel:
    """Reads a folder's tensors; holds none.

    Args:
        folder: a complete Hugging Face folder of a supported architecture, not quantised.

    Raises:
        UnsupportedError: it is quantised already. DataError: tensors are missing, misshapen or of mixed downloads.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec: ModelSpec = read_spec(folder)
        if (scheme := read_scheme(folder)) is not None:
            raise UnsupportedError(
                f"{folder}: already quantised ({scheme.method}); build from the original model instead"
            )
        check_weights(self.spec, weight_shapes(folder))
        self._inv_freq = inverse_frequencies(self.spec)
        shards = weight_shards(folder) or {"model.safetensors": set()}
        self._shard_of = {name: shard for shard, held in shards.items() for name in held}

    @property
    def largest_layer_bytes(self) -> int:
        """Bytes of a layer, or of the embedding, in float32: what streaming holds at a time."""
        per_layer = (self.spec.body_parameters // self.spec.num_layers) * 4
        return max(per_layer, self.spec.vocab_size * self.spec.hidden_size * 4)

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        with safe_open(
            self.folder / self._shard_of.get(name, "model.safetensors"), framework="pt", device="cpu"
        ) as file:
            yield file

    def tensor(self, name: str) -> torch.Tensor:
        """A copy in its stored type, checked finite."""
        with self._open(name) as file:
            tensor: torch.Tensor = file.get_tensor(name).clone()
        check_finite(name, tensor)
        return tensor

    def layer(self, index: int) -> Layer:
        """A layer's tensors in float32."""
        prefix = f"model.layers.{index}."
        names = [name for name in expected_shapes(self.spec) if name.startswith(prefix)]
        return Layer(index, {name.removeprefix(prefix): self.tensor(name).float() for name in names})

    def embed(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """[B, L, H], float32."""
        with self._open("model.embed_tokens.weight") as file:
            embedding: torch.Tensor = file.get_tensor("model.embed_tokens.weight")
            return F.embedding(tokens_BL, embedding).float()

    def head(self) -> torch.Tensor:
        """The output head [V, H] in its stored type; the embedding, where they are one."""
        return self.tensor("model.embed_tokens.weight" if self.spec.tied_embeddings else "lm_head.weight")

    @torch.no_grad()
    def run(
        self, layer: Layer, x_BLH: torch.Tensor, product: Product, observe_kv: ObserveKV | None = None
    ) -> torch.Tensor:
        """The layer's output [B, L, H]; every product goes through `product`."""
        return self._run(layer, x_BLH, product, observe_kv)

    def gradients(
        self, layer: Layer, x_BLH: torch.Tensor, gradient_BLH: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """Back through one layer.

        Args:
            gradient_BLH: of some number with respect to the layer's output.

        Returns:
            (its gradient with respect to the layer's input; for each product its inputs [B, L, K] and the number's gradient
            with respect to its outputs [B, L, N]).
        """
        inputs: dict[str, torch.Tensor] = {}
        outputs: dict[str, torch.Tensor] = {}

        def product(name: str, x: torch.Tensor) -> torch.Tensor:
            inputs[name], outputs[name] = x.detach(), layer.exact(name, x)
            return outputs[name]

        with torch.enable_grad():
            x = x_BLH.detach().requires_grad_()
            out = self._run(layer, x, product)
            first, *rest = torch.autograd.grad(out, [x, *outputs.values()], gradient_BLH)
        return first, {name: (inputs[name], g) for name, g in zip(outputs, rest, strict=True)}

    def _run(
        self, layer: Layer, x_BLH: torch.Tensor, product: Product, observe_kv: ObserveKV | None = None
    ) -> torch.Tensor:
        spec, tensors = self.spec, layer.tensors
        eps, (batch, length, _) = spec.rms_norm_eps, x_BLH.shape
        h = stock.rms_norm(x_BLH, tensors["input_layernorm.weight"], eps)
        qkv = product("qkv", h)
        if (bias := layer.bias("qkv")) is not None:
            qkv = qkv + bias
        heads = qkv.view(batch * length, -1, spec.head_dim)
        q, k, v = torch.split(heads, [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        if spec.qk_norm:
            q = stock.rms_norm(q, tensors["self_attn.q_norm.weight"], eps)
            k = stock.rms_norm(k, tensors["self_attn.k_norm.weight"], eps)
        cos, sin = cos_sin(torch.arange(length).repeat(batch), self._inv_freq)
        q, k = stock.rope(q, cos, sin), stock.rope(k, cos, sin)
        if observe_kv is not None:
            observe_kv(k, v)
        q, k, v = (t.view(batch, length, -1, spec.head_dim).transpose(1, 2) for t in (q, k, v))
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=_mask(length, spec.window(layer.index)), enable_gqa=True
        )
        x = x_BLH + product("o", attended.transpose(1, 2).flatten(2))
        gate_up = product("gate_up", stock.rms_norm(x, tensors["post_attention_layernorm.weight"], eps))
        return x + product("down", stock.silu_mul(gate_up))

    def run_recorded(self, layer: Layer, x_BLH: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The layer's own output, and the inputs [B * L, K] of each of its products."""
        inputs: dict[str, torch.Tensor] = {}

        def record(name: str, x: torch.Tensor) -> torch.Tensor:
            inputs[name] = x.flatten(0, -2)
            return product(x, layer.weight(name))

        return self.run(layer, x_BLH, record), inputs


def _mask(length: int, window: int | None) -> torch.Tensor:
    at = torch.arange(length)
    visible = at[None, :] <= at[:, None]
    return visible if window is None else visible & (at[None, :] > at[:, None] - window)
