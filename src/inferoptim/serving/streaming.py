"""Server-sent events. The hot path of the server: an event is two constant byte strings around one JSON string."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from inferoptim.errors import InferOptimError
from inferoptim.serving import responses
from inferoptim.serving.generation import Delta, Generation
from inferoptim.serving.problems import of_exception
from inferoptim.serving.tools import ToolReader

_encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    """One event."""
    return b"data: " + _encode(value) + b"\n\n"


class Writer:
    """Turns deltas into events of one stream.

    Args:
        generation: whose deltas they are.
        head: id, object, created, model.
        chat: a chat completion; else a plain one.
        tools: read tool calls out of the text.
        include_usage: end with the usage.
        continuous_usage: the usage so far in every event, which then counts its tokens.
        token_ids: the ids of its tokens in every event.
    """

    def __init__(
        self,
        generation: Generation,
        head: dict[str, Any],
        *,
        chat: bool,
        tools: bool,
        include_usage: bool,
        continuous_usage: bool = False,
        token_ids: bool = False,
    ) -> None:
        self._generation, self._head, self._chat = generation, head, chat
        self._include_usage = include_usage
        self._continuous_usage, self._token_ids = continuous_usage, token_ids
        self._counted = (
            continuous_usage or token_ids
        )  # then an event is due even for tokens that show no text yet
        self._readers: dict[int, ToolReader] = {}
        self._tools = tools
        self._opened: set[int] = set()
        self._offsets: dict[int, int] = {}
        self._logprobs = generation.sampling.logprobs is not None
        self._prompt_logprobs = generation.sampling.prompt_logprobs is not None
        self._usage_null: dict[str, Any] = {"usage": None} if include_usage else {}
        before = _encode(head)[:-1] + b',"choices":[{"index":'
        text = b',"delta":{"content":' if chat else b',"text":'
        close = b"}" if chat else b""
        tail = b',"usage":null' if include_usage else b""
        self._before = [b"data: " + before + str(i).encode() + text for i in range(len(generation.choices))]
        self._after = close + b',"logprobs":null,"finish_reason":null}]' + tail + b"}\n\n"

    def events(self, deltas: list[Delta]) -> bytes:
        """The events of these deltas, ready to send as one piece; may be empty."""
        parts: list[bytes] = []
        for delta in deltas:
            if self._chat and delta.index not in self._opened:
                self._opened.add(delta.index)
                parts.append(self._opening(delta.index))
            if delta.finish_reason is None and not self._logprobs and not self._tools:
                if self._counted:
                    parts += (self._before[delta.index], _encode(delta.text), self._after_counted(delta))
                elif delta.text:
                    parts += (self._before[delta.index], _encode(delta.text), self._after)
            else:
                parts += self._full(delta)
        return b"".join(parts)

    def last(self) -> bytes:
        """What follows the last delta."""
        if not self._include_usage:
            return DONE
        usage = responses.usage_dict(self._generation.usage)
        return event({**self._head, "choices": [], "usage": usage}) + DONE

    def _after_counted(self, delta: Delta) -> bytes:
        """The end of a plain event, with the ids and the usage that were asked for."""
        ids = b',"token_ids":' + _encode(delta.token_ids) if self._token_ids else b""
        close = (
            b'},"logprobs":null,"finish_reason":null'
            if self._chat
            else b',"logprobs":null,"finish_reason":null'
        )
        usage = b""
        if self._continuous_usage:
            usage = b',"usage":' + _encode(responses.usage_dict(self._generation.usage))
        elif self._include_usage:
            usage = b',"usage":null'
        return close + ids + b"}]" + usage + b"}\n\n"

    def _opening(self, index: int) -> bytes:
        choice: dict[str, Any] = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        if self._prompt_logprobs:
            values = self._generation.choices[index].prompt_logprobs
            choice["prompt_logprobs"] = responses.prompt_logprobs(self._generation.tokenizer, values)
        return event({**self._head, "choices": [choice], **self._usage_null})

    def _full(self, delta: Delta) -> list[bytes]:
        """Events of a delta that carries more than text."""
        text, calls = delta.text, []
        reason = delta.finish_reason
        if self._tools:
            reader = self._readers.setdefault(delta.index, ToolReader())
            first = reader.num_calls
            pieces = reader.feed(text, finished=reason is not None)
            text = pieces.content
            calls = [
                {"index": first + i, **responses.tool_call_dict(call)} for i, call in enumerate(pieces.calls)
            ]
            if reason == "stop" and reader.num_calls:
                reason = "tool_calls"
        logprobs = self._delta_logprobs(delta) if self._logprobs and delta.token_ids else None
        parts = []
        ids = delta.token_ids
        due = text or calls or logprobs is not None or (self._counted and ids)
        if due or (reason is not None and not self._chat):
            body: dict[str, Any] = {"content": text} if text or not calls else {}
            if calls:
                body["tool_calls"] = calls
            # a chat ends with an event of its own, a plain completion with its last text
            parts.append(self._event(delta.index, body, text, logprobs, None if self._chat else reason, ids))
        if reason is not None and self._chat:
            parts.append(self._event(delta.index, {}, "", None, reason, []))
        return parts

    def _event(
        self,
        index: int,
        body: dict[str, Any],
        text: str,
        logprobs: Any,
        reason: str | None,
        token_ids: list[int],
    ) -> bytes:
        content: dict[str, Any] = {"delta": body} if self._chat else {"text": text}
        choice: dict[str, Any] = {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}
        if self._token_ids:
            choice["token_ids"] = token_ids
        if self._prompt_logprobs and not self._chat and index not in self._opened:
            self._opened.add(index)
            values = self._generation.choices[index].prompt_logprobs
            choice["prompt_logprobs"] = responses.prompt_logprobs(self._generation.tokenizer, values)
        usage = self._usage_null
        if self._continuous_usage:
            usage = {"usage": responses.usage_dict(self._generation.usage)}
        return event({**self._head, "choices": [choice], **usage})

    def _delta_logprobs(self, delta: Delta) -> dict[str, Any]:
        tokenizer = self._generation.tokenizer
        if self._chat:
            return responses.chat_logprobs(tokenizer, delta.logprobs)
        offset = self._offsets.get(delta.index, 0)
        result = responses.completion_logprobs(tokenizer, delta.logprobs, delta.token_ids, offset)
        self._offsets[delta.index] = offset + sum(map(len, result["tokens"]))
        return result


Piece = tuple[bytes, bool]  # what to send, and whether more follows


async def stream(generation: Generation, writer: Writer, first: list[Delta]) -> AsyncIterator[Piece]:
    """The pieces of a streamed answer. An error after the first piece becomes an event; the stream then ends without DONE.

    Args:
        generation: started.
        writer: for this generation.
        first: deltas that were read before the answer began.
    """
    try:
        deltas = first
        while True:
            piece = writer.events(deltas)
            if generation.finished:
                yield piece + writer.last(), False
                return
            if piece:
                yield piece, True
            deltas = await generation.next()
    except InferOptimError as error:
        yield event(of_exception(error).body()), False


class EventStream(Response):
    """A streamed answer.

    Args:
        pieces: what to send, the last one marked: it ends the answer in the same write.
        on_end: called once, however the stream ends.
    """

    media_type = "text/event-stream"

    def __init__(
        self, pieces: AsyncIterator[Piece], on_end: Callable[[], None], headers: dict[str, str]
    ) -> None:
        self._pieces, self._on_end = pieces, on_end
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})

    def init_headers(self, headers: Any = None) -> None:
        """No Content-Length: the length is not known."""
        pairs = [(b"content-type", b"text/event-stream; charset=utf-8")]
        pairs += [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in (headers or {}).items()]
        self.raw_headers = pairs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; end at once when the client leaves."""
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.get_running_loop().create_task(_until_disconnect(receive))
        watcher.add_done_callback(lambda done: None if done.cancelled() else task.cancel())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for piece, more in self._pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": more})
        except asyncio.CancelledError:
            if not watcher.done():
                raise  # the server is stopping, not the client leaving
        finally:
            watcher.cancel()
            self._on_end()


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
