"""What tokenising costs: tokens for the same text in two languages, and the time to encode and decode."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inferoptim.audit.token_counter import TokenCounter
from inferoptim.errors import ConfigError
from inferoptim.records.audit_record import LanguageCost, LatencyPoint, TokenizerRecord
from inferoptim.records.schema import Interval
from inferoptim.records.statistics import paired_interval

LENGTHS = (16, 128, 1024, 8192)  # tokens at which encoding and decoding are timed
REPEATS = {16: 200, 128: 200, 1024: 100, 8192: 60}  # enough for a 95 % bound on the P95 (n >= 59)


def parallel_text(english: Path | None = None, french: Path | None = None) -> dict[str, list[str]]:
    """Sentences in English and French, line by line the same; the project's own unless two files are given.

    Raises:
        ConfigError: one file of two, unreadable, or files of different length.
    """
    if (english is None) != (french is None):
        raise ConfigError("parallel text needs both files: the English one and the French one")
    if english is None or french is None:
        folder = files("inferoptim.audit") / "texts"
        read = {
            code: (folder / f"parallel_{code}.txt").read_text(encoding="utf-8").splitlines()
            for code in ("en", "fr")
        }
    else:
        read = {}
        for code, path in (("en", english), ("fr", french)):
            try:
                read[code] = path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path}: cannot read it as UTF-8 text ({error})") from error
    if len(read["en"]) != len(read["fr"]) or not read["en"]:
        raise ConfigError(
            f"parallel text: {len(read['en'])} English lines and {len(read['fr'])} French ones; line n must translate line n"
        )
    return read


def language_cost(code: str, texts: Sequence[str], tokens: NDArray[np.int64]) -> LanguageCost | None:
    """Tokens per character of some texts; None where they hold no character."""
    characters = np.array([len(text) for text in texts], dtype=np.float64)
    if not characters.any():
        return None
    if len(texts) < 2:
        value = float(tokens.sum() / characters.sum())
        density = Interval(value=value, low=value, high=value, n=1)
    else:
        density = paired_interval(
            lambda weights: (weights @ tokens) / np.maximum(weights @ characters, 1.0),
            len(texts),
            f"density-{code}",
            resamples=2000,
        )
    return LanguageCost(
        code=code, texts=len(texts), characters=int(characters.sum()), tokens_per_character=density
    )


def tokenizer_record(
    counter: TokenCounter,
    parallel: Mapping[str, Sequence[str]],
    own: Mapping[str, Sequence[str]],
    ttft_s: float | None,
) -> TokenizerRecord:
    """Everything about one tokenizer.

    Args:
        parallel: the same sentences by language, English among them.
        own: prompts of the trace by language.
        ttft_s: time to first token that the encoding is compared with.
    """
    counts = {code: counter.lengths(texts) for code, texts in parallel.items()}
    pairs = [(code, language_cost(code, texts, counts[code])) for code, texts in parallel.items()]
    extra = {}
    for code, tokens in counts.items():
        if code != "en":
            extra[code] = _extra(tokens, counts["en"], code)
    mine = [language_cost(code, texts, counter.lengths(texts)) for code, texts in own.items() if texts]
    return TokenizerRecord(
        name=counter.name,
        kind=counter.kind,
        vocabulary=counter.vocabulary,
        parallel=tuple(cost for _, cost in pairs if cost),
        extra_over_english=extra,
        own=tuple(cost for cost in mine if cost),
        latency=latency(counter, parallel, ttft_s),
    )


def _extra(tokens: NDArray[np.int64], english: NDArray[np.int64], code: str) -> Interval:
    """Tokens over the English ones, minus 1; the interval resamples pairs of sentences."""
    if len(tokens) < 2:
        value = float(tokens.sum() / english.sum() - 1)
        return Interval(value=value, low=value, high=value, n=1)
    return paired_interval(
        lambda weights: (weights @ tokens) / (weights @ english) - 1,
        len(tokens),
        f"extra-{code}",
        resamples=2000,
    )


def latency(
    counter: TokenCounter, parallel: Mapping[str, Sequence[str]], ttft_s: float | None
) -> tuple[LatencyPoint, ...]:
    """Times of one text at a time, as a server without batching of its tokenizer would see them."""
    lines = [line for group in zip(*parallel.values(), strict=True) for line in group]
    text = "\n".join(lines)
    ids = counter.ids([text])[0]
    points = []
    for length in LENGTHS:
        copies = -(-length // max(len(ids), 1))
        sample_ids = np.tile(ids, copies)[:length].tolist()
        sample = counter.decode(sample_ids)
        encode = _time(partial(counter.lengths, [sample]), length)
        decode = _time(partial(counter.decode, sample_ids), length)
        p50, p95 = np.quantile(encode, [0.5, 0.95], method="inverted_cdf")
        d50, d95 = np.quantile(decode, [0.5, 0.95], method="inverted_cdf")
        points.append(
            LatencyPoint(
                tokens=length,
                repeats=len(encode),
                encode_p50_s=float(p50),
                encode_p95_s=float(p95),
                decode_p50_s=float(d50),
                decode_p95_s=float(d95),
                ttft_share=None if not ttft_s else float(p50) / ttft_s,
            )
        )
    return tuple(points)


def _time(action: Callable[[], object], length: int) -> NDArray[np.float64]:
    action()  # the first call fills caches
    times = []
    for _ in range(REPEATS[length]):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return np.array(times)
