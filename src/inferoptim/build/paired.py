"""Paired statistics of two sides on the same questions, with what the sample could have shown. NumPy and SciPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inferoptim.records.schema import Interval
from inferoptim.records.statistics import paired_interval

_Z_ONE_SIDED_95, _Z_POWER_80 = 1.6449, 0.8416


@dataclass(frozen=True, slots=True)
class PairedAccuracy:
    """Two sides on the same n questions.

    Attributes:
        accuracy_a, accuracy_b: shares of right answers.
        difference: b − a, bootstrap over questions.
        only_a, only_b: questions that only one side got right.
        p_value: exact McNemar test of "both lose the same questions".
        detectable_loss: smallest loss of accuracy that this sample would have shown (power 80 %, one-sided 5 %).
    """

    n: int
    accuracy_a: float
    accuracy_b: float
    difference: Interval
    only_a: int
    only_b: int
    p_value: float
    detectable_loss: float


def compare_answers(right_a: Sequence[bool], right_b: Sequence[bool]) -> PairedAccuracy:
    """Compare two sides' answers, question by question.

    Sources: McNemar, Psychometrika 12 (1947), the exact binomial form; the detectable difference after Connor,
    Biometrics 43 (1987) with equal discordances: ``(z_0.95 + z_0.8) * sqrt(discordant share / n)``. Where no pair was
    discordant, the share is the 95 % bound 3 / n (the rule of three).
    """
    from scipy.stats import binomtest

    a, b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    if len(a) != len(b) or len(a) < 2:
        raise ValueError("two answers a question, and two questions, are needed")
    n, only_a, only_b = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    discordant = only_a + only_b
    gain = b.astype(float) - a.astype(float)
    return PairedAccuracy(
        n=n,
        accuracy_a=float(a.mean()),
        accuracy_b=float(b.mean()),
        difference=paired_interval(lambda w: w @ gain / w.sum(-1), n, "accuracy"),
        only_a=only_a,
        only_b=only_b,
        p_value=float(binomtest(only_a, discordant).pvalue) if discordant else 1.0,
        detectable_loss=(_Z_ONE_SIDED_95 + _Z_POWER_80) * math.sqrt(max(discordant, 3.0) / n / n),
    )


def detectable_increase(log_ratio_means: Sequence[float], tokens: Sequence[int]) -> float:
    """The smallest relative perplexity increase that texts like these would have shown.

    With power 80 % at a one-sided level of 5 %: ``exp((1.645 + 0.842) * standard error of the mean log-ratio) - 1``,
    the standard error between texts, each weighted by its tokens.
    Source: the usual power formula of a paired test (Cohen, Statistical Power Analysis, 1988, ch. 2).

    Args:
        log_ratio_means: of each text, the mean of log p_a − log p_b over its tokens.
    """
    n = len(log_ratio_means)
    if n < 2:
        return math.inf
    means, counts = np.asarray(log_ratio_means, float), np.asarray(tokens, float)
    weights = counts / counts.sum()
    variance = float((weights**2 * (means - weights @ means) ** 2).sum()) * n / (n - 1)
    return math.expm1((_Z_ONE_SIDED_95 + _Z_POWER_80) * math.sqrt(variance))
