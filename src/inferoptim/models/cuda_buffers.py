"""Where the activations of a step of the CUDA decoder lie."""

from __future__ import annotations

import torch

from inferoptim.models.spec import ModelSpec

MIN_INT_MM_ROWS = 32  # torch._int_mm wants more than 16 rows


class Buffers:
    """Activations of a step. One set serves all steps: they follow each other on one stream.

    Args:
        tokens: of the largest step.
        kind: the model's type.
        quantised: what products take their inputs in.
    """

    def __init__(
        self, spec: ModelSpec, tokens: int, kind: torch.dtype, quantised: torch.dtype, device: torch.device
    ) -> None:
        rows = max(tokens, MIN_INT_MM_ROWS)
        eight_bit = quantised != kind

        def make(width: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(rows, width, dtype=dtype, device=device)

        def scale() -> torch.Tensor | None:
            return torch.zeros(rows, dtype=torch.float32, device=device) if eight_bit else None

        heads = spec.num_heads * spec.head_dim
        self.x: torch.Tensor = make(spec.hidden_size, kind)
        self.out: torch.Tensor = make(spec.hidden_size, kind)
        self.h: torch.Tensor = make(spec.hidden_size, quantised)
        self.h_dense = make(spec.hidden_size, kind) if eight_bit else self.h  # of products that are not 8-bit
        self.h_scale = scale()
        self.qkv: torch.Tensor = make(heads + 2 * spec.num_kv_heads * spec.head_dim, kind)
        self.attn: torch.Tensor = make(heads, kind)
        self.attn_q = make(heads, quantised) if eight_bit else None
        self.attn_scale = scale()
        self.gate_up: torch.Tensor = make(2 * spec.intermediate_size, kind)
        self.act: torch.Tensor = make(spec.intermediate_size, kind)
        self.act_q = make(spec.intermediate_size, quantised) if eight_bit else None
        self.act_scale = scale()

    def keep(self, rows_R: torch.Tensor) -> None:
        """From here on only these rows, in this order: of the residual and of attention's output; the rest is room."""
        x, attn = self.x.index_select(0, rows_R), self.attn.index_select(0, rows_R)
        vars(self).update(vars(self.first(rows_R.shape[0])))
        self.x, self.attn = x, attn

    def first(self, tokens: int) -> Buffers:
        """Views of the first `tokens` rows."""
        view = Buffers.__new__(Buffers)
        for name, tensor in vars(self).items():
            setattr(view, name, None if tensor is None else tensor[:tokens])
        return view
