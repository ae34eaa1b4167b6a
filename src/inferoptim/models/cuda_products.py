"""Products of a GPU's steps that go through cuBLAS, by the format of their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inferoptim.kernels.triton import elementwise
from inferoptim.kernels.triton.elementwise import Scales
from inferoptim.models.cuda_buffers import MIN_INT_MM_ROWS
from inferoptim.quant.formats import DenseWeight, Fp8Weight, Int8Weight, Linear

_FP8_SHRINK = 4096.0  # a power of 2 that keeps unscaled products of float8 values within float16


class Products:
    """What cuBLAS computes of one model.

    Args:
        linears: of all layers; an artefact may leave any of them in the model's type beside 8-bit ones.
        dtype: the model's type.
    """

    def __init__(self, linears: Sequence[Linear], dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._one = torch.ones((), dtype=torch.float32, device=device)
        self._shrink = torch.full((), 1 / _FP8_SHRINK, dtype=torch.float32, device=device)
        self._columns = {id(w): w.scale * _FP8_SHRINK for w in linears if isinstance(w, Fp8Weight)}
        # the type of the inputs of the 8-bit products, or the model's where there are none
        self.activation = next((kind for w in linears if (kind := self.takes(w)) != dtype), dtype)

    def takes(self, weight: Linear) -> torch.dtype:
        """The type of its inputs."""
        return activation_dtype(weight, self._dtype)

    def compute(
        self, x: torch.Tensor, x_scale: torch.Tensor | None, weight: Linear, out: torch.Tensor
    ) -> Scales | None:
        """``out = x @ weight.T`` without the bias (only QKV has one, and `rope_write` adds it).

        Returns:
            What the next kernel has to multiply `out` by: cuBLAS takes a scale a tensor faster than a scale a row, and
            the kernel that follows reads every element anyway. The head is never float8, so it has no next kernel.
        """
        if isinstance(weight, DenseWeight):
            torch.mm(x, weight.weight.t(), out=out)
        elif isinstance(weight, Fp8Weight):
            assert x_scale is not None
            torch._scaled_mm(
                x, weight.q.t(), scale_a=self._shrink, scale_b=self._one, out_dtype=out.dtype, use_fast_accum=True,
                out=out,
            )  # fmt: skip
            return x_scale, self._columns[id(weight)]
        elif isinstance(weight, Int8Weight) and weight.dynamic_activations:
            assert x_scale is not None
            rows = x.shape[0]
            if rows < MIN_INT_MM_ROWS:
                x = torch.as_strided(x, (MIN_INT_MM_ROWS, x.shape[1]), x.stride())
            product = torch._int_mm(x, weight.q.t())
            elementwise.scale_int32(product[:rows], x_scale, weight.scale, out)
        else:
            assert isinstance(weight, Int8Weight), "groups are refused when a model is loaded for a GPU"
            torch.mm(x, weight.q.to(x.dtype).t(), out=out)
            out.mul_(weight.scale)
        return None


def activation_dtype(weight: Linear, kind: torch.dtype) -> torch.dtype:
    """What the inputs of a product are given in."""
    if isinstance(weight, Fp8Weight):
        return torch.float8_e4m3fn
    if isinstance(weight, Int8Weight) and weight.dynamic_activations:
        return torch.int8
    return kind


def parts(weight: Linear) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(elements [N, K], scale [N], bias [N])."""
    if isinstance(weight, DenseWeight):
        return weight.weight, None, weight.bias
    return weight.q, weight.scale, weight.bias
