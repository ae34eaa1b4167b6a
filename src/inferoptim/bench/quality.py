"""The quality gate's arithmetic: how far a configuration's output is from the reference, and whether that passes.

Lossy levers are judged on the distribution of the next token over shipped English and French text; the texts are
the units that intervals resample. Lossless levers are judged on the very tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferoptim.bench import corpus
from inferoptim.bench.plan import QualityPlan
from inferoptim.bench.traffic import TokenizerLike
from inferoptim.errors import ConfigError
from inferoptim.records.schema import Interval, QualityRecord
from inferoptim.records.statistics import paired_interval

Array = NDArray[Any]
NEAR_TIE = (
    1e-3  # logits; two float32 summation orders differ by less, so a gap below this may fall either way
)


# A GPU computes in 16 bits, and every batch size rounds in its own way: there a token is right when the float32 reference, given
# the same text, has it this close to its likeliest one, as a share of the largest logit.
NEAR_TIE_16_BIT = 0.03
MAX_KERNEL_LOGIT_ERROR = 0.03  # ‖logits − float32 logits‖ / ‖float32 logits‖ of 16-bit kernels


@dataclass(frozen=True, slots=True)
class Comparison:
    """One text under the reference and under a configuration: sums over its scored positions."""

    positions: int
    reference_nll: float  # sum of −log p(next token), nats
    nll: float
    kl: float  # sum of KL(reference ‖ configuration), nats
    agreements: int  # positions with the same likeliest token


@dataclass(frozen=True, slots=True)
class Choices:
    """One answer as the reference judges it, each token given the ones before."""

    tokens: int
    same: int  # the reference's own choice
    worst_gap: float  # largest (maximum − chosen logit) / largest logit


def scored_texts(
    tokenizer: TokenizerLike, plan: QualityPlan, context: int
) -> dict[corpus.Language, list[tuple[int, ...]]]:
    """Consecutive pieces of the shipped prose, `chunk_tokens` each, at least two of each language.

    Raises:
        ConfigError: the shipped text is shorter than `tokens_per_language` asks.
    """
    length = min(plan.chunk_tokens, context)
    count = plan.tokens_per_language // plan.chunk_tokens
    out: dict[corpus.Language, list[tuple[int, ...]]] = {}
    for language in corpus.LANGUAGES:
        ids = tokenizer.encode("\n\n".join(corpus.paragraphs(language)))
        if len(ids) < count * length:
            raise ConfigError(
                f"quality.tokens_per_language: {plan.tokens_per_language} asked, the shipped {language} text has {len(ids)}"
            )
        out[language] = [tuple(ids[i * length : (i + 1) * length]) for i in range(count)]
    return out


def judge(logits: Array, answer: Sequence[int]) -> Choices:
    """An answer against the logits [n, V] from which each of its tokens was chosen."""
    chosen = logits[np.arange(len(answer)), list(answer)]
    gaps = (logits.max(axis=1) - chosen) / np.abs(logits).max(axis=1)
    return Choices(len(answer), int((gaps == 0).sum()), float(gaps.max()))


def relative_error(reference: Array, logits: Array) -> float:
    """‖logits − reference‖ / ‖reference‖."""
    return float(np.linalg.norm(logits - reference) / np.linalg.norm(reference))


def load_logits(folder: Path, index: int) -> Array:
    """Reference logits [n, V] of one text."""
    return np.asarray(np.load(folder / f"{index}.npy", mmap_mode="r"))


def largest_gap(reference: Array, logits: Array) -> float:
    """Largest absolute difference of two logit arrays."""
    return float(np.abs(reference - logits).max())


def compare(reference: Array, logits: Array, text: Sequence[int]) -> Comparison:
    """Score one text. Position i predicts token i + 1, so the last position is left out.

    Args:
        reference: logits [n, V] of the reference.
        logits: logits [n, V] of the configuration.
        text: the n token ids.
    """
    p, q = _log_softmax(reference[:-1]), _log_softmax(logits[:-1])
    rows, targets = np.arange(len(text) - 1), np.asarray(text[1:])
    return Comparison(
        positions=len(text) - 1,
        reference_nll=float(-p[rows, targets].sum(dtype=np.float64)),
        nll=float(-q[rows, targets].sum(dtype=np.float64)),
        kl=float((np.exp(p) * (p - q)).sum(dtype=np.float64)),
        agreements=int((p.argmax(axis=1) == q.argmax(axis=1)).sum()),
    )


def distribution_record(
    config_id: str, by_language: Mapping[str, Sequence[Comparison]], plan: QualityPlan, note: str = ""
) -> QualityRecord:
    """The verdict on a lossy configuration: every estimate within its threshold."""
    everything = [c for comparisons in by_language.values() for c in comparisons]
    values = _estimates(everything, "all")
    limits = {
        "perplexity_ratio": 1 + plan.max_perplexity_increase,
        "kl_nats": plan.max_kl_nats,
    }
    if plan.min_top1_agreement is not None:
        limits["top1_agreement"] = plan.min_top1_agreement
    broken, unsure = [], []
    for name, limit in limits.items():
        value = values[name]
        good_low = name == "top1_agreement"
        within = value.value >= limit if good_low else value.value <= limit
        if not math.isfinite(value.value):
            broken.append(f"{name} is not a number: the output is broken")
        elif not within:
            side = "below" if good_low else "above"
            broken.append(f"{name} of {value.value:.4g} is {side} the threshold of {limit:.4g}")
        elif value.low < limit < value.high:
            unsure.append(f"the interval of {name} reaches over its threshold: score more text to be sure")
    return QualityRecord(
        config_id=config_id,
        kind="distribution",
        passed=not broken,
        threshold=limits,
        values=_finite(values),
        by_language={language: _finite(_estimates(c, language)) for language, c in by_language.items()},
        detail="; ".join([*broken, *unsure, *([note] if note else [])]),
    )


def _estimates(found: Sequence[Comparison], key: str) -> dict[str, Interval]:
    positions = np.array([c.positions for c in found], float)
    excess = np.array([c.nll - c.reference_nll for c in found])
    kl = np.array([c.kl for c in found])
    agreements = np.array([c.agreements for c in found], float)
    return {
        "perplexity_ratio": paired_interval(
            lambda w: np.exp((w @ excess) / (w @ positions)), len(found), f"{key}/perplexity"
        ),
        "kl_nats": paired_interval(lambda w: (w @ kl) / (w @ positions), len(found), f"{key}/kl"),
        "top1_agreement": paired_interval(
            lambda w: (w @ agreements) / (w @ positions), len(found), f"{key}/top1"
        ),
    }


def logits_record(
    config_id: str, gaps: Sequence[float], plan: QualityPlan, kernel_errors: Sequence[float] = ()
) -> QualityRecord:
    """The engine against transformers, both in float32; on a GPU also its 16-bit kernels against the same logits.

    Args:
        gaps: largest difference of each text.
        kernel_errors: relative error of each text through the kernels that will be timed, where they are not float32.
    """
    worst = _worst(gaps)
    threshold = {"max_abs_logit_error": plan.max_abs_logit_error}
    values = {"max_abs_logit_error": _exact(worst, len(gaps))}
    wrong = []
    if not worst <= plan.max_abs_logit_error:
        wrong.append(f"logits differ from transformers by up to {worst:.3g}")
    if kernel_errors:
        error = _worst(kernel_errors)
        threshold["relative_logit_error"] = MAX_KERNEL_LOGIT_ERROR
        values["relative_logit_error"] = _exact(error, len(kernel_errors))
        if not error <= MAX_KERNEL_LOGIT_ERROR:
            wrong.append(f"logits of the 16-bit kernels are {error:.3g} off float32's")
    return QualityRecord(
        config_id=config_id,
        kind="logits_vs_transformers",
        passed=not wrong,
        threshold=threshold,
        values=_finite(values),
        detail="; ".join(wrong),
    )


def choices_record(config_id: str, found: Sequence[Choices]) -> QualityRecord:
    """Every token within a near-tie of the float32 reference's choice? For devices that round by batch size."""
    worst = _worst([c.worst_gap for c in found])
    same = sum(c.same for c in found) / sum(c.tokens for c in found)
    passed = worst <= NEAR_TIE_16_BIT
    detail = (
        ""
        if passed
        else f"a token stands {worst:.3g} of the largest logit below the float32 reference's choice"
    )
    return QualityRecord(
        config_id=config_id,
        kind="token_identity",
        passed=passed,
        threshold={"worst_gap": NEAR_TIE_16_BIT},
        values=_finite(
            {"identical_tokens": _exact(same, len(found)), "worst_gap": _exact(worst, len(found))}
        ),
        detail=detail,
    )


