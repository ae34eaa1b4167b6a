"""What the targets are asked to do: exact token ids, exact output lengths, the same for every configuration.

Every workload is a pure function of its name, its lengths, the tokenizer, the number of requests and the seed. No two
prompts of a shipped workload are equal, so that a prefix cache gains what the traffic shares by nature and no more.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from inferoptim.bench import chats, corpus
from inferoptim.bench.traffic import TokenizerLike, Workload, WorkloadRequest
from inferoptim.errors import ConfigError

__all__ = ["NAMES", "Workload", "WorkloadRequest", "build"]

NAMES = ("guide", "chat", "chat-short", "summarise", "synthetic")
GUIDE_TOKENS = (100, 200)  # prompt, new: the guide's section 5.2
SUMMARISE_TOKENS = (600, 128)
PROMPTS_OUTPUT_TOKENS = 128

_SYNTHETIC = re.compile(r"synthetic(?::(\d+)/(\d+))?")


def build(
    name_or_path: str | Path,
    tokenizer: TokenizerLike,
    *,
    num_requests: int | None = None,
    seed: int = 0,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    max_model_len: int | None = None,
) -> Workload:
    """Make the requests of a run.

    Args:
        name_or_path: guide, chat, chat-short, summarise, synthetic (with both lengths, or written synthetic:IN/OUT), or a
            file of prompts.
        tokenizer: of the model under test.
        num_requests: how many; None = all of a file (needed for the rest). More than a file holds: it is repeated.
        seed: decides every draw.
        input_tokens: prompt length. Exact for guide and synthetic, the most for summarise; refused for chat and files.
        output_tokens: new tokens of every request; defaults: 200 guide, 128 summarise and files, 16…256 drawn for chat,
            3…48 for chat-short.
        max_model_len: context of the model; longer requests are refused.

    Raises:
        ConfigError: an unknown name, lengths that this workload cannot have, an unreadable file or line (named), or a
            request longer than the context.
    """
    name = str(name_or_path)
    for what, value in (
        ("num_requests", num_requests),
        ("input_tokens", input_tokens),
        ("output_tokens", output_tokens),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"workload {name}: {what} must be at least 1, not {value}")
    synthetic = _SYNTHETIC.fullmatch(name)
    notes: tuple[str, ...] = ()
    if name in NAMES or synthetic:
        if num_requests is None:
            raise ConfigError(f"workload {name}: say how many requests")
        rng = np.random.default_rng([seed, len(name), *name.encode()])
        if name == "guide":
            requests = _guide(
                tokenizer,
                num_requests,
                rng,
                input_tokens or GUIDE_TOKENS[0],
                output_tokens or GUIDE_TOKENS[1],
            )
        elif name in chats.SHAPES:
            if input_tokens is not None:
                raise ConfigError(
                    f"workload {name}: its prompts have mixed lengths; input_tokens does not apply"
                )
            requests, notes = chats.chat(tokenizer, num_requests, rng, output_tokens, chats.SHAPES[name])
        elif name == "summarise":
            requests, notes = chats.summarise(
                tokenizer,
                num_requests,
                rng,
                input_tokens or SUMMARISE_TOKENS[0],
                output_tokens or SUMMARISE_TOKENS[1],
            )
        else:
            assert synthetic is not None
            requests = _synthetic(
                tokenizer, num_requests, rng, _synthetic_lengths(name, synthetic, input_tokens, output_tokens)
            )
    elif Path(name).is_file():
        from inferoptim.bench.prompt_file import read_prompts

        if input_tokens is not None:
            raise ConfigError(f"{name}: its prompts have their own lengths; input_tokens does not apply")
        requests = read_prompts(Path(name), tokenizer, output_tokens or PROMPTS_OUTPUT_TOKENS)
        requests, notes = _repeat(requests, num_requests, name)
        name = Path(name).name
    else:
        raise ConfigError(f"workload {name!r}: neither {', '.join(NAMES)} nor a file of prompts")
    workload = Workload(name, _fingerprint(requests), tuple(requests), notes)
    if max_model_len is not None:
        workload.check_fits(max_model_len)
    return workload


def _guide(
    tokenizer: TokenizerLike, count: int, rng: np.random.Generator, input_tokens: int, output_tokens: int
) -> list[WorkloadRequest]:
    """English and French prose in turn, each prompt cut from another place of the text, at exactly `input_tokens`."""
    windows = {language: _windows(tokenizer, language, rng, input_tokens) for language in corpus.LANGUAGES}
    seen: set[tuple[int, ...]] = set()
    requests = []
    for number in range(count):
        language = corpus.LANGUAGES[number % len(corpus.LANGUAGES)]
        ids = next((w for w in windows[language] if w not in seen), None)
        if ids is None:
            raise ConfigError(
                f"workload guide: the shipped text gives {number} different prompts of {input_tokens} tokens, not {count}; "
                "use fewer requests, longer prompts, or synthetic"
            )
        seen.add(ids)
        requests.append(WorkloadRequest(ids, output_tokens, tag=language))
    return requests


def _windows(
    tokenizer: TokenizerLike, language: corpus.Language, rng: np.random.Generator, length: int
) -> Iterator[tuple[int, ...]]:
    """Runs of exactly `length` tokens of the prose, from each sentence's start, then from each word's.

    Raises:
        ConfigError: the text is shorter than that.
    """
    text = "\n\n".join(corpus.paragraphs(language))
    ring = text + "\n\n" + text  # a window near the end goes on at the beginning
    sentence = corpus.sentence_starts(text)
    words = sorted({m.start() for m in re.finditer(r"(?<=\s)\S", text)} - set(sentence))
    for start in (*rng.permutation(sentence), *rng.permutation(words)):
        reach = 8 * length
        while True:
            piece = ring[start : start + min(reach, len(text))]
            ids = tokenizer.encode(piece)
            # the last tokens of the piece could be split otherwise if the text went on
            if len(ids) >= length + 8:
                yield tuple(ids[:length])
                break
            if reach >= len(text):
                raise ConfigError(
                    f"workload guide: prompts of {length} tokens, but the shipped {language} text has {len(ids)}; "
                    f"use synthetic:{length}/OUT or a file of prompts"
                )
            reach *= 2


def _synthetic_lengths(
    name: str, match: re.Match[str], input_tokens: int | None, output_tokens: int | None
) -> tuple[int, int]:
    if match[1] is None:
        if input_tokens is None or output_tokens is None:
            raise ConfigError("workload synthetic: state both lengths, as synthetic:IN/OUT")
        return input_tokens, output_tokens
    if input_tokens is not None or output_tokens is not None:
        raise ConfigError(f"workload {name}: the name already states its lengths")
    lengths = int(match[1]), int(match[2])
    if min(lengths) < 1:
        raise ConfigError(f"workload {name}: both lengths must be at least 1")
    return lengths


def _synthetic(
    tokenizer: TokenizerLike, count: int, rng: np.random.Generator, lengths: tuple[int, int]
) -> list[WorkloadRequest]:
    """Ids drawn evenly from the ordinary vocabulary: exact lengths, nothing to copy, nothing shared."""
    ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), list(tokenizer.special_ids))
    if len(ordinary) == 0:
        raise ConfigError("workload synthetic: this tokenizer has no ordinary token")
    return [
        WorkloadRequest(tuple(rng.choice(ordinary, lengths[0]).tolist()), lengths[1], tag="synthetic")
        for _ in range(count)
    ]


def _repeat(
    requests: list[WorkloadRequest], count: int | None, name: str
) -> tuple[list[WorkloadRequest], tuple[str, ...]]:
    """The first `count` requests; from the beginning again if the file holds fewer."""
    if count is None or count == len(requests):
        return requests, ()
    if count < len(requests):
        return requests[:count], (f"{name}: the first {count} of {len(requests)} prompts were used",)
    span = max((r.arrival_s or 0.0) for r in requests)
    rounds = [
        replace(r, arrival_s=None if r.arrival_s is None else r.arrival_s + span * (i // len(requests)))
        for i, r in ((i, requests[i % len(requests)]) for i in range(count))
    ]
    note = (
        f"{name}: {len(requests)} prompts repeated to make {count} requests; prefix caching gains from the repeats, "
        "so its gain here is not that of your traffic"
    )
    return rounds, (note,)


def _fingerprint(requests: Sequence[WorkloadRequest]) -> str:
    digest = hashlib.sha256()
    for r in requests:
        digest.update(f"{r.max_tokens} {r.arrival_s} ".encode())
        digest.update(np.asarray(r.prompt_token_ids, np.int64).tobytes())
    return digest.hexdigest()[:16]
