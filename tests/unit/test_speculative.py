"""Proposers and the length control."""

from __future__ import annotations

import pytest

from inferoptim.config import SamplingParams
from inferoptim.engine.request import Request, Sequence
from inferoptim.engine.speculative import DraftLength, PromptLookupProposer


def sequence(tokens: list[int]) -> Sequence:
    return Sequence.from_request(Request("r", tuple(tokens), SamplingParams(), 0.0))


def test_prompt_lookup_proposes_what_followed_the_longest_latest_match():
    proposer = PromptLookupProposer()
    assert proposer.propose([sequence([1, 2, 3, 4, 9, 9, 2, 3])], 3) == {"r": [4, 9, 9]}
    proposer.forget("r")
    # 5 5 occurs twice: the later occurrence wins; 7 5 5 (longer) beats both
    assert proposer.propose([sequence([7, 5, 5, 1, 8, 5, 5, 2, 7, 5, 5])], 1) == {"r": [1]}


def test_prompt_lookup_never_matches_the_end_with_itself():
    assert PromptLookupProposer().propose([sequence([1, 2, 3, 4])], 4) == {}


def test_prompt_lookup_follows_a_growing_sequence():
    proposer = PromptLookupProposer()
    s = sequence([1, 2, 3])
    assert proposer.propose([s], 2) == {}
    s.token_ids += [1, 2]
    assert proposer.propose([s], 2) == {"r": [3, 1]}
    s.token_ids += [3, 1]
    assert proposer.propose([s], 2) == {"r": [2, 3]}


def observed(fixed_s: float, per_token_s: float, acceptance: float) -> DraftLength:
    control = DraftLength(5)
    for tokens in [1, 2, 4, 8, 16, 32] * 5:
        control.observe_step(tokens, fixed_s + per_token_s * tokens)
    for _ in range(200):
        control.observe_acceptance(10, round(10 * acceptance))
    return control


def test_free_verification_takes_the_longest_draft():
    assert observed(1.0, 1e-9, 0.8).choose(1) == 5


def test_compute_bound_batches_switch_speculation_off():
    control = observed(1e-3, 1.0, 0.5)
    assert [control.choose(32) for _ in range(20)] == [0] * 20


def test_a_loss_is_probed_again():
    control = observed(1e-3, 1.0, 0.5)
    assert 1 in [control.choose(32) for _ in range(64)]


@pytest.mark.parametrize("acceptance", [0.0, 0.5, 1.0])
def test_length_stays_in_range(acceptance: float):
    control = observed(1.0, 0.1, acceptance)
    assert 0 <= control.choose(8) <= 5
