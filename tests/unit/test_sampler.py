"""The sampler: every parameter does what its name says, and a draw depends on (seed, position) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from inferoptim.config import SamplingParams
from inferoptim.engine.sampler import (
    RowContext,
    adjust,
    filtered_probabilities,
    logprobs_of,
    request_seed,
    sample,
    uniform,
)
from inferoptim.kernels import reference


def context(
    tokens: list[int] | None = None, num_prompt: int = 2, seed: int = 7, **fields: object
) -> RowContext:
    ids = np.array([0, 1] if tokens is None else tokens, dtype=np.int32)
    return RowContext(SamplingParams.create(**fields), seed, ids, num_prompt)


def test_greedy_takes_the_largest_logit():
    logits = torch.randn(5, 100)
    assert sample(logits, [context(temperature=0)] * 5) == logits.argmax(-1).tolist()


def test_draws_follow_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    expected = torch.softmax(logits.double() / 0.7, -1).numpy()
    counts = np.zeros(4)
    for position in range(3000):
        row = context([0] * (position + 1), temperature=0.7)
        counts[sample(logits[None], [row])[0]] += 1
    assert chisquare(counts, expected * counts.sum()).pvalue > 1e-3


def test_draws_do_not_depend_on_the_batch():
    logits = torch.randn(6, 50)
    rows = [context(seed=i, temperature=1.0, top_p=0.9) for i in range(6)]
    alone = [sample(logits[i : i + 1], [rows[i]])[0] for i in range(6)]
    assert sample(logits, rows) == alone
    assert sample(logits.flip(0), rows[::-1]) == alone[::-1]


@given(st.integers(0, 2**64 - 1), st.integers(0, 10_000))
@settings(max_examples=50)
def test_uniform_is_a_function_of_seed_and_position(seed: int, position: int):
    u = uniform(seed, position)
    assert 0 <= u < 1
    assert u == uniform(seed, position)
    assert u != uniform(seed, position + 1)


def test_top_k_keeps_the_k_likeliest():
    logits = torch.randn(100)
    probs, ids = filtered_probabilities(logits, SamplingParams(top_k=5))
    assert set(ids.tolist()) == set(logits.topk(5).indices.tolist())
    assert probs.sum().item() == pytest.approx(1)


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    assert filtered_probabilities(logits, SamplingParams(top_p=0.79))[1].tolist() == [0, 1]
    assert filtered_probabilities(logits, SamplingParams(top_p=0.81))[1].tolist() == [0, 1, 2]
    assert filtered_probabilities(logits, SamplingParams(top_p=0.01))[1].tolist() == [0]


def test_min_p_is_relative_to_the_likeliest():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    assert filtered_probabilities(logits, SamplingParams(min_p=0.29))[1].tolist() == [0, 1, 2]
    assert filtered_probabilities(logits, SamplingParams(min_p=0.31))[1].tolist() == [0, 1]


def test_repetition_penalty_pushes_seen_tokens_down_whatever_their_sign():
    logits = torch.tensor([2.0, -2.0, 1.0])
    out = adjust(logits, context([0, 1], repetition_penalty=2.0))
    assert out.tolist() == [1.0, -4.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 1.0], "the input must not be modified"


def test_presence_and_frequency_count_the_output_only():
    logits = torch.zeros(4)
    out = adjust(logits, context([0, 1, 2, 2, 3], num_prompt=2, presence_penalty=0.5, frequency_penalty=0.25))
    assert out.tolist() == [0.0, 0.0, -1.0, -0.75]


def test_logit_bias_and_bans():
    out = adjust(torch.zeros(3), context(logit_bias={1: 5.0}))
    assert out.tolist() == [0.0, 5.0, 0.0]
    row = RowContext(SamplingParams(temperature=0), 0, np.array([0]), 1, banned=(2,))
    assert sample(torch.tensor([[0.0, 1.0, 9.0]]), [row]) == [1]


def test_logprobs_are_of_the_raw_distribution():
    logits = torch.randn(2, 10)
    expected = torch.log_softmax(logits, -1)
    entries = logprobs_of(logits, [3, 4], 2)
    assert entries[0].logprob == pytest.approx(expected[0, 3].item())
    assert entries[1].top[0] == (expected[1].argmax().item(), pytest.approx(expected[1].max().item()))
    assert len(entries[1].top) == 2


def test_seeds_differ_between_requests_but_not_between_runs():
    unseeded = SamplingParams()
    assert request_seed(unseeded, "a", 0) == request_seed(unseeded, "a", 0)
    assert request_seed(unseeded, "a", 0) != request_seed(unseeded, "b", 0)
    assert request_seed(SamplingParams(seed=5), "a", 0) == request_seed(SamplingParams(seed=5), "b", 1) == 5


def test_a_batch_draws_what_the_definition_draws_row_by_row():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(40, 120, generator=generator) * 3
    kinds: list[dict[str, object]] = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.6, "top_k": 7},
        {"temperature": 1.3, "top_p": 0.7},
        {"temperature": 0.9, "min_p": 0.1},
        {"temperature": 1.1, "top_k": 30, "top_p": 0.8, "min_p": 0.02},
        {"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.4, "presence_penalty": 0.5},
        {"temperature": 0.0, "frequency_penalty": 1.5},
        {"temperature": 1.0, "top_p": 0.001},
        {"temperature": 0.7, "logit_bias": {3: 4.0}, "top_k": 200},
    ]
    rows = [context([i, i + 1, i, 5], seed=i, **kinds[i % len(kinds)]) for i in range(40)]
    expected = []
    for logits_V, row in zip(logits, rows, strict=True):
        adjusted = adjust(logits_V, row)
        if row.sampling.greedy:
            expected.append(int(adjusted.argmax()))
            continue
        s = row.sampling
        probs = torch.softmax(adjusted.double() / s.temperature, -1)
        kept = reference.keep_likeliest(probs, s.top_k, s.top_p, s.min_p)
        expected.append(reference.draw(probs, kept, uniform(row.seed, 4)))
    assert sample(logits, rows) == expected
    assert len(set(expected)) > 20
