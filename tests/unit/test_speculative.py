"""Proposers and the length control."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from inferoptim.config import SamplingParams
from inferoptim.engine.draft_length import DraftLength, StepCost
from inferoptim.engine.proposers import PromptLookupProposer
from inferoptim.engine.request import Request, Sequence
from inferoptim.engine.speculative import Speculator
from inferoptim.engine.step import ScheduledSequence, StepPlan


def decodes(num_steps: int) -> StepPlan:
    """A plan of one sequence that only decodes."""
    return StepPlan(0, (ScheduledSequence(0, 3, 1, 0, True),), num_steps=num_steps)


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


def drive(
    control: DraftLength, steps: int, sequences: int, plain_s: float, verify: Callable[[int], float], accepted: Callable[[int], int],
) -> tuple[list[int], float]:  # fmt: skip
    """Steps on a machine of these costs; (proposals chosen in each, tokens per second)."""
    chosen, tokens, seconds = [], 0, 0.0
    for _ in range(steps):
        d = control.choose(sequences)
        chosen.append(d)
        gained = accepted(d)
        tokens += sequences * (1 + gained)
        if d:
            took = verify(sequences * (d + 1))
            control.observe_proposal(d, 0.0, 1.0)
            control.observe_verification(sequences * (d + 1), took)
            for _ in range(sequences):
                control.observe_acceptance(d, gained)
        else:
            took = plain_s
            control.observe_plain(sequences, took)
        seconds += took
    return chosen, tokens / seconds


def test_cheap_verification_takes_the_longest_draft():
    chosen, _ = drive(DraftLength(5), 100, 1, 1.0, lambda tokens: 1.0 + 1e-9 * tokens, lambda d: d)
    assert chosen[0] == 0, "what a plain step costs must be seen first"
    assert chosen.count(5) >= 95


def test_verification_that_always_costs_more_than_it_gains_is_switched_off():
    """As on a GPU with 32 requests: a plain step replays a graph, a verifying one takes four times as long at any length."""
    chosen, rate = drive(DraftLength(5), 400, 32, 1e-3, lambda tokens: 4.5e-3, lambda d: min(d, 2))
    assert chosen[50:].count(0) > 0.95 * len(chosen[50:])
    assert rate > 0.8 * 32 / 1e-3
    assert any(chosen[100:]), "a loss is tried again"


def test_trying_a_dear_loss_again_takes_a_small_share_of_the_time():
    """As on a GPU with 128 requests: verifying is a step that no graph holds, twenty times as long as a plain one."""
    _, rate = drive(DraftLength(5), 20_000, 128, 2e-3, lambda tokens: 40e-3, lambda d: 0)
    assert rate > 0.96 * 128 / 2e-3


def test_compute_bound_batches_switch_speculation_off():
    chosen, _ = drive(DraftLength(5), 200, 32, 32e-3, lambda tokens: 1e-3 * tokens, lambda d: min(d, 1))
    assert chosen[50:].count(0) > 0.9 * len(chosen[50:])


def test_it_comes_back_when_verification_becomes_cheap():
    control = DraftLength(5)
    drive(control, 200, 8, 1e-3, lambda tokens: 9e-3, lambda d: d)
    chosen, _ = drive(control, 1000, 8, 1e-3, lambda tokens: 1.1e-3, lambda d: d)
    assert chosen[-100:].count(5) > 90


def test_a_slow_first_verification_does_not_decide():
    control, slow = DraftLength(5), iter([3.0, 2.0, 1.0])
    chosen, _ = drive(control, 400, 1, 1e-3, lambda tokens: next(slow, 1.2e-3), lambda d: d)
    assert chosen[-50:].count(5) > 45


def test_proposals_for_few_sequences_are_weighed_as_few():
    """One sequence in ten gets proposals: the step is dearer for all ten, and yields for one."""
    control = DraftLength(5)
    for _ in range(200):
        control.observe_plain(10, 1.0)
        control.observe_verification(15, 2.0)
        control.observe_proposal(5, 0.0, 0.1)
        control.observe_acceptance(5, 5)
    assert [control.choose(10) for _ in range(20)] == [0] * 20


def test_proposals_in_hand_count_and_not_how_many_there_were_lately():
    """One request that now and then quotes: verified when it does; 32 of them: a loss at any share that will ever be seen."""

    def seen(sequences: int, verify_s: float) -> DraftLength:
        control = DraftLength(10)
        for _ in range(200):
            control.observe_plain(sequences, 0.55)
            control.observe_plain(sequences, 0.44, in_many=True)
            control.observe_verification(6 * sequences, verify_s)
            control.observe_proposal(10, 0.0, 0.1)
            control.observe_acceptance(10, 3)
        return control

    one, many = seen(1, 1.1), seen(32, 3.3)
    assert one.choose(1) == 0, "on average it is a loss"
    assert one.choose(1, 1.0) > 3
    assert one.choose(1, 0.0) == 0
    assert one.may_soon_pay(1)
    assert many.choose(32, 0.2) == 0
    assert not many.may_soon_pay(32)


class Quoting:
    """Proposes only when told to."""

    costs_nothing = True
    quotes = False

    def propose(self, sequences: list[Sequence], max_tokens: int) -> dict[str, list[int]]:
        return {s.request.request_id: [4] * max_tokens for s in sequences} if self.quotes else {}

    def forget(self, request_id: str) -> None: ...


def test_plans_are_short_while_proposals_may_come_and_long_while_they_would_not_pay():
    proposer = Quoting()
    speculator = Speculator(proposer, 10)
    s = sequence([1, 2, 3])
    s.token_ids.append(4)
    s.num_computed = 3
    control = speculator._length
    for _ in range(20):
        control.observe_plain(1, 0.44, in_many=True)
        control.observe_verification(11, 1.1)
        control.observe_acceptance(10, 6)
    assert speculator.propose([s]) == {}
    assert speculator.most_steps(16) == 16, "how fast it goes without speculation is not known yet"
    speculator.observe(decodes(16), 7.0, {})
    assert speculator.propose([s]) == {}
    assert speculator.most_steps(16) == 4
    assert not speculator.may_run_ahead(1)
    for _ in range(50):  # short plans cost more a step, and are not what speculation has to beat
        speculator.observe(decodes(4), 4.0, {})
    assert control._many.at(1) == pytest.approx(0.44, rel=0.02)
    proposer.quotes = True
    assert len(speculator.propose([s])["r"]) > 5
    assert speculator.most_steps(16) == 1
    for _ in range(200):
        control.observe_verification(11, 9.0)
    assert speculator.propose([s]) == {}
    assert speculator.most_steps(16) == 16
    assert speculator.may_run_ahead(1)


def test_a_lasting_loss_is_thought_over_ever_less_often_and_at_once_when_half_have_left():
    speculator = Speculator(Quoting(), 5)
    control = speculator._length
    for _ in range(50):
        control.observe_plain(32, 1.0, 16, in_many=True)
        control.observe_verification(64, 30.0)

    def running(count: int) -> list[Sequence]:
        some = [sequence([1, 2, 3]) for _ in range(count)]
        for s in some:
            s.token_ids.append(4)
            s.num_computed = 3
        return some

    def ahead(count: int) -> int:
        """Plans launched ahead between this thought and the next."""
        assert speculator.propose(running(count)) == {}
        return next(n for n in range(1000) if not speculator.may_run_ahead(count))

    assert [ahead(32) for _ in range(6)] == [7, 15, 31, 63, 127, 127]
    speculator.propose(running(32))
    assert speculator.may_run_ahead(17)
    assert not speculator.may_run_ahead(16)
    assert ahead(16) == 7


@pytest.mark.parametrize("acceptance", [0, 3, 5])
def test_length_stays_in_range(acceptance: int):
    chosen, _ = drive(
        DraftLength(5), 50, 8, 1.0, lambda tokens: 1.0 + 0.1 * tokens, lambda d: min(d, acceptance)
    )
    assert all(0 <= d <= 5 for d in chosen)


def test_a_step_of_few_tokens_is_never_thought_free():
    """A line through a cheap step and dear ones falls below zero before one token, and a rate was divided by that."""
    cost = StepCost()
    for tokens, seconds in ((6, 0.001), (12, 0.010), (14, 0.013)):
        cost.observe(tokens, seconds)
    assert 0 < cost.at(1) <= cost.at(6) < cost.at(12)
