"""The client's reading of HTTP and server-sent events, byte by byte, and the names it gives to what goes wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferoptim.config import SamplingParams
from inferoptim.errors import ConfigError, UnsupportedError
from inferoptim.targets.http_client import Endpoint
from inferoptim.targets.openai_client import Features, OpenAIClient
from inferoptim.targets.openai_stream import Call

SSE = {b"content-type": b"text/event-stream; charset=utf-8"}


def _event(**fields) -> bytes:
    return b"data: " + json.dumps(fields, ensure_ascii=False).encode() + b"\n\n"


def _text(text: str, **more) -> dict:
    return {"choices": [{"index": 0, "text": text, "finish_reason": None, **more}]}


def _read(pieces: list[bytes]) -> Call:
    call = Call()
    call.on_head(200, SSE)
    for number, piece in enumerate(pieces):
        call.on_body(piece, float(number + 1))
    call.end(99.0)
    return call


STREAM = (
    _event(**_text("héllo "))
    + b": keep-alive\n\n"
    + _event(**_text("wörld 🙂"))
    + _event(choices=[{"index": 0, "text": "", "finish_reason": "length"}])
    + _event(
        choices=[],
        usage={"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
    )
    + b"data: [DONE]\n\n"
)


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=30), crlf=st.booleans())
def test_the_answer_does_not_depend_on_how_the_bytes_were_cut(cuts, crlf):
    stream = STREAM.replace(b"\n", b"\r\n") if crlf else STREAM
    edges = sorted({0, len(stream), *cuts})
    call = _read([stream[a:b] for a, b in pairwise(edges)])
    assert call.error is None
    assert call.text == "héllo wörld 🙂"
    assert (call.prompt_tokens, call.output_tokens, call.cached_prompt_tokens) == (7, 2, 4)
    assert call.finish_reason == "length"
    assert len(call.token_times_s) == 2


def test_a_chunk_counts_the_tokens_that_the_server_says():
    running = _read([
        _event(**_text("ab"), usage={"completion_tokens": 2}),
        _event(**_text(""), usage={"completion_tokens": 3}),  # a token whose bytes are not a character yet
        _event(**_text("cd"), usage={"completion_tokens": 6}),
        b"data: [DONE]\n\n",
    ])  # fmt: skip
    assert running.token_times_s == (1, 1, 2, 3, 3, 3)
    ids = _read(
        [_event(**_text("ab", token_ids=[5, 6])), _event(**_text("c", token_ids=[7])), b"data: [DONE]\n\n"]
    )
    assert ids.token_ids == [5, 6, 7]
    assert ids.token_times_s == (1, 1, 2)


def test_chunks_that_cannot_be_mapped_to_tokens_have_no_token_times():
    call = _read(
        [_event(**_text("abc")), _event(choices=[], usage={"completion_tokens": 3}), b"data: [DONE]\n\n"]
    )
    assert call.output_tokens == 3
    assert call.token_times_s is None
    assert call.first_token_s == 1


def test_a_stop_token_without_text_came_with_the_finish_reason():
    end = {"choices": [{"text": "", "finish_reason": "stop"}]}
    call = _read([_event(**_text("a")), _event(**end), _event(choices=[], usage={"completion_tokens": 2})])
    assert call.token_times_s == (1, 2)


def test_chat_deltas_and_reasoning_count_as_tokens_and_an_empty_role_does_not():
    call = _read([
        _event(choices=[{"delta": {"role": "assistant", "content": ""}}]),
        _event(choices=[{"delta": {"reasoning_content": "hm"}}]),
        _event(choices=[{"delta": {"content": "yes"}, "finish_reason": "stop"}]),
        b"data: [DONE]\n\n",
    ])  # fmt: skip
    assert call.first_token_s == 2
    assert call.text == "yes"
    assert call.output_tokens is None  # no usage, no counts: not said is not 0


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([_event(**_text("a"))], "truncated"),
        ([b"data: {not json}\n\n", b"data: [DONE]\n\n"], "bad_stream"),
        ([_event(error={"message": "engine died", "code": 503})], "stream_error"),
        ([b"data: [DONE]\n\n"], "empty"),
    ],
)
def test_a_stream_that_went_wrong_is_named(pieces, error):
    assert _read(pieces).error == error


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def _against(
    handler: Handler, use: Callable[[OpenAIClient], Awaitable[object]], timeout_s: float = 20.0
) -> object:
    """Run `use` with a client of a real socket server."""

    async def run() -> object:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = OpenAIClient(Endpoint.parse(f"http://127.0.0.1:{port}"), model="m", timeout_s=timeout_s)
        try:
            return await use(client)
        finally:
            client.close()
            server.close()

    return asyncio.run(run())


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, dict]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next(
        (int(v.split(":")[1]) for v in head.split("\r\n") if v.lower().startswith("content-length")), 0
    )
    body = await reader.readexactly(length)
    return head.split(" ")[1], json.loads(body) if body else {}


def _respond(writer: asyncio.StreamWriter, status: int, body: bytes, kind: str = "application/json") -> None:
    writer.write(
        f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )


async def _generate(client: OpenAIClient) -> Call:
    return await client.call(client.message("hi", SamplingParams(max_tokens=2)))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "reset"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "reset"),
        (
            b'HTTP/1.1 429 X\r\nRetry-After: 3\r\nContent-Length: 27\r\n\r\n{"error":{"message":"full"}}',
            "http_429",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + _event(**_text("a")), "truncated"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", "bad_answer"),
    ],
)
def test_what_a_broken_server_does_has_a_name(answer, error):
    async def handler(reader, writer):
        await _read_request(reader)
        writer.write(answer)
        writer.close()

    call = _against(handler, _generate)
    assert call.error == error
    if error == "http_429":
        assert call.retry_after == "3"


def test_an_answer_that_never_comes_is_a_timeout_and_a_port_without_listener_is_refused():
    async def silent(reader, writer):
        await reader.read()
        writer.close()

    assert _against(silent, _generate, timeout_s=0.05).error == "timeout"

    async def nobody() -> Call:
        return await _generate(OpenAIClient(Endpoint.parse("http://127.0.0.1:1"), model="m"))

    assert asyncio.run(nobody()).error == "refused"


def test_a_connection_that_the_server_closed_while_idle_is_replaced():
    seen = []

    async def handler(reader, writer):
        path, _ = await _read_request(reader)
        seen.append(path)
        _respond(writer, 200, STREAM, "text/event-stream")
        await writer.drain()
        writer.close()  # without saying so

    async def twice(client: OpenAIClient) -> list[str | None]:
        first = await _generate(client)
        second = await _generate(client)
        return [first.error, second.error]

    assert _against(handler, twice) == [None, None]
    assert len(seen) == 2


def test_the_probe_drops_the_fields_that_a_strict_server_refuses():
    bodies = []

    async def strict(reader, writer):
        while True:
            try:
                path, body = await _read_request(reader)
            except asyncio.IncompleteReadError:
                return
            bodies.append((path, body))
            unknown = [k for k in ("return_token_ids", "ignore_eos") if k in body]
            if path == "/v1/completions":
                _respond(writer, 404, b'{"detail":"Not Found"}')
            elif unknown or "continuous_usage_stats" in body.get("stream_options", {}):
                _respond(
                    writer,
                    400,
                    json.dumps(
                        {"error": {"message": f"Unrecognized: {unknown or 'continuous_usage_stats'}"}}
                    ).encode(),
                )
            else:
                _respond(writer, 200, STREAM, "text/event-stream")

    features = _against(strict, lambda client: client.probe())
    assert features == Features(
        "chat", include_usage=True, continuous_usage=False, return_token_ids=False, ignore_eos=False
    )
    assert "ignore_eos" not in bodies[-1][1]


def test_a_refused_key_and_a_server_that_cannot_generate_are_said_in_one_line():
    async def locked(reader, writer):
        while not reader.at_eof():
            try:
                await _read_request(reader)
            except asyncio.IncompleteReadError:
                return
            _respond(writer, 401, b'{"error":{"message":"bad key"}}')

    with pytest.raises(ConfigError, match="--api-key-env"):
        _against(locked, lambda client: client.probe())

    async def web(reader, writer):
        while not reader.at_eof():
            try:
                await _read_request(reader)
            except asyncio.IncompleteReadError:
                return
            _respond(writer, 405, b"<html>no</html>", "text/html")

    with pytest.raises(UnsupportedError, match="http_405"):
        _against(web, lambda client: client.probe())


@pytest.mark.parametrize(
    "url",
    ["ftp://host", "http://", "http://user:pw@host", "http://host?x=1", "http://host:99999", "http://[::1"],
)
def test_an_address_that_is_not_one_is_refused(url):
    with pytest.raises(ConfigError):
        Endpoint.parse(url)


def test_addresses_lose_their_v1_and_keep_their_prefix():
    assert Endpoint.parse("127.0.0.1:8000/v1").url == "http://127.0.0.1:8000"
    assert Endpoint.parse("https://host/api/v1/").base_path == "/api"
    assert (
        Endpoint.parse("http://[::1]:8000")
        .head("GET", "/x")
        .startswith(b"GET /x HTTP/1.1\r\nHost: [::1]:8000")
    )
    with pytest.raises(ConfigError, match="line breaks"):
        Endpoint.parse("http://h", {"Authorization": "a\r\nX: b"})
