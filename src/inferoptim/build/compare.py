"""Same quality? faster? Two sides on the same texts, questions and prompts, with limits that a CI can fail on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from inferoptim.build.paired import PairedAccuracy, compare_answers, detectable_increase
from inferoptim.build.sides import Side
from inferoptim.build.tasks import Task
from inferoptim.errors import DataError
from inferoptim.records.schema import Interval
from inferoptim.records.statistics import paired_interval, rate_interval, ratio_interval

Progress = Callable[[str, int, int], None]


class Limits(BaseModel):
    """What a passing B may lose against A."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    perplexity_increase: float = Field(0.02, ge=0, description="Relative.")
    accuracy_drop: float = Field(0.05, ge=0, le=1, description="In points of 1.")
    speedup: float | None = Field(
        None, gt=0, description="Least output tokens/s of B over A; None: not gated."
    )


class Check(BaseModel):
    """One gated figure."""

    model_config = ConfigDict(frozen=True)

    name: str
    passed: bool
    value: float
    limit: float
    detail: str


class Comparison(BaseModel):
    """What came out. None = not measured."""

    model_config = ConfigDict(frozen=True)

    a: str
    b: str
    tokens: int
    perplexity_a: float
    perplexity_b: float
    perplexity_ratio: Interval
    detectable_perplexity_increase: float
    kl_nats: Interval | None = None
    top1_agreement: Interval | None = None
    top5_overlap: Interval | None = None
    accuracy: dict[str, Any] | None = None
    output_tokens_per_s_a: Interval | None = None
    output_tokens_per_s_b: Interval | None = None
    speedup: Interval | None = None
    cost_a: float | None = Field(
        None, description="Per million output tokens, at the price stated and the rate measured."
    )
    cost_b: float | None = None
    currency: str = ""
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = Field((), description="What to know before trusting the figures.")

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


class Measured(BaseModel):
    """One side's answers, kept when its model is gone."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    name: str
    logprobs: list[list[float]]
    right: list[bool]


def measure(
    side: Side, texts: Sequence[str], tasks: Sequence[Task], progress: Progress | None = None
) -> Measured:
    """Texts and questions through one side."""
    logprobs, right = [], []
    for i, text in enumerate(texts):
        if progress:
            progress(f"{side.name}: texts", i, len(texts))
        logprobs.append(side.text_logprobs(text))
    for i, task in enumerate(tasks):
        if progress:
            progress(f"{side.name}: tasks", i, len(tasks))
        right.append(side.answer_right(task))
    return Measured(name=side.name, logprobs=logprobs, right=right)


def time_sides(
    a: Side, b: Side, prompts: Sequence[str], output_tokens: int, runs: int, progress: Progress | None = None
) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Runs of both sides, a warm-up of each first, then turn by turn, the order of a pair swapped each time."""
    timed: tuple[list[tuple[int, float]], list[tuple[int, float]]] = ([], [])
    for side in (a, b):
        side.time_run(prompts, min(output_tokens, 4))
    for i in range(runs):
        if progress:
            progress("speed", i, runs)
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            timed[which].append((a, b)[which].time_run(prompts, output_tokens))
    return timed


