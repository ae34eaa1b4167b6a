"""The sampler against transformers' logits processors, and speculation against the target's own distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from inferoptim import LLM, EngineConfig, SamplingParams
from inferoptim.engine.sampler import RowContext, adjust, filtered_probabilities
from tests.tiny import save_tiny_llama, tiny_tokenizer

VOCABULARY = 400


def logits_of(seed: int) -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def ours(logits: torch.Tensor, row: RowContext) -> torch.Tensor:
    """Probability of every token."""
    probs, ids = filtered_probabilities(adjust(logits, row), row.sampling)
    return torch.zeros(VOCABULARY, dtype=torch.float64).index_put((ids,), probs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("fields", "warpers"),
    [
        ({"temperature": 0.6}, [TemperatureLogitsWarper(0.6)]),
        ({"top_k": 7}, [TopKLogitsWarper(7)]),
        ({"top_p": 0.85}, [TopPLogitsWarper(0.85)]),
        ({"min_p": 0.08}, [MinPLogitsWarper(0.08)]),
        ({"temperature": 1.4, "top_k": 20}, [TemperatureLogitsWarper(1.4), TopKLogitsWarper(20)]),
        (
            {"temperature": 0.8, "top_k": 30, "top_p": 0.9},
            [TemperatureLogitsWarper(0.8), TopKLogitsWarper(30), TopPLogitsWarper(0.9)],
        ),
        ({"temperature": 0.7, "min_p": 0.02}, [TemperatureLogitsWarper(0.7), MinPLogitsWarper(0.02)]),
        (
            {"repetition_penalty": 1.3, "temperature": 0.9, "top_p": 0.95},
            [RepetitionPenaltyLogitsProcessor(1.3), TemperatureLogitsWarper(0.9), TopPLogitsWarper(0.95)],
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_probabilities_equal_those_of_transformers(
    seed: int, fields: dict[str, object], warpers: list[object]
):
    logits, tokens = logits_of(seed), [3, 17, 17, 250]
    scores = logits[None].double()
    for warper in warpers:
        scores = warper(torch.tensor([tokens]), scores)  # type: ignore[operator]
    row = RowContext(SamplingParams.create(**fields), 0, np.array(tokens), 2)
    torch.testing.assert_close(ours(logits, row), torch.softmax(scores, -1)[0], rtol=1e-5, atol=1e-9)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_llama(folder, initializer_range=0.1)
    tiny_tokenizer(folder)
    return folder


@pytest.mark.parametrize(
    "levers",
    [{"speculative": "prompt-lookup"}, {"speculative": "draft", "draft_model": "self:1"}],
    ids=["prompt-lookup", "draft"],
)
def test_verified_tokens_follow_the_distribution_of_the_target(model: Path, levers: dict[str, object]):
    """The first two tokens of many seeds, the second one proposed and verified: as often as the target says."""
    runs, kept = 1500, [11, 12, 13, 14, 15, 16]
    bias = dict.fromkeys(kept, 60.0)  # a vocabulary of six: 36 paths, each one frequent enough to count
    # every pair of the six occurs, so that prompt lookup always has something to propose
    prompt = [token for a in kept for b in kept for token in (a, b)]
    llm = LLM(
        EngineConfig.create(
            model=str(model), dtype="float32", num_threads=1, max_model_len=96, kernels="torch", **levers
        )
    )
    # speculation at every step, whatever it costs: the length control would switch it off on a model this small
    assert llm.core._speculator is not None
    llm.core._speculator._length.choose = lambda *_: 3  # type: ignore[method-assign]
    samplings = [
        SamplingParams(temperature=0.9, max_tokens=4, seed=seed, logit_bias=bias, ignore_eos=True)
        for seed in range(runs)
    ]
    outputs = [out.token_ids for out in llm.generate([prompt] * runs, samplings)]
    counters = llm.core.counters()
    assert counters["draft_accepted_tokens"] > runs / 10, "too few acceptances to say anything"
    assert counters["draft_accepted_tokens"] < counters["draft_proposed_tokens"], (
        "no rejection to say anything about"
    )

    def target(tokens: list[int]) -> np.ndarray:
        logits = torch.from_numpy(llm.core.logits(tokens)[-1]).double()
        return torch.softmax(logits[kept] / 0.9, -1).numpy()

    expected = {}
    first = target(prompt)
    for a, p_a in zip(kept, first, strict=True):
        second = target([*prompt, a])
        for b, p_b in zip(kept, second, strict=True):
            expected[a, b] = p_a * p_b
    counts = dict.fromkeys(expected, 0)
    for tokens in outputs:
        counts[tokens[0], tokens[1]] += 1
    pairs = [pair for pair in expected if expected[pair] * runs >= 5]
    observed = [counts[pair] for pair in pairs]
    wanted = [expected[pair] * runs for pair in pairs]
    assert len(pairs) > 8
    rare = runs - sum(wanted)
    if rare >= 5:
        observed, wanted = [*observed, runs - sum(observed)], [*wanted, rare]
    else:
        wanted = [w * sum(observed) / sum(wanted) for w in wanted]
    assert chisquare(observed, wanted).pvalue > 1e-3


def test_speculation_changes_no_seeded_sample(model: Path):
    """Stronger than equal distributions: the same seed gives the same tokens, whoever proposed."""
    sampling = SamplingParams(temperature=1.0, top_k=8, seed=3, max_tokens=24, ignore_eos=True)
    prompts = [[7, 8, 9] * 5, [30, 31], [5]]

    def run(**levers: object) -> list[list[int]]:
        config = EngineConfig.create(
            model=str(model), dtype="float32", max_model_len=64, num_threads=1, **levers
        )
        return [out.token_ids for out in LLM(config).generate(prompts, sampling)]

    expected = run()
    assert run(speculative="prompt-lookup") == expected
    assert run(speculative="draft", draft_model="self:1", num_speculative_tokens=3) == expected
    assert run(speculative="draft", draft_model=str(model), num_speculative_tokens=2) == expected
