"""Scales, smoothing, error compensation and bit layouts, against what they promise and against other implementations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from inferoptim.build.quantise import group_size_for
from inferoptim.build.writer import ShardWriter
from inferoptim.quant import gptq, smooth
from inferoptim.quant.checkpoint import QuantScheme, dequantised, joined, read_linear, scheme_from_config
from inferoptim.quant.formats import DenseWeight, GroupedWeight
from inferoptim.quant.grid import FP8, INT4, INT8, encode, round_trip
from inferoptim.quant.groups import quantize_groups
from inferoptim.quant.observers import affine_scales, tensor_scale, weight_scales
from inferoptim.quant.packing import pack_rows, unpack_rows


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", [INT8, INT4, FP8], ids=lambda g: g.name)
def test_mse_scales_never_lose_to_max_scales(grid: object) -> None:
    weight = random(16, 96)
    weight[3, 5] = 40.0  # an outlier that `max` spends the grid on
    errors = {}
    for observer in ("max", "mse"):
        scale = weight_scales(weight, grid, observer, group_size=32)  # type: ignore[arg-type]
        errors[observer] = (round_trip(weight, scale, grid) - weight).square().sum()  # type: ignore[arg-type]
    assert errors["mse"] <= errors["max"]
    if grid is INT4:
        assert errors["mse"] < 0.95 * errors["max"]


def test_a_row_of_zeros_has_scale_zero_and_stays_zero() -> None:
    weight = torch.zeros(2, 32)
    for observer in ("max", "percentile", "mse"):
        scale = weight_scales(weight, INT8, observer)  # type: ignore[arg-type]
        assert not scale.any()
        assert not round_trip(weight, scale, INT8).any()
    assert tensor_scale(weight, FP8, "mse") == 0


def test_percentile_scale_ignores_the_outlier_that_max_follows() -> None:
    x = random(10_000)
    x[0] = 1000.0
    assert tensor_scale(x, INT8, "max") == pytest.approx(1000 / 127)
    assert tensor_scale(x, INT8, "percentile") < 10 / 127


def test_smoothing_factors_leave_the_product_as_it_was() -> None:
    x, weight = random(64, 48), random(20, 48, seed=1)
    x[:, 7] *= 60
    s, alpha = smooth.best_factors(x, weight, INT8, smooth.int8_inputs)
    assert alpha > 0, "an activation outlier is what smoothing is for"
    torch.testing.assert_close((x / s) @ (weight * s).T, x @ weight.T, rtol=1e-4, atol=1e-3)


def test_smoothing_lowers_the_error_of_a_quantised_product_with_outliers() -> None:
    x, weight = random(64, 48), random(20, 48, seed=1)
    x[:, 7] *= 60
    exact = x @ weight.T

    def error(factors: torch.Tensor) -> float:
        scaled = weight * factors
        rounded = round_trip(scaled, weight_scales(scaled, INT8, "max"), INT8)
        return float((smooth.int8_inputs(x / factors) @ rounded.T - exact).norm())

    s, _ = smooth.best_factors(x, weight, INT8, smooth.int8_inputs)
    assert error(s) < 0.6 * error(torch.ones(48))


def test_gptq_beats_rounding_on_correlated_inputs() -> None:
    mixing = random(96, 96, seed=2)
    x, weight = random(512, 96) @ mixing, random(24, 96, seed=1)
    scale = weight_scales(weight, INT4, "mse", group_size=32)
    rounded = encode(weight, scale, INT4).float()
    compensated = gptq.compensate(weight, scale, gptq.compensation(x, x), INT4)
    assert compensated.min() >= -8
    assert compensated.max() <= 7

    def error(q: torch.Tensor) -> float:
        left = (q.view(24, 3, 32) * scale[..., None]).flatten(1)
        return float((x @ (left - weight).T).norm())

    assert error(compensated) < 0.8 * error(rounded)


def test_a_moved_weight_makes_up_for_inputs_that_are_not_the_exact_ones() -> None:
    mixing = random(96, 8, seed=2)
    exact = random(512, 8) @ mixing.T + 0.05 * random(512, 96, seed=3)
    got, weight = exact * (1 + 0.5 * random(96, seed=4)), random(24, 96, seed=1)
    moved = gptq.compensation(got[:256], exact[:256]).moved(weight)

    def error(w: torch.Tensor) -> float:  # on tokens that it was not fitted to
        return float((got[256:] @ w.T - exact[256:] @ weight.T).norm())

    assert error(moved) < 0.5 * error(weight)
    torch.testing.assert_close(gptq.compensation(exact, exact).moved(weight), weight)


def test_gptq_survives_channels_that_no_token_used() -> None:
    x = random(16, 32)  # fewer tokens than channels, and two that are dead
    x[:, :2] = 0
    weight = random(8, 32, seed=1)
    scale = weight_scales(weight, INT4, "max")
    assert torch.isfinite(gptq.compensate(weight, scale, gptq.compensation(x, x), INT4)).all()


def test_zero_points_fit_groups_that_lie_to_one_side_of_zero() -> None:
    weight = random(8, 64) * 0.1
    weight[:, :32] += 0.5
    scale, zero = affine_scales(weight, INT4, "mse", group_size=32)
    q = encode(weight, scale, INT4, zero).float().view(8, 2, 32)
    left = ((q - zero[..., None]) * scale[..., None]).flatten(1)
    symmetric = round_trip(weight, weight_scales(weight, INT4, "mse", group_size=32), INT4)
    assert (left - weight).norm() < 0.8 * (symmetric - weight).norm()


def test_shards_are_safetensors_that_others_read(tmp_path: Path) -> None:
    tensors = {
        "a": random(3, 5).bfloat16(),
        "b": torch.arange(7, dtype=torch.int8),
        "c": random(4).to(torch.float8_e4m3fn),
        "d": torch.tensor([1 << 40]),
    }
    writer = ShardWriter(tmp_path, shard_bytes=40)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    *shards, index = writer.close()
    assert len(shards) > 1
    weight_map = json.loads((tmp_path / index).read_text())["weight_map"]
    for name, tensor in tensors.items():
        read = load_file(tmp_path / weight_map[name])[name]
        assert read.dtype == tensor.dtype
        assert torch.equal(read.float(), tensor.float())
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*shards, index])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 70), st.sampled_from([4, 8]), st.integers(0, 9))
def test_packing_round_trips_and_is_compressed_tensors_layout(n: int, k: int, bits: int, seed: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    generator = torch.Generator().manual_seed(seed)
    half = 1 << (bits - 1)
    q = torch.randint(-half, half, (n, k), generator=generator, dtype=torch.int8)
    packed = pack_rows(q, bits)
    assert torch.equal(unpack_rows(packed, bits, k), q)
    assert torch.equal(packed, pack_to_int32(q, bits))


def pack_words(values: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """The definition, bit by bit: nibble i of a word holds element order[i] of its eight."""
    words = torch.zeros(values.shape[0], values.shape[1] // 8, dtype=torch.int64)
    for row in range(values.shape[0]):
        for word in range(words.shape[1]):
            for i, element in enumerate(order):
                words[row, word] |= int(values[row, word * 8 + element]) << (4 * i)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def test_awq_weights_are_read_by_their_definition() -> None:
    n, k, group = 16, 32, 16
    generator = torch.Generator().manual_seed(5)
    q_KN = torch.randint(0, 16, (k, n), generator=generator)
    zeros = torch.randint(0, 16, (k // group, n), generator=generator)
    scales = torch.rand(k // group, n, generator=generator)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    tensors = {
        "m.qweight": pack_words(q_KN, order),
        "m.qzeros": pack_words(zeros, order),
        "m.scales": scales,
    }
    linear = read_linear(
        "m", QuantScheme("awq", 4), tensors, tensors.__getitem__, shape=(n, k), dtype=torch.float32
    )
    assert isinstance(linear, DenseWeight)
    wide = (q_KN - zeros.repeat_interleave(group, 0)) * scales.repeat_interleave(group, 0)
    torch.testing.assert_close(linear.weight, wide.T.float())


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_checkpoints_are_read_by_their_definition(act_order: bool) -> None:
    n, k, group = 8, 32, 16
    generator = torch.Generator().manual_seed(6)
    q_KN = torch.randint(0, 16, (k, n), generator=generator)
    zeros = torch.randint(1, 16, (k // group, n), generator=generator)
    scales = torch.rand(k // group, n, generator=generator)
    g_idx = torch.arange(k) // group
    if act_order:
        g_idx = g_idx[torch.randperm(k, generator=generator)]
    plain = tuple(range(8))
    tensors = {
        "m.qweight": pack_words(q_KN.T.contiguous(), plain).T.contiguous(),
        "m.qzeros": pack_words(zeros - 1, plain),
        "m.scales": scales,
        "m.g_idx": g_idx.to(torch.int32),
    }
    scheme = scheme_from_config({"quantization_config": {"quant_method": "gptq", "bits": 4}})
    assert scheme is not None
    linear = read_linear("m", scheme, tensors, tensors.__getitem__, shape=(n, k), dtype=torch.float32)
    assert isinstance(linear, DenseWeight)
    torch.testing.assert_close(linear.weight, ((q_KN - zeros[g_idx]) * scales[g_idx]).T.float())


@pytest.mark.parametrize("layout", ["symmetric", "asymmetric", "gptq", "awq"])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_integers_of_4_bit_checkpoints_are_kept_where_asked_for(layout: str, group: int) -> None:
    n, k = 16, 256
    generator = torch.Generator().manual_seed(7)
    q = torch.randint(-8, 8, (n, k), generator=generator, dtype=torch.int8)
    zeros = torch.randint(-8, 8, (n, k // group), generator=generator, dtype=torch.int8)
    scales = torch.rand(n, k // group, generator=generator)
    unsigned, order = (q.t() + 8).long(), (0, 2, 4, 6, 1, 3, 5, 7) if layout == "awq" else tuple(range(8))
    if layout in ("gptq", "awq"):
        tensors = {"m.scales": scales.t(), "m.qzeros": pack_words((zeros.t() + 8).long(), order)}
        tensors["m.qweight"] = (
            pack_words(unsigned, order)
            if layout == "awq"
            else pack_words(unsigned.T.contiguous(), order).T.contiguous()
        )
    else:
        tensors = {"m.weight_packed": pack_rows(q, 4), "m.weight_scale": scales}
        if layout == "asymmetric":
            tensors["m.weight_zero_point"] = pack_rows(zeros.t().contiguous(), 4).t()
        else:
            zeros = torch.zeros_like(zeros)
    scheme = QuantScheme(layout if layout in ("gptq", "awq") else "compressed-tensors", 4)  # type: ignore[arg-type]
    dense, kept = (
        read_linear(
            "m", scheme, tensors, tensors.__getitem__, shape=(n, k), dtype=torch.float32, grouped=grouped
        )
        for grouped in (False, True)
    )
    assert isinstance(dense, DenseWeight)
    assert isinstance(kept, GroupedWeight)
    assert kept.group_size == min(group, 64)
    expected = (q.float().reshape(n, -1, group) - zeros[..., None]) * scales[..., None]
    torch.testing.assert_close(dense.weight, expected.flatten(1))
    torch.testing.assert_close(dequantised(kept, torch.float32).weight, expected.flatten(1))


def test_layers_of_different_blocks_are_joined_value_for_value() -> None:
    four, eight = (
        quantize_groups(DenseWeight(random(8, 64)), 4),
        quantize_groups(DenseWeight(random(4, 64)), 8),
    )
    assert four is not None
    assert eight is not None
    both = joined([four, eight], None, torch.float32)
    assert isinstance(both, GroupedWeight)
    assert both.bits == 8
    expected = torch.cat([dequantised(w, torch.float32).weight for w in (four, eight)])
    torch.testing.assert_close(dequantised(both, torch.float32).weight, expected)


def test_block_scaled_fp8_is_read_tile_by_tile() -> None:
    q = random(200, 160).to(torch.float8_e4m3fn)
    scale = torch.rand(2, 2, generator=torch.Generator().manual_seed(3)) + 0.5
    tensors = {"m.weight": q, "m.weight_scale_inv": scale}
    linear = read_linear(
        "m", QuantScheme("fp8"), tensors, tensors.__getitem__, shape=(200, 160), dtype=torch.float32
    )
    assert isinstance(linear, DenseWeight)
    expected = q.float()
    for i in range(2):
        for j in range(2):
            expected[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128] *= scale[i, j]
    torch.testing.assert_close(linear.weight, expected)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "gptq", "bits": 3}, "3 bits"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
    ],
)
def test_an_unknown_method_is_refused_by_name(config: dict[str, object], named: str) -> None:
    from inferoptim.errors import UnsupportedError

    with pytest.raises(UnsupportedError, match=named):
        scheme_from_config({"quantization_config": config})


def test_groups_divide_the_inputs() -> None:
    assert group_size_for(1536, 128) == 128
    assert group_size_for(576, 128) == 64
    assert group_size_for(100, 128) == 4