def compare(
    a: Measured,
    b: Measured,
    limits: Limits,
    *,
    speeds: tuple[list[tuple[int, float]], list[tuple[int, float]]] | None = None,
    distribution: Mapping[str, Interval] | None = None,
    price_per_hour: float | None = None,
    currency: str = "",
    notes: Sequence[str] = (),
) -> Comparison:
    """Put two measured sides together.

    Args:
        speeds: from `time_sides`.
        distribution: kl_nats, top1_agreement and top5_overlap where both sides' distributions were had.
        price_per_hour: of the machine that ran both.
        notes: what to know before trusting the figures.

    Raises:
        DataError: the sides cut the texts into different tokens: perplexities per token cannot be compared.
    """
    if any(len(x) != len(y) for x, y in zip(a.logprobs, b.logprobs, strict=True)):
        raise DataError(
            f"{a.name} and {b.name} cut the texts into different tokens: their perplexities are not comparable"
        )
    tokens = np.array([len(x) for x in a.logprobs], float)
    sums_a, sums_b = (np.array([sum(x) for x in side.logprobs]) for side in (a, b))
    increase = (sums_a - sums_b) / tokens
    ratio = paired_interval(lambda w: np.exp(w @ (sums_a - sums_b) / (w @ tokens)), len(tokens), "perplexity")
    detectable = detectable_increase(increase.tolist(), tokens.astype(int).tolist())
    accuracy = compare_answers(a.right, b.right) if len(a.right) > 1 else None
    rates: dict[str, Interval] = {}
    if speeds is not None:
        sides = [([float(n) for n, _ in timed], [s for _, s in timed]) for timed in speeds]
        rates = {
            "output_tokens_per_s_a": rate_interval(*sides[0], "a"),
            "output_tokens_per_s_b": rate_interval(*sides[1], "b"),
            "speedup": ratio_interval(sides[1], sides[0], "speedup"),
        }
    costs = {}
    if price_per_hour is not None and rates:
        costs = {
            f"cost_{side}": price_per_hour / 3600 / rates[f"output_tokens_per_s_{side}"].value * 1e6
            for side in "ab"
        }
    return Comparison(
        a=a.name,
        b=b.name,
        tokens=int(tokens.sum()),
        perplexity_a=float(np.exp(-sums_a.sum() / tokens.sum())),
        perplexity_b=float(np.exp(-sums_b.sum() / tokens.sum())),
        perplexity_ratio=ratio,
        detectable_perplexity_increase=detectable,
        accuracy=None if accuracy is None else _plain(accuracy),
        currency=currency,
        checks=tuple(_checks(limits, ratio, detectable, accuracy, rates.get("speedup"))),
        notes=(*notes, *_too_few(limits, detectable, accuracy)),
        **(distribution or {}),
        **rates,
        **costs,
    )


def _plain(accuracy: PairedAccuracy) -> dict[str, Any]:
    names = ("n", "accuracy_a", "accuracy_b", "only_a", "only_b", "p_value", "detectable_loss")
    return {name: getattr(accuracy, name) for name in names} | {
        "difference": accuracy.difference.model_dump()
    }


def _too_few(limits: Limits, detectable: float, accuracy: PairedAccuracy | None) -> list[str]:
    """A line for each limit that is smaller than the smallest loss that the sample would have shown."""
    lines = []
    if detectable > limits.perplexity_increase:
        lines.append(
            f"the perplexity limit of {limits.perplexity_increase:.2%} is under what this sample would have shown "
            f"({detectable:.2%}): passing it says little; give more texts (--texts)"
        )
    if accuracy is not None and accuracy.detectable_loss > limits.accuracy_drop:
        lines.append(
            f"the accuracy limit of {limits.accuracy_drop:.1%} is under what this sample would have shown "
            f"({accuracy.detectable_loss:.1%}): passing it says little; give more questions (--tasks)"
        )
    return lines


def _checks(
    limits: Limits,
    ratio: Interval,
    detectable: float,
    accuracy: PairedAccuracy | None,
    speedup: Interval | None,
) -> list[Check]:
    increase = ratio.value - 1
    checks = [
        Check(
            name="perplexity increase",
            passed=increase <= limits.perplexity_increase,
            value=increase,
            limit=limits.perplexity_increase,
            detail=f"{increase:+.2%} ({ratio.low - 1:+.2%} … {ratio.high - 1:+.2%}); this sample would have shown {detectable:.2%}",
        )
    ]
    if accuracy is not None:
        drop = accuracy.accuracy_a - accuracy.accuracy_b
        checks.append(
            Check(
                name="accuracy drop",
                passed=drop <= limits.accuracy_drop,
                value=drop,
                limit=limits.accuracy_drop,
                detail=f"{accuracy.accuracy_a:.1%} → {accuracy.accuracy_b:.1%} on {accuracy.n} questions, McNemar p = "
                f"{accuracy.p_value:.2g}; this sample would have shown a loss of {accuracy.detectable_loss:.1%}",
            )
        )
    if limits.speedup is not None and speedup is not None:
        checks.append(
            Check(
                name="speed",
                passed=speedup.value >= limits.speedup,
                value=speedup.value,
                limit=limits.speedup,
                detail=f"{speedup.value:.2f} × ({speedup.low:.2f} … {speedup.high:.2f})",
            )
        )
    return checks
