"""One call to an OpenAI endpoint as it arrives: server-sent events → token times, usage, or a named error.

How many tokens a chunk holds is what the server says: its `token_ids` where it sends them, else the running count of
`continuous_usage_stats`. Where it says neither, a chunk counts as one token, and only if the final usage agrees; if it
does not, the times of single tokens are unknown (None) and ITL is "not measured". Chunks are never split by guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Chunk)
_DETAIL = 300  # characters of an error kept


class Call:
    """Everything seen of one call; a `Sink` of `HttpClient`. Times are ``time.perf_counter()``."""

    __slots__ = (
        "_body",
        "_buffer",
        "_counts",
        "_exact",
        "_stop_s",
        "_streaming",
        "_times",
        "cached_prompt_tokens",
        "completion_tokens",
        "detail",
        "done_marker",
        "error",
        "finish_reason",
        "finished_s",
        "first_token_s",
        "prompt_tokens",
        "retry_after",
        "sent_s",
        "started_s",
        "status",
        "texts",
        "token_ids",
    )

    def __init__(self) -> None:
        self.started_s = 0.0  # when the client took the request up
        self.sent_s = 0.0  # when its bytes were handed to the socket
        self.first_token_s: float | None = None
        self.finished_s = 0.0  # last token, or the end of the answer where there was none
        self.status: int | None = None
        self.error: str | None = None
        self.detail = ""
        self.finish_reason: str | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.cached_prompt_tokens: int | None = None
        self.texts: list[str] = []
        self.token_ids: list[int] | None = None
        self.retry_after: str | None = None
        self.done_marker = False
        self._streaming = False
        self._buffer = b""
        self._body = bytearray()
        self._times: list[float] = []  # of chunks that brought something
        self._counts: list[int] = []  # tokens of each
        self._exact = False  # the server counted the tokens of each chunk
        self._stop_s: float | None = None  # when the finish_reason came, in a chunk without text

    @property
    def text(self) -> str:
        """What was generated."""
        return "".join(self.texts)

    @property
    def output_tokens(self) -> int | None:
        """As the server counted them; None where it did not say and could not be counted."""
        if self.completion_tokens is not None:
            return self.completion_tokens
        return sum(self._counts) if self._exact else None

    @property
    def token_times_s(self) -> tuple[float, ...] | None:
        """When each token arrived, or None where the chunks cannot be mapped to tokens."""
        if not self._times or self.output_tokens is None:
            return None
        times = tuple(t for t, n in zip(self._times, self._counts, strict=True) for _ in range(n))
        if len(times) == self.output_tokens - 1 and self._stop_s is not None:
            times += (self._stop_s,)  # the end-of-sequence token has no text: it came with the finish_reason
        return times if len(times) == self.output_tokens else None

    # Sink

    def on_head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        self.status = status
        self._streaming = status == 200 and headers.get(b"content-type", b"").startswith(b"text/event-stream")
        if b"retry-after" in headers:
            self.retry_after = headers[b"retry-after"].decode("latin-1")

    def on_body(self, data: bytes, now_s: float) -> None:
        if not self._streaming:
            self._body += data
            return
        if self._buffer:
            data = self._buffer + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        events = data.split(b"\n\n")
        self._buffer = events.pop()
        for event in events:
            self._event(event, now_s)

    def end(self, now_s: float) -> None:
        """The answer is complete: name what went wrong, if anything did."""
        if self.status is not None and self.status != 200:
            self.error = f"http_{self.status}"
            self.detail = error_message(bytes(self._body))
        elif not self._streaming and self.error is None:
            self._whole(bytes(self._body))
        if self.finished_s == 0.0:
            self.finished_s = now_s
        if self.error is None and self._streaming and not (self.done_marker or self.finish_reason):
            self.error, self.detail = "truncated", "the stream ended without [DONE] or a finish_reason"
        if self.error is None and not self._times and self._streaming and not self.completion_tokens:
            self.error, self.detail = "empty", "the answer holds no token"

    def fail(self, kind: str, detail: str, now_s: float) -> None:
        """The transport gave up."""
        self.error, self.detail = kind, detail[:_DETAIL]
        if self.finished_s == 0.0:
            self.finished_s = now_s

    def _event(self, event: bytes, now_s: float) -> None:
        if not event.startswith(b"data:"):
            lines = [line for line in event.split(b"\n") if line.startswith(b"data:")]
            if not lines:
                return  # a comment (keep-alive) or an event without data
            event = b"\n".join(lines)
        payload = event[5:].strip() if b"\n" not in event else _join(event)
        if payload == b"[DONE]":
            self.done_marker = True
            return
        try:
            chunk = _DECODER.decode(payload)
        except msgspec.DecodeError as error:
            self.error, self.detail = "bad_stream", f"{error}: {payload[:80]!r}"
            return
        if chunk.error is not None:
            self.error, self.detail = "stream_error", error_message(payload)
            return
        count = 0
        brought = False
        for choice in chunk.choices:
            brought = self._take(choice) or brought
            if choice.token_ids is not None:
                self._exact = True
                count += len(choice.token_ids)
        if chunk.usage is not None:
            self._take_usage(chunk.usage)
            total = chunk.usage.completion_tokens
            if chunk.choices and total is not None and not count:
                self._exact = True
                count = total - sum(self._counts)
        if not self._exact:
            count = int(brought)
            if self.finish_reason == "stop" and not brought and self._stop_s is None:
                self._stop_s = now_s
        if count > 0:
            if self.first_token_s is None:
                self.first_token_s = now_s
            self.finished_s = now_s
            self._times.append(now_s)
            self._counts.append(count)

    def _take(self, choice: _Choice) -> bool:
        if choice.finish_reason:
            self.finish_reason = choice.finish_reason
        if choice.token_ids:
            self.token_ids = (self.token_ids or []) + choice.token_ids
        delta = choice.delta or choice.message
        piece = choice.text or (delta.content if delta else None)
        if piece:
            self.texts.append(piece)
        hidden = delta is not None and (delta.reasoning_content or delta.reasoning or delta.tool_calls)
        return bool(piece or hidden)

    def _take_usage(self, usage: _Usage) -> None:
        if usage.prompt_tokens is not None:
            self.prompt_tokens = usage.prompt_tokens
        if usage.completion_tokens is not None:
            self.completion_tokens = usage.completion_tokens
        if usage.prompt_tokens_details is not None:
            self.cached_prompt_tokens = usage.prompt_tokens_details.cached_tokens

    def _whole(self, body: bytes) -> None:
        """An answer that was not streamed: no TTFT, no ITL."""
        try:
            chunk = _DECODER.decode(body)
        except msgspec.DecodeError as error:
            self.error, self.detail = "bad_answer", f"{error}: {body[:80]!r}"
            return
        if chunk.error is not None:
            self.error, self.detail = "stream_error", error_message(body)
            return
        for choice in chunk.choices:
            self._take(choice)
        if chunk.usage is not None:
            self._take_usage(chunk.usage)


def _join(event: bytes) -> bytes:
    """The data lines of one event, joined as the SSE standard says."""
    return b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))


def error_message(body: bytes) -> str:
    """The human part of an error answer: OpenAI's `error.message`, FastAPI's `detail`, else its first characters."""
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body[:_DETAIL].decode("utf-8", "replace")
    if isinstance(value, dict):
        error = value.get("error", value)
        if isinstance(error, dict):
            return str(error.get("message") or error.get("detail") or error)[:_DETAIL]
        return str(error)[:_DETAIL]
    return str(value)[:_DETAIL]
