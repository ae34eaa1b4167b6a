"""What a product is said to cost is what quantising it really costs, and the dearest ones are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inferoptim.build.quantise import LayerWork
from inferoptim.build.recipe import Recipe
from inferoptim.build.sensitivity import Sensitivity, estimated, measure, most_sensitive
from inferoptim.build.source import PRODUCTS, Layer, SourceModel
from inferoptim.kernels import stock
from tests.tiny import save_tiny_llama


def _log_probs(source: SourceModel, x: torch.Tensor) -> torch.Tensor:
    norm = source.tensor("model.norm.weight").float()
    h = stock.rms_norm(x, norm, source.spec.rms_norm_eps)
    return (h @ source.head().float().T).log_softmax(-1)


def _kl_of(source: SourceModel, recipe: Recipe, tokens: torch.Tensor, only: tuple[int, str]) -> float:
    """KL with one product quantised and all others exact, by running the model both ways."""
    exact = other = source.embed(tokens)
    for index in range(source.spec.num_layers):
        layer = source.layer(index)
        following = source.run(layer, exact, layer.exact)
        work = LayerWork(layer, recipe, torch.float32, None)
        source.run(layer, exact, work.product)

        def product(name: str, x: torch.Tensor, layer: Layer = layer, work: LayerWork = work) -> torch.Tensor:
            if (layer.index, name) != only:
                return layer.exact(name, x)
            rounded, round_inputs = work.simulated[name]
            return round_inputs(x) @ rounded.T

        other, exact = source.run(layer, other, product), following
    p, q = _log_probs(source, exact), _log_probs(source, other)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("quantization", ["fp8", "int8"])
def test_the_estimate_is_what_a_run_of_the_model_shows(tmp_path: Path, quantization: str) -> None:
    # weights of this size: a peaked model's KL is no longer quadratic in the error
    save_tiny_llama(tmp_path, initializer_range=0.05)
    source = SourceModel(tmp_path)
    tokens = torch.randint(0, 256, (4, 96), generator=torch.Generator().manual_seed(1))
    recipe = Recipe.model_validate({"quantization": quantization, "compensate": False})
    found = measure(source, recipe, torch.float32, tokens)
    assert [(s.layer, s.product) for s in found] == [(i, name) for i in range(2) for name in PRODUCTS]
    true = {s: _kl_of(source, recipe, tokens, (s.layer, s.product)) for s in found}
    for s in found:
        if s.layer == 1 and s.product != "qkv":  # one position at a time: no errors to add up in attention
            assert s.kl == pytest.approx(true[s], rel=0.3)
        assert true[s] / 4 < s.kl < true[s] * 1.5
        assert s.kl == pytest.approx(s.inputs_kl + s.weights_kl, rel=0.5)


def test_the_dearest_for_their_size_are_kept_within_the_share() -> None:
    found = [
        Sensitivity(0, "qkv", 0.4, 0, 0, elements=100),
        Sensitivity(0, "down", 0.5, 0, 0, elements=500),
        Sensitivity(1, "qkv", 0.1, 0, 0, elements=100),
        Sensitivity(1, "down", 0.01, 0, 0, elements=300),
    ]
    assert most_sensitive(found, 0.0) == set()
    assert most_sensitive(found, 0.25) == {(0, "qkv"), (1, "qkv")}  # down of layer 0 does not fit
    assert most_sensitive(found, 1.0) == {(s.layer, s.product) for s in found}
    assert [t.kl_nats_left for t in estimated(found)] == pytest.approx(
        [1.01, 1.01, 1.01, 0.61, 0.51, 0.51, 0.5]
    )
    assert estimated([]) == ()
