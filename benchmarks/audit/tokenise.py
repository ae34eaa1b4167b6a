"""Text tokenisation of the audit against the tokenizers library's own batch mode, interleaved, on the same texts.

    python -m benchmarks.audit.tokenise --tokenizer smollm2-135m [--texts 2000] [--repeats 7]

Rates are characters per second; the ratio is ours over `encode_batch`. "pass" is all that the audit does with a text: ids,
prefix blocks, language, diet. Target: at least 80 %.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import tokenizers

from inferoptim.audit.options import ReadOptions
from inferoptim.audit.rows import UNKNOWN, Batch, Turn
from inferoptim.audit.text_pass import TextPass
from inferoptim.audit.token_counter import LibraryTokens, open_tokenizer
from inferoptim.bench import corpus

TARGET = 0.80


def make_texts(count: int) -> list[str]:
    """Prompts of 1 to 12 paragraphs, English and French in turn."""
    rng = np.random.default_rng(0)
    texts = []
    for number in range(count):
        source = corpus.paragraphs(corpus.LANGUAGES[number % 2])
        picked = rng.integers(0, len(source), size=int(rng.integers(1, 13)))
        texts.append("\n".join(source[i] for i in picked))
    return texts


def main() -> None:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", default="smollm2-135m")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    counter = open_tokenizer(args.tokenizer)
    if not isinstance(counter, LibraryTokens):
        raise SystemExit("the peer is the tokenizers library: name a tokenizer.json")
    texts = make_texts(args.texts)
    library = counter.backend
    tokens = int(counter.lengths(texts).sum())
    turns = [Turn(text, "", last=text) for text in texts]

    def whole_pass() -> None:
        unknown = np.full(len(turns), UNKNOWN, dtype=np.int64)
        known = np.ones(len(turns), dtype=np.int64)
        TextPass(ReadOptions(), counter, redact=True).add(Batch(unknown, known, texts=turns))

    ways: dict[str, Callable[[], object]] = {
        "tokenizers encode_batch": lambda: library.encode_batch(texts, add_special_tokens=False),
        "tokenizers encode_batch_fast": lambda: library.encode_batch_fast(texts, add_special_tokens=False),
        "audit lengths": lambda: counter.lengths(texts),
        "audit ids": lambda: counter.ids(texts),
        "audit pass": whole_pass,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    characters = sum(map(len, texts))
    print(
        f"{os.cpu_count()} cores, tokenizers {tokenizers.__version__}, {args.tokenizer}: {len(texts):,} texts, {tokens:,} tokens"
    )
    base = statistics.median(times["tokenizers encode_batch"][1:])
    for name, values in times.items():
        kept = sorted(values[1:])
        middle = statistics.median(kept)
        print(
            f"{name:30} {characters / middle / 1e6:7.2f} M characters/s  {tokens / middle / 1e6:6.2f} M tokens/s  "
            f"[{kept[0]:.3f}–{kept[-1]:.3f} s]  {base / middle:5.0%} of encode_batch"
        )
    ratio = base / statistics.median(times["audit pass"][1:])
    print(f"target {TARGET:.0%}: {'met' if ratio >= TARGET else 'MISSED'}")


if __name__ == "__main__":
    main()
