"""The decoder: one dense transformer for every supported architecture, driven by its `ModelSpec`.

Legend: T tokens of the step · R rows whose logits are wanted · H hidden size · I intermediate size · Hq query heads ·
Hkv KV heads · D head size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import torch

from inferoptim.kernels import stock
from inferoptim.models.batch import Batch, KVCache, KVLayer
from inferoptim.models.rotary import cos_sin
from inferoptim.models.spec import ModelSpec
from inferoptim.quant.formats import DenseWeight, Fp8Weight, GroupedWeight, Int8Weight, Linear


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Norm weights are vectors in the model's type; linears may be dense or quantised, each on its own."""

    input_norm: torch.Tensor  # [H], before attention
    qkv: Linear  # N = (Hq + 2 Hkv) * D: rows of q, then k, then v, head by head; K = H
    q_norm: torch.Tensor | None  # [D], RMSNorm of each query head before rotation (Qwen3), else None
    k_norm: torch.Tensor | None  # [D], same for keys
    o: Linear  # N = H, K = Hq * D
    post_norm: torch.Tensor  # [H], before the MLP
    gate_up: Linear  # N = 2 I: rows of gate, then rows of up; K = H
    down: Linear  # N = H, K = I
    window: int | None  # sliding window in tokens (a query sees itself and the window - 1 before), or None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        norms = (self.input_norm, self.post_norm, self.q_norm, self.k_norm)
        linears = (self.qkv, self.o, self.gate_up, self.down)
        return sum(n.nbytes for n in norms if n is not None) + sum(w.nbytes for w in linears)


class LayersOnDisk(Sequence[LayerWeights]):
    """Layers that are read whenever they are asked for; none is held. For models that do not fit in memory.

    Args:
        read: index → the layer.

    Attributes:
        seen_bytes: index → bytes, of layers read so far.
    """

    def __init__(self, read: Callable[[int], LayerWeights], count: int) -> None:
        self._read = read
        self._count = count
        self.seen_bytes: dict[int, int] = {}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> LayerWeights: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerWeights]: ...
    def __getitem__(self, index: int | slice) -> LayerWeights | Sequence[LayerWeights]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        layer = self._read(index % self._count)
        self.seen_bytes[index % self._count] = layer.nbytes
        return layer


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """Everything a forward pass reads. `head` may share memory with `embedding` (tied and not quantised)."""

    embedding: torch.Tensor  # [V, H], the model's type
    layers: Sequence[LayerWeights]
    final_norm: torch.Tensor  # [H]
    head: Linear  # N = V, K = H
    inv_freq: torch.Tensor  # float32 [D / 2]: rotary frequencies after scaling, radians per position

    @property
    def nbytes(self) -> int:
        """Bytes held in memory: a tied head that shares the embedding's memory counts once, layers on disk do not."""
        total = self.embedding.nbytes + self.final_norm.nbytes + self.inv_freq.nbytes
        if not (
            isinstance(self.head, DenseWeight) and self.head.weight.data_ptr() == self.embedding.data_ptr()
        ):
            total += self.head.nbytes
        return total + sum(
            () if isinstance(self.layers, LayersOnDisk) else (layer.nbytes for layer in self.layers)
        )


class Decoder:
    """Runs a step on torch's own operators, one by one. Stateless: the KV-cache belongs to the caller.

    Args:
        spec: the architecture.
        weights: all on `device`, dense ones in `dtype`.
    """

    def __init__(
        self, spec: ModelSpec, weights: DecoderWeights, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.device = device
        self.dtype = dtype
        self.weight_bytes = weights.nbytes

    @torch.inference_mode()
    def forward(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        """Compute a step: writes the KV of its tokens, returns float32 logits [R, V] of the wanted rows."""
        hidden_TH = self._body(batch, kv)
        rows_RH = hidden_TH.index_select(0, batch.logit_rows_R)
        rows_RH = stock.rms_norm(rows_RH, self.weights.final_norm, self.spec.rms_norm_eps)
        return linear(rows_RH, self.weights.head).float()

    def _body(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        spec, eps = self.spec, self.spec.rms_norm_eps
        cos, sin = cos_sin(batch.positions_T, self.weights.inv_freq)
        slots_T = batch.slot_mapping_T.long()
        x_TH = torch.nn.functional.embedding(batch.token_ids_T, self.weights.embedding)
        for weights, cache in zip(self.weights.layers, kv.layers, strict=True):
            qkv = linear(stock.rms_norm(x_TH, weights.input_norm, eps), weights.qkv)
            x_TH = x_TH + linear(self._attention(qkv, weights, cache, batch, slots_T, cos, sin), weights.o)
            gate_up = linear(stock.rms_norm(x_TH, weights.post_norm, eps), weights.gate_up)
            x_TH = x_TH + linear(stock.silu_mul(gate_up), weights.down)
        assert len(kv.layers) == spec.num_layers, "the KV-cache was made for another model"
        return x_TH

    def _attention(
        self,
        qkv: torch.Tensor,
        weights: LayerWeights,
        cache: KVLayer,
        batch: Batch,
        slots_T: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        spec = self.spec
        heads_THD = qkv.view(qkv.shape[0], -1, spec.head_dim)
        rotated, v_THD = torch.split(
            heads_THD, [spec.num_heads + spec.num_kv_heads, spec.num_kv_heads], dim=1
        )
        if weights.q_norm is not None and weights.k_norm is not None:
            q_THD, k_THD = torch.split(rotated, [spec.num_heads, spec.num_kv_heads], dim=1)
            q_THD = stock.rms_norm(q_THD, weights.q_norm, spec.rms_norm_eps)
            rotated = torch.cat((q_THD, stock.rms_norm(k_THD, weights.k_norm, spec.rms_norm_eps)), dim=1)
        rotated = stock.rope(rotated, cos, sin)
        q_THD, k_THD = torch.split(rotated, [spec.num_heads, spec.num_kv_heads], dim=1)
        stock.write_kv(k_THD, v_THD, cache.k, cache.v, slots_T, cache.k_scale, cache.v_scale)
        out_THD = stock.paged_attention(
            q_THD,
            cache.k,
            cache.v,
            batch.query_start,
            batch.context_lens_S,
            batch.block_tables_SM,
            window=weights.window,
            k_scale=cache.k_scale,
            v_scale=cache.v_scale,
            contiguous=batch.contiguous,
        )
        return out_THD.flatten(1)


def linear(x: torch.Tensor, weight: Linear) -> torch.Tensor:
    """A linear layer, whatever its format."""
    if isinstance(weight, Int8Weight):
        operator = stock.int8_linear if weight.dynamic_activations else stock.int8_weight_only_linear
        return operator(x, weight.q, weight.scale, weight.bias)
    if isinstance(weight, Fp8Weight):
        return stock.fp8_linear(x, weight.q, weight.scale, weight.bias)
    if isinstance(weight, GroupedWeight):
        return stock.grouped_linear(x, weight.q, weight.scale, weight.minimum, weight.zero, weight.bias)
    return stock.dense_linear(x, weight.weight, weight.bias)
