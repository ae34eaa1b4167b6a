"""One HTTP request inside the server: its sequences in the engine, the text that grows, who waits for it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Protocol

from inferoptim.config import SamplingParams
from inferoptim.engine.output import TextStream
from inferoptim.errors import InferOptimError
from inferoptim.models.tokenizer import Tokenizer
from inferoptim.serving import messages as m
from inferoptim.serving.engine_client import EngineClient


class DeadlineError(InferOptimError):
    """The request's time is over."""


@dataclass(slots=True)
class Delta:
    """What one choice gained since it was last asked."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[m.Logprob]
    finish_reason: str | None


class Record(Protocol):
    """Told what becomes of a request; see `metrics.RequestRecord`."""

    @property
    def tenant(self) -> str:
        """Whose it is, as counted."""
        ...

    def on_submit(self, request_id: str) -> None: ...
    def on_reject(self, request_id: str) -> None: ...
    def on_prompt(self, tokens: int, cached: int) -> None: ...
    def on_first_token(self, scheduled_s: float, at_s: float) -> None: ...
    def on_more_tokens(self, gap_s: float, tokens: int) -> None: ...
    def on_output_tokens(self, tokens: int) -> None: ...
    def on_finish(self, reason: str, tokens: int, first_token_s: float, last_token_s: float) -> None: ...
    def on_abort(self, reason: str) -> None: ...


class Choice:
    """One sequence of a request. Implements `Sink`; everything runs on the event loop."""

    def __init__(self, index: int, request_id: str, generation: Generation, prompt: list[int]) -> None:
        self.index, self.request_id, self.prompt = index, request_id, prompt
        self._generation = generation
        self._stream = TextStream(generation.tokenizer, generation.sampling)
        self._pending: list[m.Output] = []
        self.token_ids: list[int] = []
        self.logprobs: list[m.Logprob] = []
        self.prompt_logprobs: list[m.Logprob] = []
        self.num_cached = 0
        self.finish_reason: str | None = None
        self.first_token_s = 0.0
        self.last_token_s = 0.0  # time.perf_counter() of the step that gave the latest token

    # -- from the engine ----------------------------------------------------------------------------------------------

    def on_output(self, output: m.Output, at_s: float) -> None:
        generation, count = self._generation, len(output.token_ids)
        if count:
            record = generation.record
            if self.last_token_s:
                record.on_more_tokens(at_s - self.last_token_s, count)
            else:
                self.first_token_s = at_s
                record.on_first_token(output.scheduled_s, at_s)
                if self.index % generation.n == 0:
                    record.on_prompt(len(self.prompt), output.num_cached)
                if count > 1:
                    record.on_more_tokens(0.0, count - 1)
            self.last_token_s = at_s
        self._pending.append(output)
        if generation.streaming or output.finish_reason is not None or generation.sampling.stop:
            generation.wake()

    def on_error(self, error: InferOptimError) -> None:
        self._generation.record.on_reject(self.request_id)
        self._generation.fail(error)

    # -- to the client ------------------------------------------------------------------------------------------------

    def take(self) -> Delta | None:
        """Everything that came since the last call, as one delta; None when nothing did, or nothing can be shown yet."""
        if not self._pending or self.finish_reason is not None:
            return None
        outputs, self._pending = self._pending, []
        first = len(self.token_ids)
        for output in outputs:
            kept = self._stream.append(tuple(output.token_ids))
            self.token_ids.extend(output.token_ids[:kept])
            if output.logprobs:
                self.logprobs.extend(output.logprobs[:kept])
            if output.prompt_logprobs:
                self.prompt_logprobs.extend(output.prompt_logprobs)
            self.num_cached = max(self.num_cached, output.num_cached)
            if self._stream.stopped:
                self.finish_reason = "stop"
                self._generation.engine.finish(self.request_id)
                break
            if output.finish_reason is not None:
                self._stream.finish()
                self.finish_reason = "stop" if self._stream.stopped else output.finish_reason
        text = self._stream.take(self.finish_reason is not None)
        tokens = self.token_ids[first:]
        record = self._generation.record
        record.on_output_tokens(len(tokens))
        if self.finish_reason is not None:
            record.on_finish(self.finish_reason, len(self.token_ids), self.first_token_s, self.last_token_s)
        if not text and not tokens and self.finish_reason is None:
            return None
        return Delta(self.index, text, tokens, self.logprobs[first:], self.finish_reason)

    @property
    def text(self) -> str:
        """All text so far."""
        return self._stream.text


@dataclass(slots=True)
class Usage:
    """Tokens of a request, as the OpenAI API counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(slots=True)
