"""The gate's arithmetic against figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from inferoptim.bench.plan import QualityPlan
from inferoptim.bench.quality import (
    Comparison,
    compare,
    distribution_record,
    identity_record,
    largest_gap,
    logits_record,
)

PLAN = QualityPlan()


def test_compare_by_hand() -> None:
    # two scored positions, two tokens: p = (3/4, 1/4) then (1/2, 1/2); q = (1/2, 1/2) then (1/4, 3/4)
    reference = np.log(np.array([[0.75, 0.25], [0.5, 0.5], [0.9, 0.1]])) + 7.0  # a shift changes nothing
    found = np.log(np.array([[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]]))
    scored = compare(reference, found, (0, 1, 0))
    assert scored.positions == 2
    assert scored.reference_nll == pytest.approx(math.log(4) + math.log(2))  # tokens 1, then 0
    assert scored.nll == pytest.approx(math.log(2) + math.log(4))
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5) + 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert scored.kl == pytest.approx(kl)
    assert scored.agreements == 1


def comparison(kl: float, agreements: int = 97, nll: float = 300.0) -> Comparison:
    return Comparison(positions=100, reference_nll=300.0, nll=nll, kl=kl * 100, agreements=agreements)


def test_a_lossy_lever_passes_within_all_thresholds_and_fails_beyond_any() -> None:
    good = [comparison(0.01), comparison(0.012), comparison(0.011)]
    stated = QualityPlan(min_top1_agreement=0.9)
    record = distribution_record("c", {"en": good, "fr": good}, stated)
    assert record.passed
    assert record.values["kl_nats"].value == pytest.approx(0.011)
    assert record.values["top1_agreement"].value == pytest.approx(0.97)
    assert set(record.by_language) == {"en", "fr"}
    for bad in (comparison(0.2), comparison(0.01, agreements=70), comparison(0.01, nll=310.0)):
        failed = distribution_record("c", {"en": [bad, bad], "fr": [bad, bad]}, stated)
        assert not failed.passed
        assert "threshold" in failed.detail


def test_top1_agreement_is_reported_and_judged_only_where_a_threshold_is_stated() -> None:
    flat = [comparison(0.01, agreements=85), comparison(0.012, agreements=85)]  # a model of many near-ties
    record = distribution_record("c", {"en": flat}, PLAN)
    assert record.passed
    assert record.values["top1_agreement"].value == pytest.approx(0.85)
    assert "top1_agreement" not in record.threshold


def test_perplexity_ratio_is_of_the_means_and_intervals_resample_texts() -> None:
    record = distribution_record(
        "c", {"en": [comparison(0.01, nll=301.0), comparison(0.01, nll=299.0)]}, PLAN
    )
    ratio = record.values["perplexity_ratio"]
    assert ratio.value == pytest.approx(1.0)
    assert ratio.low < 1 < ratio.high
    assert ratio.n == 2


def test_a_broken_configuration_never_passes() -> None:
    nan = np.full((3, 2), np.nan)
    with np.errstate(invalid="ignore"):
        scored = compare(np.zeros((3, 2)), nan, (0, 1, 0))
    assert not distribution_record("c", {"en": [scored, scored]}, PLAN).passed
    assert not logits_record("c", [largest_gap(np.zeros((3, 2)), nan)], PLAN).passed


def test_identity_forgives_a_near_tie_and_nothing_else() -> None:
    reference, other = [(1, 2, 3, 4)], [(1, 2, 9, 9)]
    assert identity_record("c", reference, reference, {}).passed
    tie = identity_record("c", reference, other, {0: 1e-5})
    assert tie.passed
    assert tie.values["identical_tokens"].value == 0.5
    assert "near-tie" in tie.detail
    wrong = identity_record("c", reference, other, {0: 0.7})
    assert not wrong.passed
    assert "token 3" in wrong.detail
    assert not identity_record("c", reference, other, {0: float("nan")}).passed


def test_a_shorter_answer_is_not_identical() -> None:
    record = identity_record("c", [(1, 2, 3)], [(1, 2)], {0: 5.0})
    assert not record.passed
