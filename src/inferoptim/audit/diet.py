"""Prompt diet: tokens that the trace's own prompts could do without. Texts are hashed; only counts are kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from inferoptim.audit.options import ReadOptions
from inferoptim.audit.rows import Turn
from inferoptim.audit.token_counter import TokenCounter
from inferoptim.records.audit_record import DietFinding

MAX_KEYS = 100_000  # different system prompts or example blocks that are told apart
SHARED_MIN = 3  # requests with the same leading text, from which sharing it is worth a word
VARYING_MIN = (
    20  # requests whose system prompts differ only in what varies (digits, dates, names in brackets)
)
EXAMPLES_SHARE = 0.5  # of a prompt's tokens: an oversized few-shot block
MIN_SHARE = 0.005  # of all prompt tokens; less is not reported
_VARIES = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d+|(?<=[<\[{])[^<>\[\]{}\n]{1,60}(?=[>\]}])", re.I)
_BLANKS = (
    (re.compile(r"[ \t]+(?=\n|$)"), ""),  # at line ends
    (re.compile(r"\n{3,}"), "\n\n"),
    (re.compile(r"(?<=\S)[ \t]{2,}(?=\S)"), " "),  # inside a line; indentation means something and stays
)


def squeeze(text: str) -> str:
    """The text without superfluous white space; indentation and single blank lines stay."""
    for pattern, kept in _BLANKS:
        text = pattern.sub(kept, text)
    return text.strip()


@dataclass
class _Group:
    requests: int = 0
    tokens: int = 0  # of one copy
    characters: int = 0
    variants: set[int] = field(default_factory=set)
    first_difference: int = 0
    sample: str = ""


class Diet:
    """Collects findings over the whole trace; what needs another encoding is done on a sample at the end."""

    def __init__(self, options: ReadOptions, redact: bool = True) -> None:
        self._options, self._redact = options, redact
        self._systems: dict[int, _Group] = {}
        self._shapes: dict[int, _Group] = {}
        self._examples: dict[int, _Group] = {}
        self.requests = 0

    def add(self, texts: Sequence[Turn | None]) -> None:
        """Append the requests of a batch."""
        for turn in texts:
            if turn is None:
                continue
            self.requests += 1
            if turn.system:
                self._count(self._systems, turn.system, turn.system)
                shape = _VARIES.sub("#", turn.system)
                group = self._count(self._shapes, shape, turn.system)
                if group is not None:
                    if len(group.variants) < MAX_KEYS:
                        group.variants.add(self._options.hash(turn.system))
                    if group.sample != turn.system:
                        at = _first_difference(group.sample, turn.system)
                        group.first_difference = min(group.first_difference, at)
            if turn.examples:
                self._count(self._examples, turn.examples, turn.examples)

    def _count(self, groups: dict[int, _Group], key: str, text: str) -> _Group | None:
        digest = self._options.hash(key)
        group = groups.get(digest)
        if group is None:
            if len(groups) >= MAX_KEYS:
                return None
            group = groups[digest] = _Group(sample=text, characters=len(text), first_difference=len(text))
        group.requests += 1
        return group

    def findings(
        self,
        counter: TokenCounter,
        sample: Sequence[str],
        prompt_tokens: float,
        price_per_million: float | None,
        reusable_share: float | None,
    ) -> tuple[DietFinding, ...]:
        """What could be saved.

        Args:
            counter: of the model that is billed.
            sample: prompts drawn at random from the trace.
            prompt_tokens: of the whole trace.
            price_per_million: input tokens; None = not priced.
            reusable_share: what the prefix pass found, to be set beside the shared prompts.
        """
        found = [
            self._whitespace(counter, sample, prompt_tokens),
            self._shared(counter, prompt_tokens, reusable_share),
            self._varying(counter, prompt_tokens),
            self._few_shot(counter, prompt_tokens),
        ]
        out = []
        for finding in found:
            if finding is not None and finding.share >= MIN_SHARE:
                saved = None if price_per_million is None else finding.tokens * price_per_million / 1e6
                out.append(finding.model_copy(update={"saved": saved}))
        return tuple(out)

    def _whitespace(self, counter: TokenCounter, sample: Sequence[str], total: float) -> DietFinding | None:
        if not sample:
            return None
        before = counter.lengths(sample)
        after = counter.lengths([squeeze(text) for text in sample])
        spared = np.maximum(before - after, 0)
        if not spared.any() or not before.sum():
            return None
        share = float(spared.sum() / before.sum())
        return DietFinding(
            kind="whitespace",
            requests=round(float((spared > 0).mean()) * self.requests),
            tokens=share * total,
            share=share,
            detail={"sampled": len(sample)},
        )

    def _shared(self, counter: TokenCounter, total: float, reusable: float | None) -> DietFinding | None:
        groups = [g for g in self._systems.values() if g.requests >= SHARED_MIN]
        if not groups or not total:
            return None
        lengths = counter.lengths([g.sample for g in groups])
        repeated = float(sum((g.requests - 1) * int(n) for g, n in zip(groups, lengths, strict=True)))
        top = max(zip(groups, lengths.tolist(), strict=True), key=lambda pair: pair[0].requests * pair[1])
        detail: dict[str, float | int | str] = {
            "prompts": len(groups),
            "top_requests": top[0].requests,
            "top_tokens": top[1],
            **self._excerpt(top[0]),
        }
        if reusable is not None:
            detail["reusable_share"] = reusable
        return DietFinding(
            kind="shared_prefix",
            requests=sum(g.requests for g in groups),
            tokens=repeated,
            share=repeated / total,
            detail=detail,
        )

    def _varying(self, counter: TokenCounter, total: float) -> DietFinding | None:
        """System prompts that are the same but for something that varies early, so that no cache can share them."""
        groups = [
            g
            for g in self._shapes.values()
            if len(g.variants) >= max(VARYING_MIN, g.requests // 2)
            and g.first_difference < 0.5 * g.characters
        ]
        if not groups or not total:
            return None
        lost = counter.lengths([g.sample[g.first_difference :] for g in groups])
        tokens = float(sum((g.requests - 1) * int(n) for g, n in zip(groups, lost, strict=True)))
        top = max(zip(groups, lost.tolist(), strict=True), key=lambda pair: pair[0].requests * pair[1])[0]
        return DietFinding(
            kind="varying_prefix",
            requests=sum(g.requests for g in groups),
            tokens=tokens,
            share=tokens / total,
            detail={
                "variants": len(top.variants),
                "first_difference": top.first_difference,
                "characters": top.characters,
                **self._excerpt(top),
            },
        )

    def _few_shot(self, counter: TokenCounter, total: float) -> DietFinding | None:
        groups = [g for g in self._examples.values() if g.requests >= SHARED_MIN]
        if not groups or not total:
            return None
        lengths = counter.lengths([g.sample for g in groups])
        tokens = float(sum(g.requests * int(n) for g, n in zip(groups, lengths, strict=True)))
        requests = sum(g.requests for g in groups)
        if tokens / requests < EXAMPLES_SHARE * total / max(self.requests, 1):
            return None
        return DietFinding(
            kind="few_shot",
            requests=requests,
            tokens=tokens,
            share=tokens / total,
            detail={"blocks": len(groups), "mean_tokens": tokens / requests},
        )

    def _excerpt(self, group: _Group) -> dict[str, str]:
        return {} if self._redact else {"excerpt": " ".join(group.sample.split())[:80]}


def _first_difference(a: str, b: str) -> int:
    """Characters that two texts begin with in common."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