class Generation:
    """The sequences of one HTTP request: prompts x n choices.

    One task reads it with `next`; the engine client's callbacks wake that task. While the task is busy, tokens gather,
    and the next read gives them as one delta: under load a stream sends fewer, larger events, and each token still
    leaves as soon as the event loop gets to it.
    """

    id: str
    engine: EngineClient
    tokenizer: Tokenizer
    prompts: list[list[int]]
    sampling: SamplingParams
    n: int
    record: Record
    deadline_s: float  # time.perf_counter()
    streaming: bool = True  # wake the reader at every token, not only when a choice may have ended
    cache_salt: int = 0
    arrival_s: float = field(default_factory=time.perf_counter)
    choices: list[Choice] = field(default_factory=list)
    error: InferOptimError | None = None
    _waiter: asyncio.Future[None] | None = None
    _timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Send every sequence to the engine.

        Raises:
            EngineDeadError: it is not running; nothing was sent.
        """
        loop = asyncio.get_running_loop()
        fields = self.sampling.model_dump(exclude_defaults=True)
        for prompt in self.prompts:
            for i in range(self.n):
                index = len(self.choices)
                choice = Choice(index, f"{self.id}-{index}", self, prompt)
                self.choices.append(choice)
                if self.sampling.seed is not None and self.n > 1:
                    fields = {**fields, "seed": self.sampling.seed + i}
                add = m.Add(choice.request_id, prompt, fields, self.arrival_s, self.cache_salt)
                self.engine.submit(add, choice)
                self.record.on_submit(choice.request_id)
        remaining_s = self.deadline_s - time.perf_counter()
        self._timer = loop.call_later(max(remaining_s, 0.0), self._expire)

    async def next(self) -> list[Delta]:
        """Wait until some choice gained something; [] once all have ended.

        Raises:
            InferOptimError: the engine refused the request or died, or the deadline passed.
        """
        while True:
            if self.error is not None:
                raise self.error
            deltas = [d for choice in self.choices if (d := choice.take()) is not None]
            if deltas or self.finished:
                return deltas
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    async def finish(self) -> None:
        """Wait for the end.

        Raises:
            InferOptimError: as `next`.
        """
        while not self.finished:
            await self.next()

    def close(self) -> None:
        """Nobody reads any more: what still runs is aborted, and its blocks are free before the engine's next step."""
        if self._timer is not None:
            self._timer.cancel()
        for choice in self.choices:
            if choice.finish_reason is None:
                self.engine.abort(choice.request_id)
                self.record.on_abort(self._why())

    def wake(self) -> None:
        """Something happened."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, error: InferOptimError) -> None:
        """End with an error; the first one counts."""
        if self.error is None:
            self.error = error
        self.wake()

    @property
    def finished(self) -> bool:
        """True when every choice has ended."""
        return all(choice.finish_reason is not None for choice in self.choices)

    @property
    def usage(self) -> Usage:
        """Tokens so far. A prompt counts once, however many choices were made of it."""
        cached = [c.num_cached for c in self.choices[:: self.n]]
        return Usage(sum(map(len, self.prompts)), sum(len(c.token_ids) for c in self.choices), sum(cached))

    def _why(self) -> str:
        """The word under which unfinished sequences are counted."""
        if self.error is None:
            return "abort"
        return "deadline" if isinstance(self.error, DeadlineError) else "error"

    def _expire(self) -> None:
        spent_s = time.perf_counter() - self.arrival_s
        self.fail(DeadlineError(f"the deadline passed after {spent_s:.1f} s"))
