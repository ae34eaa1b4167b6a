"""The requests of a load test: texts of stated lengths, all different, with shared prefixes where the workload has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from inferoptim.bench import corpus
from inferoptim.errors import ConfigError
from inferoptim.records.synthetic_text import SyntheticText, TextTokenizer
from inferoptim.records.workload_file import Workload, WorkloadHeader, WorkloadRequest, WorkloadSource

POOL_TOKENS = 500_000  # prompt tokens written out before the clock starts; beyond them prompts come again
TOKENS_PER_WORD = (
    1.3  # of English under common vocabularies; only where no tokenizer is given, and then reported
)


@dataclass(frozen=True, slots=True)
class LoadPrompt:
    """One request to send."""

    text: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts, how they were made, and what a reader of the results must know."""

    prompts: tuple[LoadPrompt, ...]
    description: dict[str, Any]
    notes: tuple[str, ...] = ()


def fixed_lengths(input_tokens: int, output_tokens: int, seed: int) -> Workload:
    """A closed workload of one length.

    Raises:
        ConfigError: a length below 1.
    """
    if min(input_tokens, output_tokens) < 1:
        raise ConfigError("--input-tokens and --output-tokens must be at least 1")
    header = WorkloadHeader(
        name=f"fixed-{input_tokens}-{output_tokens}",
        seed=seed,
        arrivals="closed",
        source=WorkloadSource(kind="stated", description="lengths given on the command line"),
        num_requests=1,
    )
    return Workload(header, (WorkloadRequest(input_tokens, output_tokens),))


def build_prompts(workload: Workload, count: int, tokenizer: TextTokenizer | None) -> Prompts:
    """`count` prompts with the workload's lengths in its order, from the beginning again where it is shorter.

    With a tokenizer every prompt has exactly its length; without one, lengths are estimated and the server's own count
    is what the results show. Repeated lengths get new text, so a prefix cache gains only what the workload shares.

    Raises:
        UnsupportedError: the tokenizer has too few stable words.
    """
    wanted = [workload.requests[i % len(workload.requests)] for i in range(count)]
    total, kept = 0, 0
    for request in wanted:
        total += request.prompt_tokens
        if kept and total > POOL_TOKENS:
            break
        kept += 1
    requests = tuple(wanted[:kept])
    notes = []
    if kept < count:
        notes.append(
            f"{kept} different prompts were written for {count} requests; beyond them prompts come again, "
            "and a prefix cache gains from that"
        )
    longer = replace(workload, requests=requests)
    if tokenizer is not None:
        texts: Iterator[str] = iter([p.text for p in SyntheticText(tokenizer).prompts(longer)])
    else:
        texts = _estimated(longer)
        notes.append(
            "no tokenizer was given (--tokenizer): prompt lengths were estimated; the figures use the server's own count"
        )
    made = tuple(LoadPrompt(text, r.output_tokens) for text, r in zip(texts, requests, strict=True))
    return Prompts(
        made,
        {
            "name": workload.header.name,
            "fingerprint": workload.fingerprint,
            "requests_in_file": len(workload.requests),
            "prompts_written": kept,
            "exact_lengths": tokenizer is not None,
            "arrivals": workload.header.arrivals,
            "distance_from_trace": workload.distance(),
        },
        tuple(notes),
    )


def _estimated(workload: Workload) -> Iterator[str]:
    """Words of the shipped English text, about as many as the length asks for."""
    words = np.array(re.findall(r"[A-Za-z]+", " ".join(corpus.paragraphs("en"))))
    seed = workload.header.seed
    for index, request in enumerate(workload.requests):
        parts = []
        shared = 0
        for segment in request.segments:
            tokens = workload.header.segment_tokens[segment]
            parts.append(_words(words, (seed, 0, segment), tokens))
            shared += tokens
        parts.append(_words(words, (seed, 1, index), max(request.prompt_tokens - shared, 0)))
        yield " ".join(p for p in parts if p) or "Hello"


def _words(words: Any, seed: tuple[int, ...], tokens: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(words, round(tokens / TOKENS_PER_WORD)).tolist()) if tokens else ""
