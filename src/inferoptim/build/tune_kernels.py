"""The tuner's first part: how kernels cut their work, the KV split, the block size and the threads, in timings of single steps.

A value is timed in turns with the best so far, round after round. It is kept when it was faster in every one of ten rounds and
by more than a hundredth in the middle one: of values that make no difference one in a thousand would be. The first round that
it loses ends its trial, so most cost one.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from inferoptim.build.step_bench import Situation, StepBench

_ROUNDS = 10
_LEAST_GAIN = 0.01
EVERYWHERE = frozenset({"num_threads", "block_size"})  # torch's operators have these, too
Settings = dict[str, Any]


class Question(NamedTuple):
    """A setting, the values to try against the one that holds, and the steps that it matters to."""

    name: str
    values: tuple[int, ...]
    situations: tuple[Situation, ...]


class KernelTrial(NamedTuple):
    """What came of one value.

    Attributes:
        ratios: seconds over those of the best so far, the steps' geometric mean, a number a round.
        settings: what holds from here on.
    """

    name: str
    value: int
    measured: str
    ratios: tuple[float, ...]
    kept: bool
    settings: Settings

    def record(self) -> dict[str, Any]:
        """As the artefact keeps it."""
        return {
            self.name: self.value,
            "measured": self.measured,
            "time_ratio": round(statistics.median(self.ratios), 4),
            "low": round(min(self.ratios), 4),
            "high": round(max(self.ratios), 4),
            "rounds": len(self.ratios),
            "kept": self.kept,
        }


def questions(
    engine: Mapping[str, Any], limits: Mapping[str, int], *, cuda: bool, cores: int, longest: int
) -> tuple[Question, ...]:
    """What to ask on this machine, the most telling first; what `engine` fixes already is not asked.

    Args:
        limits: max_batch_size, max_input_len, max_output_len.
        longest: the model's most tokens of a sequence.
    """
    rows = limits.get("max_batch_size", int(engine.get("max_num_seqs", 32)))
    prompt = min(limits.get("max_input_len", 512), 2048, longest)
    context = min(prompt + limits.get("max_output_len", 128) // 2, longest)

    def decodes(*sizes: int) -> tuple[Situation, ...]:
        return tuple(Situation(n, 1, context) for n in dict.fromkeys(min(n, rows) for n in sizes))

    def prompts(*sizes: int) -> tuple[Situation, ...]:
        return tuple(Situation(1, n, n) for n in dict.fromkeys(min(n, longest) for n in sizes))

    if cuda:
        asked = [
            Question("kv_split_programs", (132, 528, 1056), decodes(1, 4, 8, rows)),
            Question("few_rows", (0, 8, 16, 24, 32), decodes(4, 8, 16, 24, 32)),
            Question("cuda_attention_rows", (0, 16, 32, 128, 256), decodes(8, 16, 32, 64, 128, 256)),
            Question("prompt_kernel_rows", (512, 2048, 1 << 20), prompts(512, 1024, 2048)),
            Question("block_size", (32, 64), decodes(1, rows) + prompts(prompt)),
        ]
    else:
        fewer = {cores // 2, cores - 1} - {0, cores}
        threads = int(engine.get("num_threads") or cores)
        about = [threads * tokens for tokens in (12, 20, 28, 40, 56, 80)]
        asked = [
            Question("num_threads", tuple(sorted(fewer, reverse=True)), decodes(1, rows) + prompts(prompt)),
            Question("product_tasks", (1, 4, 8), decodes(1, 4, rows)),
            Question("prompt_block", (32, 96, 128), prompts(256, 512)),
            Question("prompt_rows", (16, 24, 32, 64, 96), prompts(*about)),
            Question("block_size", (32, 64), decodes(1, rows) + prompts(prompt)),
        ]
    return tuple(q for q in asked if q.name not in engine and q.values)


def search(
    asked: tuple[Question, ...], bench: Callable[[Settings], StepBench], settings: Settings
) -> Iterator[KernelTrial]:
    """Ask one after the other; each begins with the settings that the one before left.

    Args:
        bench: the model under settings.
        settings: to begin with.
    """
    for question in asked:
        held: StepBench | None = None
        for value in question.values:
            tried = {**settings, question.name: value}
            held = held or bench(settings)
            other = bench(tried)
            ratios = _ratios(held, other, question.situations)
            kept = len(ratios) == _ROUNDS and statistics.median(ratios) < 1 - _LEAST_GAIN
            if kept:
                settings, held = tried, other
            del other
            gc.collect()  # a bench holds a copy of the weights, or a GPU's memory
            what = ", ".join(s.describe() for s in question.situations)
            yield KernelTrial(question.name, value, what, ratios, kept, settings)


def _ratios(held: StepBench, other: StepBench, situations: tuple[Situation, ...]) -> tuple[float, ...]:
    """Until a round is lost, or all are won; who comes first alternates."""
    ratios: list[float] = []
    while len(ratios) < _ROUNDS and (not ratios or ratios[-1] < 1):
        total = 0.0
        for situation in situations:
            turns = (held, other) if len(ratios) % 2 == 0 else (other, held)
            seconds = {id(b): b.time(situation) for b in turns}
            total += math.log(seconds[id(other)] / seconds[id(held)])
        ratios.append(math.exp(total / len(situations)))
    return tuple(ratios)
