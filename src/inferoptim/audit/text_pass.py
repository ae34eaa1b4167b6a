"""The pass over a trace's texts: lengths, prefix blocks, languages, diet. A text lives as long as its batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from inferoptim.audit.blocks import proportion
from inferoptim.audit.diet import Diet
from inferoptim.audit.languages import detect_language
from inferoptim.audit.options import ReadOptions
from inferoptim.audit.reservoir import Reservoir
from inferoptim.audit.rows import UNKNOWN, Batch, Ints, Turn
from inferoptim.audit.token_counter import Ids, TokenCounter
from inferoptim.errors import ConfigError
from inferoptim.records.audit_record import LanguageShare

BLOCK_TOKENS = 16  # of a prefix block made of tokens; what engines use by default
BLOCK_CHARACTERS = 64  # where no tokenizer is given
SAMPLE_TEXTS = 1000  # prompts and answers held until the end, to be encoded again


class TextPass:
    """Sees the texts of every batch once."""

    def __init__(
        self, options: ReadOptions, counter: TokenCounter | None, redact: bool, seed: int = 0
    ) -> None:
        self._options, self._counter = options, counter
        self._languages: Counter[str] = Counter()
        self._sample = Reservoir(SAMPLE_TEXTS, seed)
        self.diet = Diet(options, redact)
        self.seen = 0
        rng = np.random.default_rng(int.from_bytes(options.salt[:8], "little"))
        self._salts = rng.integers(1, 2**63, size=BLOCK_CHARACTERS, dtype=np.uint64) | np.uint64(1)

    @property
    def block_size(self) -> int:
        """Tokens, or characters without a tokenizer, of one prefix block."""
        return BLOCK_CHARACTERS if self._counter is None else BLOCK_TOKENS

    def add(self, batch: Batch) -> None:
        """Fill in the lengths and blocks that the batch lacks.

        Raises:
            ConfigError: lengths must be counted, and no tokenizer was given.
        """
        texts = batch.texts
        if texts is None:
            return
        unknown = (batch.prompt_tokens == UNKNOWN) | (batch.output_tokens == UNKNOWN)
        if unknown.any() and self._counter is None:
            raise ConfigError(
                "this trace holds text and no token counts: say which tokenizer counts them, e.g. --tokenizer smollm2-135m"
            )
        shown = [turn or Turn("", "") for turn in texts]
        prompts = [turn.prompt for turn in shown]
        if self._counter is not None:
            outputs = [turn.output for turn in shown]
            need_output = bool((batch.output_tokens == UNKNOWN).any())
            if batch.blocks is None:
                ids = self._counter.ids(prompts)
                lengths = np.array([len(i) for i in ids], dtype=np.int64)
                batch.blocks = chained_blocks(ids, BLOCK_TOKENS, self._salts)
            else:
                lengths = self._counter.lengths(prompts)
            batch.prompt_tokens = np.where(batch.prompt_tokens == UNKNOWN, lengths, batch.prompt_tokens)
            if need_output:
                counted = self._counter.lengths(outputs)
                answered = np.array([bool(text) for text in outputs])
                # a data set of prompts alone has no answers: unknown, not 0
                counted = np.where(answered, counted, UNKNOWN)
                batch.output_tokens = np.where(batch.output_tokens == UNKNOWN, counted, batch.output_tokens)
        elif batch.blocks is None:
            characters = [np.frombuffer(p.encode("utf-32-le", "replace"), dtype=np.uint32) for p in prompts]
            batch.blocks = chained_blocks(characters, BLOCK_CHARACTERS, self._salts)
        present = [turn for turn in texts if turn is not None]
        self._languages.update(detect_language(turn.last or turn.prompt) for turn in present)
        self.seen += len(present)
        pairs = np.empty(len(present), dtype=object)
        pairs[:] = present
        self._sample.add(pairs)
        self.diet.add(present)

    @property
    def sample(self) -> list[Turn]:
        """Some requests, drawn evenly."""
        return list(self._sample.rows)

    def languages(self) -> tuple[LanguageShare, ...]:
        """Shares by language, the largest first."""
        return tuple(
            LanguageShare(code=code, requests=count, share=proportion(count, self.seen))
            for code, count in self._languages.most_common()
        )

    def by_language(self, at_most: int = 300) -> dict[str, list[str]]:
        """Sampled prompts by language."""
        out: dict[str, list[str]] = {}
        for turn in self.sample:
            group = out.setdefault(detect_language(turn.last or turn.prompt), [])
            if len(group) < at_most:
                group.append(turn.prompt)
        return out


def chained_blocks(sequences: Sequence[Ids], size: int, salts: np.ndarray) -> list[Ints]:
    """Ids of the whole leading blocks of each sequence: equal id = equal sequence up to the block's end.

    Args:
        sequences: tokens or characters.
        size: of a block.
        salts: random odd numbers [≥ size], which make the ids say nothing about the text.

    Returns:
        Per sequence [len // size]. 64-bit hashes: a chance collision among 10^6 blocks has odds below 10^-7.
    """
    counts = np.array([len(s) // size for s in sequences], dtype=np.int64)
    if not counts.sum():
        return [np.zeros(0, dtype=np.int64) for _ in sequences]
    flat = np.concatenate([s[: n * size] for s, n in zip(sequences, counts.tolist(), strict=True)])
    with np.errstate(over="ignore"):
        words = _mix(flat.astype(np.uint64).reshape(-1, size) + salts[:size])
        block = _mix((words * salts[:size]).sum(axis=1, dtype=np.uint64))
        starts = np.cumsum(counts) - counts
        place = np.arange(len(block)) - np.repeat(starts, counts)
        step = _mix(block + place.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        running = np.cumsum(step, dtype=np.uint64)
        before = np.where(starts > 0, running[np.maximum(starts - 1, 0)], np.uint64(0))
        chained = _mix(running - np.repeat(before, counts)) >> np.uint64(1)
    return np.split(chained.astype(np.int64), np.cumsum(counts)[:-1])


def _mix(values: np.ndarray) -> np.ndarray:
    """Finaliser of SplitMix64. Source: Steele, Lea, Flood 2014."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))
