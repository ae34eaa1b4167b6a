"""The native step gives the same bits on one thread and on several, for short steps and long ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from inferoptim import LLM, EngineConfig, SamplingParams
from inferoptim.engine.runner import Runner
from inferoptim.engine.step import StepPlan, StepResult
from tests.tiny import save_tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    # widths that differ from product to product: rows prepared for one product would overlap those of another
    save_tiny_llama(folder, max_position_embeddings=512, intermediate_size=416, num_hidden_layers=4)
    tiny_tokenizer(folder)
    return folder


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [("float32", "none"), ("bfloat16", "none"), ("float32", "int8"), ("float32", "int8-weight-only")],
)
def test_threads_change_no_bit(model: Path, dtype: str, quantization: str):
    def build(threads: int) -> LLM:
        return LLM(
            EngineConfig.create(
                model=str(model),
                dtype=dtype,
                quantization=quantization,
                kernels="native",
                num_threads=threads,
            )
        )

    one, three = build(1), build(3)
    generator = torch.Generator().manual_seed(1)
    for length in (
        1,
        5,
        40,
        143,
        400,
    ):  # below 48 tokens a thread the threads share rows, above each has its own
        tokens = torch.randint(3, 250, (length,), generator=generator).tolist()
        expected = one.core.logits(tokens)
        for _ in range(4):  # threads drift apart by chance
            np.testing.assert_array_equal(three.core.logits(tokens), expected)


def watch(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps of every plan that the runner is given, as they come."""
    steps: list[int] = []
    execute = llm.core._runner.execute

    def noted(plan: StepPlan) -> StepResult:
        steps.append(plan.num_steps)
        return execute(plan)

    monkeypatch.setattr(llm.core._runner, "execute", noted)
    return steps


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_several_steps_in_one_call_give_the_tokens_of_single_steps(
    model: Path, monkeypatch: pytest.MonkeyPatch, prefix_caching: bool
):
    """Of sequences that end apart, wait for a row, stop early, or share a prefix with one that ended in the middle."""
    shared = [7, 9, 11, 13, 15, 17, 19, 21, 23]
    prompts = [[5, 8], shared, list(range(30, 61)), [*shared, 40], [*shared, 41, 42]]
    lengths = (23, 4, 17, 9, 1)
    answers = []
    for steps in (1, 5):
        monkeypatch.setattr(Runner, "burst_steps", steps)
        llm = LLM(
            EngineConfig.create(
                model=str(model),
                dtype="float32",
                quantization="int4",
                kernels="native",
                num_threads=2,
                max_num_seqs=3,
                block_size=4,
                prefix_caching=prefix_caching,
            )
        )
        longest = watch(llm, monkeypatch)
        stop = answers[0][2][11] if answers else None
        found = []
        for _ in range(2):  # again, over what the first round left in the cache
            sampling = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in lengths]
            found = [o.token_ids for o in llm.generate(prompts, sampling)]
            answers.append(found)
        if stop is not None:
            once = SamplingParams(temperature=0, max_tokens=17, ignore_eos=True, stop_token_ids=(stop,))
            ids = llm.generate([prompts[2]], once)[0].token_ids
            assert ids == found[2][: found[2].index(stop) + 1]
        assert max(longest) == steps
        llm.core.check()
    assert all(a == answers[0] for a in answers)
