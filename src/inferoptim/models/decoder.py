"""The decoder: one dense transformer for every supported architecture, driven by its `ModelSpec`.

Legend: T tokens of the step · R rows whose logits are wanted · H hidden size · I intermediate size · Hq query heads ·
Hkv KV heads · D head size · V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inferoptim.quant.formats import Linear


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


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """Everything a forward pass reads. `head` may share memory with `embedding` (tied and not quantised)."""

    embedding: torch.Tensor  # [V, H], the model's type
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor  # [H]
    head: Linear  # N = V, K = H
    inv_freq: torch.Tensor  # float32 [D / 2]: rotary frequencies after scaling, radians per position
