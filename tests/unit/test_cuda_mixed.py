"""Products of several formats side by side in the CUDA step: each gets its inputs in the type that it takes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inferoptim.config import KernelSettings
from inferoptim.kernels import stock
from inferoptim.kernels.reference import quantize_kv
from inferoptim.kernels.triton.elementwise import Scales
from inferoptim.models import cuda, cuda_products
from inferoptim.models.cuda_buffers import Buffers
from inferoptim.models.decoder import linear
from inferoptim.models.load import load_decoder
from inferoptim.quant.formats import DenseWeight, Linear
from inferoptim.quant.fp8 import quantize_linear_fp8
from inferoptim.quant.int8 import quantize_linear
from tests.tiny import save_tiny_llama


def _store(x: torch.Tensor, out: torch.Tensor, scale: torch.Tensor | None) -> None:
    """What a kernel leaves: rounded to 8 bits with a scale a row, or in the model's type."""
    if out.dtype.itemsize > 1:
        out.copy_(x)
        return
    assert scale is not None
    q, s = quantize_kv(x, out.dtype)
    out.copy_(q)
    scale.copy_(s)


def _scaled(x: torch.Tensor, scales: Scales | None) -> torch.Tensor:
    """A product as cuBLAS leaves it, times what the kernel after it multiplies by."""
    return x if scales is None else x * scales[0][:, None] * scales[1]


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor, **given: Any) -> None:
    residual, x = given["residual_TH"], _scaled(x, given["x_scales"])
    if residual is not None:
        residual.add_(x)
        x = residual
    _store(stock.rms_norm(x, weight, eps), out, given["scale_T"])


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("eight_bit", list(product((False, True), repeat=4)))
def test_each_product_gets_its_inputs_in_the_type_that_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eight_bit: tuple[bool, ...], kind: torch.dtype
) -> None:
    save_tiny_llama(tmp_path, head_dim=16, num_hidden_layers=1)
    decoder = load_decoder(tmp_path, device=torch.device("cpu"), dtype=torch.float32)
    (layer,) = decoder.weights.layers
    names = ("qkv", "o", "gate_up", "down")
    weights: dict[str, Linear] = {}
    for name, wanted in zip(names, eight_bit, strict=True):
        dense = getattr(layer, name)
        assert isinstance(dense, DenseWeight)
        if wanted and kind == torch.int8:
            weights[name] = quantize_linear(dense, dynamic_activations=True)
        else:
            weights[name] = quantize_linear_fp8(dense) if wanted else dense
    layer = replace(layer, **weights)
    spec = decoder.spec
    kernels = SimpleNamespace(
        rms_norm=_rms_norm,
        quantize_rows=_store,
        silu_mul=lambda x, out, scale, x_scales: _store(stock.silu_mul(_scaled(x, x_scales)), out, scale),
        scale_int32=lambda x, rows, columns, out: out.copy_(x * rows[:, None] * columns),
    )
    for user in (cuda, cuda_products):
        monkeypatch.setattr(user, "elementwise", kernels)
    step = cuda.CudaDecoder.__new__(cuda.CudaDecoder)
    step.spec, step.dtype, step._settings = spec, torch.float32, KernelSettings()
    step.weights = SimpleNamespace(layers=(layer,))  # type: ignore[assignment]
    step._products = cuda_products.Products(list(weights.values()), torch.float32, torch.device("cpu"))
    assert step._products.activation == (kind if any(eight_bit) else torch.float32)
    buffers = Buffers(spec, 8, torch.float32, step._products.activation, torch.device("cpu")).first(8)
    x = torch.randn(8, spec.hidden_size, generator=torch.Generator().manual_seed(0))
    buffers.x.copy_(x)

    def attend(layer: Any, cache: Any, scales: Any) -> None:
        buffers.attn.copy_(_scaled(buffers.qkv, scales)[:, : buffers.attn.shape[1]])

    rest = step._body(buffers, SimpleNamespace(layers=(None,)), attend)  # type: ignore[arg-type]
    got = buffers.x if rest is None else buffers.x + _scaled(*rest)
    qkv = linear(stock.rms_norm(x, layer.input_norm, spec.rms_norm_eps), layer.qkv)
    x = x + linear(qkv[:, : spec.num_heads * spec.head_dim], layer.o)
    gate_up = linear(stock.rms_norm(x, layer.post_norm, spec.rms_norm_eps), layer.gate_up)
    expected = x + linear(stock.silu_mul(gate_up), layer.down)
    # sums in another order fall to the other side of a rounding edge now and then: an eighth apart in float8
    allowed = 1e-4 if kind == torch.int8 else 1e-2
    assert (got - expected).norm() <= allowed * (expected - x).norm()
