"""What the tuner keeps: gains that are more than noise, measured on real steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inferoptim.build.step_bench import Situation, Steps, _batch, _CpuBench
from inferoptim.build.tune_kernels import KernelTrial, Question, Settings, questions, search
from inferoptim.config import EngineConfig
from inferoptim.errors import ConfigError
from inferoptim.kernels import cpu
from tests.tiny import save_tiny_llama, tiny_tokenizer

DECODE, PROMPT = Situation(4, 1, 40), Situation(1, 90, 90)


class Clock:
    """Benches whose steps take what `seconds` says, given their settings and how often they were asked."""

    def __init__(self, seconds: Callable[[Settings, int], float]) -> None:
        self._seconds = seconds
        self.made: list[Settings] = []

    def __call__(self, settings: Settings) -> Any:
        self.made.append(settings)
        times, asked = self._seconds, iter(range(1000))

        class Bench:
            def time(self, situation: Situation) -> float:
                return times(settings, next(asked))

        return Bench()


def trials(clock: Clock, *asked: Question) -> list[KernelTrial]:
    return list(search(asked, clock, {}))


def test_only_a_gain_in_every_round_and_of_a_hundredth_is_kept() -> None:
    times = {None: 1.0, 1: 1.2, 2: 0.995, 3: 0.9, 4: 0.89}
    clock = Clock(lambda settings, _: times[settings.get("block_size")])
    seen = trials(clock, Question("block_size", (1, 2, 3, 4), (DECODE, PROMPT)))
    assert [(t.value, len(t.ratios), t.kept) for t in seen] == [
        (1, 1, False),
        (2, 10, False),
        (3, 10, True),
        (4, 10, True),
    ]
    assert seen[-1].settings == {"block_size": 4}
    assert seen[-1].record()["time_ratio"] == pytest.approx(0.89 / 0.9, abs=1e-3)  # beside the best so far
    assert seen[0].record()["kept"] is False


def test_one_lost_round_shows_that_a_gain_is_noise() -> None:
    clock = Clock(lambda settings, asked: 1.0 if not settings else 1.01 if asked == 7 else 0.8)
    (seen,) = trials(clock, Question("block_size", (32,), (DECODE,)))
    assert (len(seen.ratios), seen.kept, seen.settings) == (8, False, {})


def test_each_question_begins_with_what_the_one_before_left() -> None:
    clock = Clock(lambda settings, _: 0.9 if "few_rows" in settings else 1.0)
    trials(clock, Question("few_rows", (8,), (DECODE,)), Question("block_size", (32,), (DECODE,)))
    assert clock.made == [{}, {"few_rows": 8}, {"few_rows": 8}, {"few_rows": 8, "block_size": 32}]


@pytest.mark.parametrize("longest", [300, 20])
@pytest.mark.parametrize("cuda", [False, True])
def test_what_is_asked_fits_the_batch_and_the_engine_knows_each_name(cuda: bool, longest: int) -> None:
    asked = questions({"block_size": 32}, {"max_batch_size": 6}, cuda=cuda, cores=4, longest=longest)
    assert "block_size" not in {q.name for q in asked}
    for question in asked:
        for value in question.values:
            EngineConfig.create(**{question.name: value})
        for situation in question.situations:
            assert situation.sequences <= 6
            assert 0 < situation.context <= longest
        assert len(set(question.situations)) == len(question.situations)


def test_a_kernel_setting_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="prompt_block"):
        EngineConfig.create(prompt_block=12)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_llama(folder)
    tiny_tokenizer(folder)
    return Steps(folder, {"quantization": "int8", "num_threads": 2})


@pytest.mark.skipif(not cpu.available(), reason="no C++ compiler")
def test_no_kernel_setting_of_a_cpu_changes_a_result(steps: Steps) -> None:
    values: list[Settings] = [
        {},
        {"prompt_rows": 1, "prompt_block": 8},
        {"product_tasks": 7},
        {"block_size": 32},
    ]
    for situation in (DECODE, PROMPT):
        seen = []
        for settings in values:
            bench = steps.bench(settings)
            assert isinstance(bench, _CpuBench)
            assert bench.time(situation) > 0
            batch, kv = bench._ready[situation]
            seen.append(bench._fused.forward(batch, kv))
        for logits in seen[1:]:
            torch.testing.assert_close(logits, seen[0], rtol=0, atol=0)


def test_every_sequence_of_a_timed_step_has_blocks_of_its_own(steps: Steps) -> None:
    batch = _batch(steps._decoder, Situation(3, 1, 40), 16)
    slots = batch.slot_mapping_T.tolist()
    assert slots == [int(batch.block_tables_SM[s, 39 // 16]) * 16 + 39 % 16 for s in range(3)]
    used = batch.block_tables_SM[:, : -(-40 // 16)].flatten().tolist()
    assert len(set(used)) == len(used)


def test_without_the_kernels_that_have_settings_the_tuner_says_so(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    tiny_tokenizer(tmp_path)
    assert "leaves out" in (Steps(tmp_path, {"kernels": "torch"}).why_not() or "")
