"""The tokens that calibration runs: cut from texts into sequences of one length, with what they are on record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from inferoptim.errors import DataError
from inferoptim.models.tokenizer import Tokenizer

FEWEST_TOKENS = 1024  # below this, scales rest on chance: warned
_SHORTEST = 32


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Sequences for calibration.

    Attributes:
        tokens: int64 [B, L].
        held_out: int64 [B', L], others of the same texts; None where none were asked for or to be had.
        source: where the texts came from, in words.
        fingerprint: sha256 over the token ids: equal exactly when the tokens are.
        warnings: what to know before trusting scales from it.
    """

    tokens: torch.Tensor = field(repr=False)
    source: str
    fingerprint: str
    warnings: tuple[str, ...] = ()
    held_out: torch.Tensor | None = field(default=None, repr=False)

    @property
    def num_tokens(self) -> int:
        return self.tokens.numel()


def calibration_set(
    texts: Sequence[str] | Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    *,
    source: str,
    max_tokens: int = 2048,
    length: int = 256,
    hold_out: int = 0,
) -> CalibrationSet:
    """Tokenise texts (what is tokenised stays as it is), join them, and cut sequences of `length`.

    Every text's tokens are used once, in order, until `max_tokens`. Positions inside a sequence start at 0, as a request's
    do.

    Args:
        hold_out: sequences, spread over the texts, to leave out; at most a quarter of all.

    Raises:
        DataError: the texts give less than one sequence.
    """
    ids: list[int] = []
    for text in texts:
        ids += tokenizer.encode(text) if isinstance(text, str) else text
        if len(ids) >= max_tokens + hold_out * length:
            break
    length = min(length, len(ids))
    if length < _SHORTEST:
        raise DataError(
            f"calibration set ({source}): {len(ids)} tokens in {len(texts)} texts; give at least {_SHORTEST}, better {FEWEST_TOKENS}"
        )
    count = max(min(len(ids), max_tokens + hold_out * length) // length, 1)
    tokens = torch.tensor(ids[: count * length], dtype=torch.int64).view(count, length)
    out = min(hold_out, count // 4)
    left_out = [(2 * i + 1) * count // (2 * out) for i in range(out)]
    held_out = tokens[left_out] if out else None
    tokens = tokens[[i for i in range(count) if i not in left_out][: max(max_tokens // length, 1)]]
    warnings = []
    if tokens.numel() < FEWEST_TOKENS:
        warnings.append(
            f"calibration set ({source}) has {tokens.numel()} tokens; scales from fewer than {FEWEST_TOKENS} rest on chance"
        )
    return CalibrationSet(tokens, source, _fingerprint(tokens.flatten().tolist()), tuple(warnings), held_out)


def language_warning(calibration: Iterable[str], proof: dict[str, Sequence[str]]) -> str | None:
    """A line where the calibration texts share too few characters' habits with every language of the proof.

    The test is crude on purpose: the share of letters outside ASCII and of common function words tells French from English
    and both from a script of another kind.
    """
    mine = _profile(" ".join(calibration))
    distances = {language: _distance(mine, _profile(" ".join(texts))) for language, texts in proof.items()}
    missing = [language for language, distance in distances.items() if distance > 0.5]
    if not missing:
        return None
    return (
        f"the calibration texts are unlike the {' and '.join(missing)} texts of the proof (another language?): "
        "scales may not fit them; calibrate on what you will serve"
    )


_WORDS = (
    "the",
    "and",
    "of",
    "to",
    "in",
    "is",
    "le",
    "la",
    "les",
    "de",
    "des",
    "et",
    "un",
    "une",
    "est",
    "que",
)


def _profile(text: str) -> list[float]:
    words = text.lower().split()
    total = max(len(words), 1)
    return [words.count(word) / total for word in _WORDS]


def _distance(a: list[float], b: list[float]) -> float:
    """1 - cosine; 1 where one of them has none of the words."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    norm = (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
    return 1 - dot / norm if norm else 1.0


def _fingerprint(ids: Sequence[int]) -> str:
    return hashlib.sha256(b"".join(i.to_bytes(4, "little") for i in ids)).hexdigest()
