"""The rungs of a design, and what becomes of a ladder when one of its levers fails."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from inferoptim.bench.cases import Case
from inferoptim.bench.levers import BY_NAME, Configuration, Machine, configurations, without_lever
from inferoptim.bench.plan import make_plan
from inferoptim.config import SamplingParams
from inferoptim.errors import ConfigError
from inferoptim.targets.base import TargetRequest

CPU = Machine("cpu", native_step=True)
BASE: dict[str, Any] = {"model": "m", "device": "cpu", "max_model_len": 64, "max_num_seqs": 2}


def rungs(machine: Machine = CPU, **fields: Any) -> list[Configuration]:
    return configurations(make_plan({"model": "m", **fields}), machine, BASE)


def test_the_ladder_adds_one_lever_at_a_time_on_top_of_the_one_before() -> None:
    found = rungs()
    assert [r.config_id for r in found[:3]] == [
        "transformers-sequential",
        "transformers-static",
        "engine-off",
    ]
    for below, rung in pairwise(found[2:]):
        assert rung.previous == below.config_id
        assert rung.levers == (*below.levers, rung.added_lever)
        different = {k for k, v in rung.settings.items() if below.settings.get(k) != v}
        assert rung.added_lever is not None
        lever = BY_NAME[rung.added_lever]
        assert different <= set(lever.off) | set(lever.on_cpu or {}) | {"draft_model"}
    assert len(found) >= 7
    assert [r.config_id for r in found if r.is_baseline] == ["transformers-static"]


def test_every_rung_has_the_same_memory_and_rows() -> None:
    for rung in rungs():
        if rung.target == "engine":
            assert (rung.settings["max_model_len"], rung.settings["max_num_seqs"]) == (64, 2)


def test_a_lever_that_this_machine_lacks_is_a_rung_with_a_reason() -> None:
    found = rungs(Machine("cpu", native_step=False, native_step_reason="no C++ compiler"))
    missing = next(r for r in found if r.added_lever == "compiled_step")
    assert missing.unsupported == "no C++ compiler"
    assert all("compiled_step" not in r.levers for r in found if not r.unsupported)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"levers": ["warp"]}, "unknown lever 'warp'"),
        ({"levers": ["chunked_prefill"]}, "needs in_flight_batching"),
        ({"lever_settings": {"speculative": {"wings": 2}}}, "no such engine field"),
        ({"design": "full"}, "at most 64"),
    ],
)
def test_contradictions_are_one_line(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        rungs(**fields)


def test_a_lossy_lever_that_fails_is_left_out_of_the_rungs_above_it() -> None:
    plan = make_plan({"model": "m"})
    ladder = configurations(plan, CPU, BASE)
    failed = next(r for r in ladder if r.added_lever == "quantization")
    after = without_lever(ladder, failed, plan, CPU, BASE)
    assert [r.config_id for r in after] == [r.config_id for r in ladder]
    above = after[after.index(failed) + 1 :]
    assert all("quantization" not in r.levers and r.settings["quantization"] != "int8" for r in above)
    assert above[0].previous == failed.previous
    assert above[1].previous == above[0].config_id
    assert next(r for r in after if r.config_id == failed.config_id).levers == failed.levers


def test_what_needs_the_failed_lever_goes_with_it() -> None:
    plan = make_plan({"model": "m"})
    ladder = configurations(plan, CPU, BASE)
    failed = next(r for r in ladder if r.added_lever == "paged_kv")
    after = without_lever(ladder, failed, plan, CPU, BASE)
    sharing = next(r for r in after if r.added_lever == "prefix_caching")
    assert sharing.unsupported is not None
    assert "paged" in sharing.unsupported
    next_one = next(r for r in after if r.added_lever == "kv_quantization")
    assert next_one.previous == failed.previous
    assert not {"paged_kv", "prefix_caching"} & set(next_one.levers)


def test_4_bit_weights_stand_beyond_int8() -> None:
    ladder = rungs()
    assert [
        r.settings["quantization"] for r in ladder if r.added_lever in ("quantization", "four_bit_weights")
    ] == [
        "int8",
        "int4",
    ]
    failed = next(r for r in ladder if r.added_lever == "four_bit_weights")
    after = without_lever(ladder, failed, make_plan({"model": "m"}), CPU, BASE)
    assert {r.settings["quantization"] for r in after[after.index(failed) + 1 :]} == {"int8"}
    left = rungs(design="leave-one-out")
    assert "four_bit_weights" not in next(r for r in left if r.config_id == "without-quantization").levers
    assert BY_NAME["four_bit_weights"].settings(Machine("cuda", (9, 0), 1)) == "four_bit_weights needs a CPU"


def test_int8_activations_only_where_they_are_scaled_in_groups() -> None:
    def quantised(**fields: Any) -> set[str]:
        found = (
            r for r in rungs(**fields) if "quantization" in r.levers and "four_bit_weights" not in r.levers
        )
        return {r.settings["quantization"] for r in found}

    assert quantised() == {"int8"}
    assert quantised(levers=["quantization"]) == {"int8-weight-only"}
    stated = {"quantization": {"quantization": "int8"}}
    assert quantised(levers=["quantization"], lever_settings=stated) == {"int8"}


def test_other_designs() -> None:
    alone = rungs(design="one-at-a-time")
    assert next(r for r in alone if r.added_lever == "paged_kv").levers == ("paged_kv",)
    left = rungs(design="leave-one-out")
    everything = next(r for r in left if r.config_id == "engine-all")
    without = next(r for r in left if r.config_id == "without-paged_kv")
    assert set(everything.levers) - set(without.levers) == {"paged_kv", "prefix_caching"}
    full = rungs(design="full", levers=["quantization", "paged_kv", "prefix_caching"])
    assert (
        len([r for r in full if r.target == "engine"]) == 1 + 2 + 2 + 1
    )  # prefix caching only with paged KV


def test_shareable_tokens_bound_what_an_empty_prefix_cache_can_find() -> None:
    prompts = [(1, 2, 3, 4), (1, 2, 9), (7, 8), (1, 2, 3, 5)]
    requests = tuple(TargetRequest(str(i), "", p, SamplingParams()) for i, p in enumerate(prompts))
    case = Case("c", 1, False, requests, "")
    assert case.shareable_tokens == 3 + 2 + 0 + 3
