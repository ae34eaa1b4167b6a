"""How many tokens are worth proposing, from what steps cost and proposals yielded so far."""

from __future__ import annotations

_PROBE_EVERY = 32  # least steps between trials of the other answer: speculation judged a loss, or a gain
_PROBE_SHARE = 0.03  # most of the time that goes into trying speculation while it is a loss
_DECAY_COST = 0.95  # weight of the past in what a step costs
_DECAY_OUTDATED = 0.25  # the same, of a past that said more than twice what was seen
_MOST_OF_MEAN = 4.0
_MOST_AT_FIRST = 8.0
_UNSEEN = 2  # verifying steps at the start that are not timed: kernels may be compiled in them
_WORTH = 1.1  # what speculation must promise: what it costs and yields is known to some ten percent
_DECAY = 0.97  # weight of the past in the running estimates


class StepCost:
    """Seconds of one kind of step as a + b·tokens: running least squares over the steps seen.

    One slow step (something compiled, a neighbour on the machine) counts for at most four times the mean.
    """

    def __init__(self) -> None:
        self._w = self._x = self._y = self._xx = self._xy = 0.0

    @property
    def known(self) -> bool:
        """Whether a step of this kind was seen."""
        return self._w > 0

    def observe(self, num_tokens: float, step_s: float) -> None:
        """One step."""
        x, y, kept = float(num_tokens), step_s, _DECAY_COST
        if self.known:
            if 2 * y < self.at(x):
                kept = _DECAY_OUTDATED
            y = min(y, _MOST_OF_MEAN * self._y / self._w)
        self._w = self._w * kept + 1
        self._x = self._x * kept + x
        self._y = self._y * kept + y
        self._xx = self._xx * kept + x * x
        self._xy = self._xy * kept + x * y

    def at(self, num_tokens: float) -> float:
        """Seconds of a step of so many tokens; never falling with their number, never below a tenth of the mean."""
        mean_x, mean_y = self._x / self._w, self._y / self._w
        variance = self._xx / self._w - mean_x**2
        slope = max((self._xy / self._w - mean_x * mean_y) / variance, 0.0) if variance >= 0.25 else 0.0
        return max(mean_y + slope * (num_tokens - mean_x), 0.1 * mean_y)


class DraftLength:
    """How many tokens to propose, from the acceptance and the step costs measured so far.

    Plain steps, steps in a plan of many, and verifying steps are timed apart: on a GPU the first are replays of a graph and the last may
    not be, so that one line through all would hide what verification costs. A proposal's token is accepted with probability alpha
    (running mean), so d proposals yield 1 + alpha + … + alpha^d tokens, for the share of sequences that get any. The length that
    maximises tokens per second is taken; 0 when speculation is a loss, as it is for large batches on a machine already bound
    by arithmetic. Either answer is tried against the other from time to time, a loss no more often than a small share of
    the time pays for.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._accepted, self._proposed = 3.0, 5.0  # prior: 0.6, worth five observations
        self._coverage = 1.0  # share of the sequences asked for that got proposals
        self._plain, self._many, self._verify = StepCost(), StepCost(), StepCost()
        self._verified = 0
        self._proposal_s = 0.0
        self._since_other = 0  # steps since the other answer was last tried
        self._plain_s = 0.0  # seconds without proposals since they were last tried

    def observe_plain(
        self, num_sequences: int, step_s: float, steps: int = 1, *, in_many: bool = False
    ) -> None:
        """`steps` steps without proposals, `step_s` each; `in_many`: of a plan of many."""
        (self._many if in_many else self._plain).observe(num_sequences, step_s)
        self._plain_s += step_s * steps

    def observe_verification(self, num_tokens: int, step_s: float) -> None:
        """A step that verified proposals, `num_tokens` computed in all."""
        self._verified += 1
        if self._verified <= _UNSEEN:
            return
        if (
            not self._verify.known and self._plain.known
        ):  # nothing to compare the first one with but a plain step
            step_s = min(step_s, _MOST_AT_FIRST * self._plain.at(num_tokens))
        self._verify.observe(num_tokens, step_s)

    def observe_acceptance(self, proposed: int, accepted: int) -> None:
        """Of `proposed` tokens the first `accepted` were right; those after the first wrong one were not tried."""
        tried = min(proposed, accepted + 1)
        self._proposed = self._proposed * _DECAY + tried
        self._accepted = self._accepted * _DECAY + accepted

    def observe_proposal(self, num_tokens: int, seconds: float, share: float) -> None:
        """Proposing `num_tokens` a sequence took `seconds`; this share of the sequences got some."""
        if num_tokens:
            self._proposal_s = self._proposal_s * _DECAY + (seconds / num_tokens) * (1 - _DECAY)
            self._coverage = self._coverage * _DECAY + share * (1 - _DECAY)

    def choose(self, num_sequences: int, share: float | None = None) -> int:
        """Proposals a sequence for the next step.

        Args:
            share: of the sequences, that have proposals now; None: as many as lately.
        """
        if share == 0 or not (self._plain.known or self._many.known):
            return 0  # what a step costs without any must be known first
        if not self._verify.known:
            return self._longest
        best = self._best(
            num_sequences, self._coverage if share is None else share, in_hand=share is not None
        )
        self._since_other += 1
        if self._since_other < _PROBE_EVERY or not (best or self._may_try(num_sequences)):
            return best
        self._since_other, self._plain_s = 0, 0.0
        return 0 if best else 1

    def _without(self, n: int) -> float:
        """Seconds of a step without speculation, which proposals must beat: one of many where such were seen."""
        return (self._many if self._many.known else self._plain).at(n)

    def _may_try(self, n: int) -> bool:
        """Whether so much time went by without proposals that a step with one a sequence is a small share of it."""
        extra = self._verify.at(2 * n) - self._without(n)
        return extra <= _PROBE_SHARE * self._plain_s

    def may_soon_pay(self, num_sequences: int) -> bool:
        """Whether verifying would pay if a good many sequences had proposals: one deviation more than they have on average.

        One sequence that quotes for a while has them at every step then, whatever the average says; of many some always do.
        """
        if not self._verify.known or not (self._plain.known or self._many.known):
            return True
        c = self._coverage
        often = min(1.0, c + (c * (1 - c) / num_sequences) ** 0.5)
        return self._best(num_sequences, often, in_hand=False) > 0

    def _best(self, n: int, coverage: float, *, in_hand: bool) -> int:
        """The length that pays most; `coverage` is the chance of a sequence to have proposals, or the share that has."""
        alpha = min(self._accepted / self._proposed, 0.99)
        plain = (self._plain if self._plain.known else self._many).at(n)
        best, best_rate = 0, _WORTH * n / self._without(n)
        with_any = 1.0 if in_hand else 1 - (1 - coverage) ** n
        served = n * coverage  # of all sequences, over verifying and plain steps
        for d in range(1, self._longest + 1):
            gained = n - served + served * (1 - alpha ** (d + 1)) / (1 - alpha)
            tokens = n + d * served / max(with_any, 1e-9)
            cost = with_any * self._verify.at(tokens) + (1 - with_any) * plain + d * self._proposal_s
            if gained / cost > best_rate:
                best, best_rate = d, 1.01 * gained / cost
        return best
