"""From token ids to text: incremental detokenising and stop strings, one `TextStream` a request."""

from __future__ import annotations

from dataclasses import dataclass

from inferoptim.config import SamplingParams
from inferoptim.engine.request import TokenLogprobs
from inferoptim.models.tokenizer import IncrementalDetokenizer, Tokenizer


@dataclass(slots=True)
class RequestOutput:
    """Everything a finished request gave (or has given so far, when streaming)."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    token_ids: list[int]
    text: str
    finish_reason: str | None = None
    num_cached_tokens: int = 0  # prompt tokens that came from the prefix cache
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    delta: str = ""  # streaming: the text added since the previous output


class TextStream:
    """Text of one request. Holds back what may still turn out to be the beginning of a stop string."""

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._stops = sampling.stop
        self._keep_stop = sampling.include_stop_str_in_output
        self._min_tokens = sampling.min_tokens
        self._num_tokens = 0
        self._released = 0
        self.text = ""  # all text so far, cut at the stop string once one was met
        self.stopped = False

    def append(self, token_ids: tuple[int, ...]) -> int:
        """Add tokens; how many of them belong to the output (fewer when a stop string ends it). Sets `stopped`."""
        if not self._stops:
            self.text += self._detokenizer.append(token_ids)
            return len(token_ids)
        for count, token_id in enumerate(token_ids, start=1):
            before = len(self.text)
            self.text += self._detokenizer.append((token_id,))
            self._num_tokens += 1
            if self._num_tokens >= self._min_tokens and self._cut(before):
                return count
        return len(token_ids)

    def finish(self) -> None:
        """The sequence ended: what the detokeniser still held comes out."""
        if not self.stopped:
            before = len(self.text)
            self.text += self._detokenizer.flush()
            if self._stops and self._num_tokens >= self._min_tokens:
                self._cut(before)

    def take(self, finished: bool) -> str:
        """Text that can be shown and was not taken before."""
        end = len(self.text) if finished or self.stopped else len(self.text) - self._held_back()
        delta = self.text[self._released : max(end, self._released)]
        self._released += len(delta)
        return delta

    def _cut(self, before: int) -> bool:
        """Look for the earliest stop string that ends in the text after `before`; cut there."""
        best: tuple[int, str] | None = None
        for stop in self._stops:
            at = self.text.find(stop, max(0, before - len(stop) + 1))
            if at >= 0 and (best is None or at < best[0]):
                best = (at, stop)
        if best is None:
            return False
        at, stop = best
        self.text = self.text[: at + len(stop)] if self._keep_stop else self.text[:at]
        self.stopped = True
        return True

    def _held_back(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for size in range(min(max(map(len, self._stops), default=1) - 1, len(self.text)), 0, -1):
            end = self.text[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0
