"""Prompts of exactly n tokens for any tokenizer, the same for one seed; shared segments give shared leading tokens.

The text is made of words that the tokenizer writes as one token each and that stay one token beside each other, so a
text of n words is n tokens whether it is sent as text or as ids. Every prompt is encoded again before it is returned.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from inferoptim.errors import UnsupportedError
from inferoptim.records.workload_file import Workload, WorkloadRequest

_WORD = re.compile(r" ?[a-z]{2,10}")
_MIN_WORDS = 64
_MAX_WORDS = 4096


class TextTokenizer(Protocol):
    """What is needed of a tokenizer; `models.tokenizer.Tokenizer` fits."""

    vocab_size: int

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...


@dataclass(frozen=True, slots=True)
class SyntheticPrompt:
    """A prompt whose text encodes to `token_ids` (special tokens that the tokenizer adds are counted)."""

    text: str
    token_ids: tuple[int, ...]


class SyntheticText:
    """Makes the prompts of workloads for one tokenizer.

    Raises:
        UnsupportedError: the vocabulary has too few words that stay one token.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = tuple(tokenizer.encode("", add_special_tokens=True))
        self._words = _stable_words(tokenizer)
        self._segments: dict[tuple[int, int, int], list[str]] = {}

    def prompt(self, workload: Workload, index: int) -> SyntheticPrompt:
        """The prompt of request `index`; a pure function of the workload's seed, its segments and the index.

        Raises:
            UnsupportedError: the tokenizer does not give exactly the length asked.
        """
        request = workload.requests[index]
        return self._build(workload, request, index)

    def prompts(self, workload: Workload) -> list[SyntheticPrompt]:
        """All prompts, in order."""
        return [self._build(workload, request, i) for i, request in enumerate(workload.requests)]

    def _build(self, workload: Workload, request: WorkloadRequest, index: int) -> SyntheticPrompt:
        seed, lengths = workload.header.seed, workload.header.segment_tokens
        words: list[str] = []
        for segment in request.segments:
            key = (seed, segment, lengths[segment])
            if key not in self._segments:
                self._segments[key] = self._draw((seed, 0, segment), lengths[segment])
            words += self._segments[key]
        own = max(request.prompt_tokens - len(words), 0)
        words += self._draw((seed, 1, index), own)
        # what the tokenizer adds (a BOS) is part of the length; it replaces words at the end, never shared ones first
        text = "".join(words[: max(request.prompt_tokens - len(self._added), 0)])
        ids = tuple(self._tokenizer.encode(text, add_special_tokens=True))
        if len(ids) != max(request.prompt_tokens, len(self._added)):
            raise UnsupportedError(
                f"synthetic prompt of {request.prompt_tokens} tokens came out as {len(ids)}: this tokenizer merges "
                "across words; replay the workload with token ids instead"
            )
        return SyntheticPrompt(text, ids)

    def _draw(self, seed: tuple[int, int, int], count: int) -> list[str]:
        rng = np.random.default_rng(seed)
        picked = rng.integers(0, len(self._words), size=count)
        return [self._words[i] for i in picked]


def _stable_words(tokenizer: TextTokenizer) -> list[str]:
    """Words with a leading space that are one token alone and in company, at a text's start and inside it."""
    candidates: list[str] = []
    for index in range(tokenizer.vocab_size):
        text = tokenizer.decode([index], skip_special=True)
        if _WORD.fullmatch(text):
            candidates.append(" " + text.strip())
            if len(candidates) >= 4 * _MAX_WORDS:
                break
    candidates = list(dict.fromkeys(candidates))
    base = len(tokenizer.encode("", add_special_tokens=True))
    # three times over, because a first word may be written differently from one in the middle
    stable = [w for w in candidates if len(tokenizer.encode(w * 3, add_special_tokens=True)) - base == 3]
    stable = stable[:_MAX_WORDS]
    if len(stable) < _MIN_WORDS:
        raise UnsupportedError(
            f"synthetic text needs {_MIN_WORDS} words of one token; this tokenizer has {len(stable)}"
        )
    return stable
