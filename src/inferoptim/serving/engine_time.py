"""Who used the engine: every step's measured duration is shared among the sequences that it computed.

A decode reads all the weights for one token, a prefill computes many tokens for one reading, so tokens are not equal.
In steps of one kind the share is by tokens. In a mixed step the time is first split between prefill and decode in
proportion to what as many tokens of each cost in the recent unmixed steps, then by tokens inside each kind. Whatever
the split, the shares of a step add up to its duration; tokens found in the prefix cache are not computed, so they
cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_MEMORY = 0.1  # weight of the newest unmixed step in the running seconds per token


@dataclass(slots=True)
class Usage:
    """One request's share since it was last drained, and when it was first computed (time.perf_counter())."""

    num_prompt: int
    prefill_s: float = 0.0
    decode_s: float = 0.0
    scheduled_s: float = 0.0


class EngineTime:
    """Accumulates each request's share. Owner: the engine process's loop."""

    def __init__(self) -> None:
        self._usage: dict[str, Usage] = {}
        self._left: list[tuple[str, float, float, bool]] = []
        self.busy_s = 0.0  # of all steps
        self._prefill_rate: float | None = None  # seconds a token, from steps without decodes
        self._decode_rate: float | None = None  # seconds a token, from steps without prefill

    def add(self, request_id: str, num_prompt: int) -> None:
        """A request arrived."""
        self._usage[request_id] = Usage(num_prompt)

    def leave(self, request_id: str) -> None:
        """A request ended; what it used is in the next `drain`."""
        usage = self._usage.pop(request_id, None)
        if usage is not None:
            self._left.append((request_id, usage.prefill_s, usage.decode_s, True))

    def scheduled_s(self, request_id: str) -> float:
        """When a step first computed for this request."""
        usage = self._usage.get(request_id)
        return usage.scheduled_s if usage is not None else 0.0

    def drain(self) -> list[tuple[str, float, float, bool]]:
        """(request id, prefill seconds, decode seconds, has left) since the last call.

        Of those that used any, and once, at the end, of those that left.
        """
        used, self._left = self._left, []
        for request_id, usage in self._usage.items():
            if usage.prefill_s or usage.decode_s:
                used.append((request_id, usage.prefill_s, usage.decode_s, False))
                usage.prefill_s = usage.decode_s = 0.0
        return used

    def step(self, started_s: float, ended_s: float, work: Iterable[tuple[str, int, int]]) -> None:
        """Share one step.

        Args:
            started_s, ended_s: time.perf_counter() around it.
            work: (request id, first position computed, tokens computed) of each sequence.
        """
        self.busy_s += ended_s - started_s
        prefill: list[tuple[Usage, int]] = []
        decode: list[tuple[Usage, int]] = []
        for request_id, start, num_tokens in work:
            usage = self._usage.get(request_id)
            if usage is None:
                continue
            if not usage.scheduled_s:
                usage.scheduled_s = started_s
            (prefill if start < usage.num_prompt else decode).append((usage, num_tokens))
        prefill_tokens = sum(n for _, n in prefill)
        decode_tokens = sum(n for _, n in decode)
        duration_s = ended_s - started_s
        prefill_s = duration_s * self._prefill_share(prefill_tokens, decode_tokens)
        self._learn(duration_s, prefill_tokens, decode_tokens)
        for usage, n in prefill:
            usage.prefill_s += prefill_s * n / prefill_tokens
        for usage, n in decode:
            usage.decode_s += (duration_s - prefill_s) * n / decode_tokens

    def _prefill_share(self, prefill_tokens: int, decode_tokens: int) -> float:
        if not prefill_tokens or not decode_tokens:
            return 1.0 if prefill_tokens else 0.0
        prefill, decode = float(prefill_tokens), float(decode_tokens)
        if self._prefill_rate is not None and self._decode_rate is not None:
            prefill *= self._prefill_rate
            decode *= self._decode_rate
        return prefill / (prefill + decode)

    def _learn(self, duration_s: float, prefill_tokens: int, decode_tokens: int) -> None:
        if prefill_tokens and not decode_tokens:
            self._prefill_rate = _blend(self._prefill_rate, duration_s / prefill_tokens)
        elif decode_tokens and not prefill_tokens:
            self._decode_rate = _blend(self._decode_rate, duration_s / decode_tokens)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + _MEMORY * (new - old)
