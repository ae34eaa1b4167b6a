"""What does not fit a GPU is refused before it is loaded, with what is missing and what would fit."""

from __future__ import annotations

import pytest
from benchmarks.gpu.shapes import hf_config

from inferoptim.config import EngineConfig
from inferoptim.engine.gpu_memory import check_fits, kv_budget, logit_rows, needs
from inferoptim.errors import CapacityError
from inferoptim.models.spec import spec_from_config
from inferoptim.units import GIB

LLAMA = spec_from_config(hf_config("8b"))
TOKEN = 2 * 32 * 8 * 128 * 2


def config(**fields: object) -> EngineConfig:
    return EngineConfig.create(
        **{"max_model_len": 2304, "max_num_seqs": 256, "kv_budget_bytes": 40 * GIB, **fields}
    )


def test_needs_of_llama_8b() -> None:
    need = needs(LLAMA, config(), 2, TOKEN)
    assert need.weights == pytest.approx(8.03e9 * 2, rel=0.001)
    assert need.kv_cache == 40 * GIB
    assert (
        needs(LLAMA, config(max_num_seqs=2), 2, TOKEN).kv_cache == 2 * 2304 * TOKEN
    )  # no more than rows can use
    assert needs(LLAMA, config(quantization="fp8"), 2, TOKEN).weights == pytest.approx(
        8.03e9 + 1.05e9, rel=0.001
    )


def test_what_fits_passes_and_what_does_not_names_the_way_out() -> None:
    need = needs(LLAMA, config(), 2, TOKEN)
    check_fits(need, need.total, config(), "card")
    with pytest.raises(
        CapacityError, match=r"card has .* are missing; would fit: kv_budget_bytes="
    ) as caught:
        check_fits(need, need.total - 10 * GIB, config(), "card")
    budget = int(str(caught.value).split("kv_budget_bytes=")[1].split(",")[0])
    smaller = config(kv_budget_bytes=budget)
    check_fits(needs(LLAMA, smaller, 2, TOKEN), need.total - 10 * GIB, smaller, "card")
    with pytest.raises(CapacityError, match="quantization=fp8 or int8"):
        check_fits(need, need.total - 5 * GIB, config(), "card")
    with pytest.raises(CapacityError, match="smaller model"):
        check_fits(need, 2 * GIB, config(quantization="fp8"), "card")


def test_without_a_budget_one_sequence_must_fit_and_the_cache_takes_what_is_left() -> None:
    free = config(kv_budget_bytes=None)
    assert needs(LLAMA, free, 2, TOKEN).kv_cache == 2304 * TOKEN
    total = 80 * GIB
    loaded = 60 * GIB  # free once the weights are there
    assert kv_budget(loaded, total, free, GIB) == 60 * GIB - 8 * GIB - GIB  # a tenth of the card stays free
    fuller = config(kv_budget_bytes=None, gpu_memory_utilization=0.95)
    assert kv_budget(loaded, total, fuller, GIB) == 60 * GIB - 4 * GIB - GIB
    assert kv_budget(5 * GIB, total, free, GIB) == 0


def test_other_processes_on_the_card_are_named() -> None:
    need = needs(LLAMA, config(kv_budget_bytes=None), 2, TOKEN)
    with pytest.raises(CapacityError, match=r"held by other processes.*nvidia-smi") as caught:
        check_fits(need, 8 * GIB, config(kv_budget_bytes=None), "card", others_bytes=70 * GIB)
    assert "kv_budget_bytes" not in str(caught.value)  # there is none to lower


def test_speculation_keeps_room_for_the_logits_of_its_proposals() -> None:
    assert logit_rows(config(max_num_seqs=64)) == 64
    assert logit_rows(config(max_num_seqs=8, speculative="prompt-lookup", num_speculative_tokens=4)) == 40
    assert logit_rows(config(max_num_seqs=256, speculative="prompt-lookup")) == 512
    assert logit_rows(config(max_num_seqs=1024, speculative="prompt-lookup")) == 1024
