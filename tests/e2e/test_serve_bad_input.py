"""What a server must survive: each body is refused with a 4xx that names the field, and the next request works."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.server import MODEL, RunningServer

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "x"}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [USER], "max_tokens": 2, **fields}


def plain(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "x", "max_tokens": 2, **fields}


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": value}}


FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
BODIES = [
    # (path, body, the field that the answer names)
    (CHAT, chat(unknown=1), "unknown"),
    (CHAT, chat(messages=[]), "messages"),
    (CHAT, chat(messages=[{"role": "king", "content": "x"}]), "messages[0]"),
    (CHAT, chat(messages=[{"content": "x"}]), "messages[0]"),
    (CHAT, chat(messages=[{"role": "user"}]), "messages[0].content"),
    (CHAT, chat(messages=[{"role": "user", "content": 5}]), "messages[0].content"),
    (CHAT, chat(messages=[{"role": "assistant"}]), "messages[0]"),
    (CHAT, chat(messages=[{**USER, "name": "bob"}]), "messages[0].name"),
    (CHAT, chat(messages=[{**USER, "mood": "good"}]), "messages[0].mood"),
    (CHAT, chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content"),
    (CHAT, chat(temperature=-1), "temperature"),
    (CHAT, chat(temperature=1e308), "temperature"),
    (CHAT, chat(temperature="hot"), "temperature"),
    (CHAT, chat(top_p=0), "top_p"),
    (CHAT, chat(n=0), "n"),
    (CHAT, chat(n=10**6), "n"),
    (PLAIN, plain(n=100, prompt=["a", "b", "c"]), "n"),
    (CHAT, chat(seed=2**70), "seed"),
    (CHAT, chat(max_tokens=-5), "max_tokens"),
    (CHAT, chat(max_tokens=10**12), "max_tokens"),
    (CHAT, chat(max_tokens=500), "max_tokens"),
    (CHAT, chat(max_completion_tokens=3), "max_tokens"),
    (CHAT, chat(top_logprobs=2), "top_logprobs"),
    (CHAT, chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    (CHAT, chat(logit_bias={"99999999": 1}), "logit_bias"),
    (CHAT, chat(logit_bias={"x": 1}), "logit_bias"),
    (CHAT, chat(logit_bias={"1": 1000}), "logit_bias.1"),
    (CHAT, chat(stop=""), "stop"),
    (CHAT, chat(stream_options={"include_usage": True}), "stream_options"),
    (CHAT, chat(stream=True, stream_options={"x": 1}), "stream_options.x"),
    (CHAT, chat(tool_choice="auto"), "tool_choice"),
    (CHAT, chat(tools=[]), "tools"),
    (CHAT, chat(tools=[FUNCTION, FUNCTION]), "tools"),
    (CHAT, chat(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools[0].function.name"),
    (
        CHAT,
        chat(tools=[FUNCTION], tool_choice={"type": "function", "function": {"name": "g"}}),
        "tool_choice",
    ),
    (CHAT, chat(tools=[FUNCTION], response_format={"type": "json_object"}), "response_format"),
    (CHAT, chat(tools=[FUNCTION], ignore_eos=True), "ignore_eos"),
    (CHAT, chat(response_format={"type": "yaml"}), "response_format"),
    (CHAT, chat(response_format={"type": "json_schema"}), "response_format.json_schema"),
    (CHAT, chat(response_format=schema({"type": "banana"})), "response_format.json_schema.schema"),
    (CHAT, chat(response_format=schema({"$ref": "#/nowhere"})), "response_format.json_schema.schema"),
    (
        CHAT,
        chat(response_format=schema({"pattern": "(", "type": "string"})),
        "response_format.json_schema.schema",
    ),
    (CHAT, chat(response_format=schema({"not": {}})), "response_format.json_schema.schema"),
    (CHAT, chat(chat_template_kwargs={"messages": []}), "chat_template_kwargs"),
    (CHAT, chat(functions=[]), "functions"),
    (CHAT, chat(audio={}), "audio"),
    (CHAT, chat(modalities=["audio"]), "modalities[0]"),
    (CHAT, chat(reasoning_effort="high"), "reasoning_effort"),
    (CHAT, chat(service_tier="flex"), "service_tier"),
    (CHAT, chat(store=True), "store"),
    (CHAT, chat(metadata={"a": "b"}), "metadata"),
    (CHAT, chat(timeout_s=0), "timeout_s"),
    (PLAIN, plain(suffix="end"), "suffix"),
    (PLAIN, plain(best_of=2), "best_of"),
    (PLAIN, plain(prompt=[]), "prompt"),
    (PLAIN, plain(prompt=""), "prompt"),
    (PLAIN, plain(prompt=None), "prompt"),
    (PLAIN, plain(prompt=[[1], ["a"]]), "prompt"),
    (PLAIN, plain(prompt=[99999]), "prompt"),
    (PLAIN, plain(prompt=[-1]), "prompt"),
    (PLAIN, plain(prompt="x " * 600), "prompt"),
    (PLAIN, plain(prompt=[5] * 100_000), "prompt"),
    (PLAIN, plain(max_tokens=0), "max_tokens"),
    (PLAIN, plain(echo=True, stream=True), "echo"),
    (PLAIN, plain(min_tokens=3), "min_tokens"),
    (PLAIN, plain(stop_token_ids=[5000]), "stop_token_ids"),
    ("/tokenize", {}, "prompt"),
    ("/detokenize", {"tokens": [1 << 40]}, "tokens[0]"),
]
RAW = [
    # (body, status)
    (b"", 400),
    (b"{", 400),
    (b"null", 400),
    (b"[" * 100_000, 400),
    (b'{"model":"tiny","prompt":"\xff\xfe","max_tokens":1}', 400),
    (b'{"model":"tiny","prompt":"\\ud800","max_tokens":1}', 400),
    (b'{"model":"tiny","prompt":"x","temperature":NaN}', 400),
    (b'{"model":"tiny","prompt":"x","temperature":Infinity}', 400),
    (b'{"model":"tiny","prompt":"x","temperature":1e999}', 400),
    (b'{"model":"tiny","prompt":"x","seed":' + b"9" * 10_000 + b"}", 400),
    (b'{"model":"tiny","prompt":"' + b"x" * 10_000_000 + b'"}', 413),
]


@pytest.fixture(scope="module")
def http(server: RunningServer) -> Any:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
        answer = client.post(PLAIN, json=plain())  # after all that, it still works, and no block is lost
        assert answer.status_code == 200
        deep = client.get("/health", params={"deep": "1"})
        assert (deep.status_code, deep.json()["engine"]["running"]) == (200, 0)
        assert deep.json()["engine"]["kv_used_tokens"] == 0


@pytest.mark.parametrize(("path", "body", "param"), BODIES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_wrong_field_is_named(http: httpx.Client, path: str, body: dict[str, Any], param: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert param.rpartition(".")[2].split("[")[0] in error["message"] or "prompt" in error["message"], error


@pytest.mark.parametrize(("body", "status"), RAW, ids=range(len(RAW)))
def test_a_broken_body_is_refused(http: httpx.Client, body: bytes, status: int) -> None:
    answer = http.post(PLAIN, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text[:500]
    assert answer.json()["error"]["message"]


def test_wrong_paths_methods_and_types(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").status_code == 404
    assert http.get(PLAIN).status_code == 405
    assert http.post(PLAIN, content=b"a=b", headers={"Content-Type": "text/plain"}).status_code == 415
    for path in ("/v1/nothing", PLAIN):
        assert http.get(path).json()["error"]["type"] == (
            "not_found_error" if "nothing" in path else "invalid_request_error"
        )


def connect(server: RunningServer, **options: int) -> socket.socket:
    parts = urlsplit(server.url)
    sock = socket.socket()
    for name, value in options.items():
        sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    sock.settimeout(60)
    sock.connect((parts.hostname, parts.port))
    return sock


def raw_post(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(data), data)


def test_pipelined_requests_are_answered_in_order(server: RunningServer) -> None:
    with connect(server) as sock:
        asked = b"".join(raw_post(PLAIN, plain(prompt=f"p{i}", echo=True)) for i in range(3))
        sock.sendall(asked + b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = b""
        while chunk := sock.recv(65536):
            received += chunk
    assert received.count(b"HTTP/1.1 200 OK") == 4
    places = [received.index(b'"text":"p%d' % i) for i in range(3)]
    assert places == sorted(places)


def test_an_endless_head_is_cut_off(server: RunningServer) -> None:
    with connect(server) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: ")
        received = b""
        for _ in range(64):
            try:
                sock.sendall(b"y" * 4096)
            except OSError:  # closed while we were still sending
                break
        try:
            received = sock.recv(65536)
        except ConnectionResetError:
            received = b"reset"
    assert received == b"reset" or received.startswith(b"HTTP/1.1 400")


def test_a_client_that_never_reads_stops_nobody(server: RunningServer, http: httpx.Client) -> None:
    fields = chat(
        max_tokens=60, n=16, logprobs=True, top_logprobs=20, stream=True, temperature=0, ignore_eos=True
    )
    with connect(server, SO_RCVBUF=4096) as sock:
        sock.sendall(raw_post(CHAT, fields))
        for i in range(3):
            assert http.post(PLAIN, json=plain(prompt=f"meanwhile {i}")).status_code == 200
