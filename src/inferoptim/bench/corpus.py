"""The shipped texts: English and French prose and questions, written for this project (texts/README.txt)."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise
from typing import Literal

Language = Literal["en", "fr"]
LANGUAGES: tuple[Language, ...] = ("en", "fr")

_PROSE: dict[Language, str] = {"en": "english.txt", "fr": "french.txt"}
# A sentence ends at . ! ? … and a closing quote, before a space and a capital or an opening quote.
_SENTENCE_END = re.compile(r"(?<=[.!?…])(?:\s?[\"»])?\s+(?=[A-ZÀ-ÖØ-Þ«\"])")


@lru_cache
def paragraphs(language: Language) -> tuple[str, ...]:
    """Paragraphs of prose, 50 to 130 words each."""
    return _lines(_PROSE[language])


@lru_cache
def questions(language: Language) -> tuple[str, ...]:
    """What a user might ask, of very different lengths."""
    return _lines(f"questions_{language}.txt")


def sentences(text: str) -> list[str]:
    """Sentences of a paragraph, in order, with the space that follows each: joined, they are the paragraph."""
    starts = [*sentence_starts(text), len(text)]
    return [text[a:b] for a, b in pairwise(starts)]


def sentence_starts(text: str) -> list[int]:
    """Character offsets at which the sentences of `text` begin."""
    return [0, *(match.end() for match in _SENTENCE_END.finditer(text))]


def _lines(name: str) -> tuple[str, ...]:
    text = (files("inferoptim.bench") / "texts" / name).read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line.strip())
