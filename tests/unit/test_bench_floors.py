"""Floors by hand: bytes over bandwidth or FLOPs over rate, whichever is longer."""

from __future__ import annotations

import pytest

from inferoptim.bench.floors import Shape, Work, case_floor, decode_step_s
from inferoptim.records.schema import Ceilings, ConfigurationRecord

# 2 layers, hidden 4, 2 heads of 2, 1 KV head, intermediate 8, vocabulary 10
FIELDS = {
    "hidden_size": 4, "intermediate_size": 8, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 2,
    "vocab_size": 10,
}  # fmt: skip
BODY = 2 * (4 * (4 + 2 * 2) + 4 * 4 + 3 * 4 * 8)
HEAD = 40


def config(**settings: object) -> ConfigurationRecord:
    return ConfigurationRecord(
        config_id="c", label="c", target="engine", settings={"dtype": "bfloat16", **settings}
    )


def test_a_decode_step_reads_weights_and_the_kv_of_its_sequences() -> None:
    shape = Shape.of(FIELDS)
    assert shape is not None
    assert (shape.body, shape.head) == (BODY, HEAD)
    memory_bound = Ceilings(memory_read_bytes_per_s=1.0, gemm_flops_per_s={"bfloat16": 1e30, "int8": 1e30})
    kv_token = 2 * 2 * 1 * 2  # K and V, layers, heads, head size
    assert decode_step_s(shape, config(), memory_bound, 3, 5) == pytest.approx(
        2 * (BODY + HEAD) + 3 * 5 * kv_token * 2
    )
    int8 = config(quantization="int8", kv_quantization="int8")
    assert decode_step_s(shape, int8, memory_bound, 3, 5) == pytest.approx((BODY + HEAD) + 3 * 5 * kv_token)
    compute_bound = Ceilings(memory_read_bytes_per_s=1e30, gemm_flops_per_s={"bfloat16": 1.0})
    attention = 4 * 2 * 2 * 2 * 5
    assert decode_step_s(shape, config(), compute_bound, 3, 5) == pytest.approx(
        3 * (2 * (BODY + HEAD) + attention)
    )


def test_a_case_needs_as_many_passes_as_its_longest_answer() -> None:
    shape = Shape.of(FIELDS)
    assert shape is not None
    ceilings = Ceilings(memory_read_bytes_per_s=1.0, gemm_flops_per_s={"bfloat16": 1e30})
    work = [Work(3, 3, 11), Work(3, 3, 1)]  # ten decode steps of the first; the second ends with its prefill
    floor = case_floor(shape, config(), ceilings, work, concurrency=2)
    kv = 10 * (3 + 5.5) * 2 * 2 * 1 * 2 * 2
    assert floor.seconds == pytest.approx(2 * (BODY + HEAD) * 11 + kv)
    halved = case_floor(shape, config(), ceilings, work, concurrency=2, passes_per_token=0.5)
    assert halved.seconds is not None
    assert floor.seconds is not None
    assert halved.seconds < floor.seconds


def test_what_was_not_measured_gives_no_floor() -> None:
    shape = Shape.of(FIELDS)
    assert shape is not None
    assert decode_step_s(shape, config(), Ceilings(), 1, 1) is None
    assert case_floor(shape, config(), Ceilings(), [Work(3, 3, 4)], 1).seconds is None
    assert Shape.of({}) is None


def test_weights_that_fit_the_cache_are_bound_by_the_cache() -> None:
    ceilings = Ceilings(memory_read_bytes_per_s=10.0, cached_read_bytes_per_s=80.0, llc_bytes=1000)
    assert ceilings.read_ceiling(1000) == 80.0
    assert ceilings.read_ceiling(1001) == 10.0
    assert Ceilings().read_ceiling(5) is None