def identity_record(
    config_id: str,
    reference: Sequence[Sequence[int]],
    found: Sequence[Sequence[int]],
    tie_gaps: Mapping[int, float],
    note: str = "",
) -> QualityRecord:
    """Token-identical to the engine with its levers off?

    Args:
        reference, found: tokens of each answer, in the same order.
        tie_gaps: for an answer that differs, the reference's gap (logits) between its two likeliest tokens where the
            answers part; below `NEAR_TIE` either choice is right, and agreement up to there is what one can ask.
    """
    parted = {
        i: first_difference(a, b)
        for i, (a, b) in enumerate(zip(reference, found, strict=True))
        if list(a) != list(b)
    }
    wrong = {i: at for i, at in parted.items() if not tie_gaps.get(i, math.inf) < NEAR_TIE}
    total = sum(len(a) for a in reference)
    same = total - sum(len(reference[i]) - at for i, at in parted.items())
    detail = [
        f"answer {i + 1} parts from the engine with its levers off at token {at + 1}"
        for i, at in sorted(wrong.items())
    ][:1]
    ties = len(parted) - len(wrong)
    if ties:
        detail.append(f"{ties} of {len(reference)} answers part at a near-tie (gap under {NEAR_TIE} logits)")
    return QualityRecord(
        config_id=config_id,
        kind="token_identity",
        passed=not wrong,
        threshold={"identical_tokens": 1.0},
        values={"identical_tokens": _exact(same / total, len(reference))},
        detail="; ".join([*detail, *([note] if note else [])]),
    )


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """Index of the first token that differs (the shorter length, if one is the other's beginning)."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _worst(values: Sequence[float]) -> float:
    """The largest; not-a-number is the worst of all."""
    return max(values, key=lambda value: math.inf if math.isnan(value) else value)


def _finite(values: Mapping[str, Interval]) -> dict[str, Interval]:
    """Without what is no number: records hold figures or nothing."""
    return {n: v for n, v in values.items() if all(map(math.isfinite, (v.value, v.low, v.high)))}


def _exact(value: float, n: int) -> Interval:
    """A fact about the texts that were run, not an estimate: it has no interval."""
    return Interval(value=value, low=value, high=value, n=n)


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    out: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return out
