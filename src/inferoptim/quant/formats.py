"""How the weight of a linear layer is held in memory. Plain values: kernels read them, nobody writes to them.

Legend: N output features · K input features · G groups of input features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """A linear layer in the model's own type: ``y = x @ weight.T + bias``."""

    weight: torch.Tensor  # [N, K], float32, bfloat16 or float16; contiguous
    bias: torch.Tensor | None = None  # [N], same type

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


@dataclass(frozen=True, slots=True)
class _ByChannel:
    """Elements of a byte, symmetric, one scale per output channel: ``weight ~= q * scale[:, None]``."""

    q: torch.Tensor  # [N, K]; contiguous
    scale: torch.Tensor  # float32 [N] = max|row| / largest element
    bias: torch.Tensor | None  # [N], the model's type

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.q.shape[0], self.q.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return self.q.nbytes + self.scale.nbytes + (0 if self.bias is None else self.bias.nbytes)


@dataclass(frozen=True, slots=True)
class Int8Weight(_ByChannel):
    """A linear layer in int8, elements in [-127, 127]."""

    dynamic_activations: bool  # True: inputs are quantised per token (W8A8); False: weight-only (W8A16)


@dataclass(frozen=True, slots=True)
class Fp8Weight(_ByChannel):
    """A linear layer in float8_e4m3fn; its inputs are quantised per token."""


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """A linear layer in groups of input channels: ``weight = scale * (q - zero) + minimum``, 4 or 8 bits an element.

    Its inputs are quantised to int8, one scale for each token and group. What GGUF files call Q4_0, Q4_1 and Q8_0, and
    the integers of 4-bit checkpoints. An element takes a byte here; the native kernels pack it to its `bits`.
    """

    q: torch.Tensor  # uint8 [N, K], below 2^bits; contiguous
    scale: torch.Tensor  # float16 or float32 [N, G]
    minimum: torch.Tensor | None  # same type and shape as scale; None: all zero
    zero: int
    bits: int  # 4 or 8
    bias: torch.Tensor | None = None  # [N], the model's type

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.q.shape[0], self.q.shape[1]

    @property
    def group_size(self) -> int:
        """Input channels in a group: K / G."""
        return self.q.shape[1] // self.scale.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        tensors = (self.q, self.scale, self.minimum, self.bias)
        return sum(t.nbytes for t in tensors if t is not None)


Linear = DenseWeight | Int8Weight | Fp8Weight | GroupedWeight
