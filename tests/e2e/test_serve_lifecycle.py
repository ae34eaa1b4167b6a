"""Disconnects, a full queue, keys, deadlines, the death of the engine, a drain: each with real processes."""

from __future__ import annotations

import gzip
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import openai
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.server import MODEL, RunningServer, start_server

KEY = "sk-" + "a" * 40
PLAIN = "/v1/completions"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; how long it takes is nobody's promise here."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def metric(http: httpx.Client, name: str) -> float:
    for line in http.get("/metrics").text.splitlines():
        if line.startswith(name + " "):
            return float(line.split()[-1])
    raise AssertionError(f"no metric {name}")


def plain(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "x", "max_tokens": 2, **fields}


class Stream:
    """A streamed completion read on a thread of its own."""

    def __init__(self, http: httpx.Client, **fields: Any) -> None:
        self.lines: list[str] = []
        self.status = 0
        self.begun, self.ended = threading.Event(), threading.Event()
        self._http, self._fields = http, plain(stream=True, **fields)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            with self._http.stream("POST", PLAIN, json=self._fields) as answer:
                self.status = answer.status_code
                for line in answer.iter_lines():
                    self.lines.append(line)
                    self.begun.set()
        except httpx.HTTPError as error:
            self.lines.append(repr(error))
        self.begun.set()
        self.ended.set()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def test_a_disconnect_frees_everything(server: RunningServer) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        before = metric(http, 'inferoptim_requests_finished_total{reason="abort"}')
        with http.stream(
            "POST", PLAIN, json=plain(max_tokens=128, n=4, stream=True, ignore_eos=True)
        ) as answer:
            next(answer.iter_lines())
        aborted = 'inferoptim_requests_finished_total{reason="abort"}'
        until(lambda: metric(http, aborted) == before + 4, "four choices are aborted")
        deep = http.get("/health", params={"deep": "1"}).json()["engine"]
        assert (deep["running"], deep["waiting"], deep["kv_used_tokens"]) == (0, 0, 0)
        for stream in (False, True):  # a client that leaves before there is anything to read
            with pytest.raises(httpx.ReadTimeout):
                http.post(
                    PLAIN,
                    json=plain(max_tokens=128, n=32, ignore_eos=True, stream=stream),
                    timeout=httpx.Timeout(60, read=0.001),
                )
        until(
            lambda: http.get("/health", params={"deep": "1"}).json()["engine"]["running"] == 0,
            "both are gone",
        )
        until(lambda: metric(http, "inferoptim_kv_cache_usage_ratio") == 0, "the scrape sees it")


def test_a_deadline_ends_a_request(server: RunningServer) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        late = http.post(PLAIN, json=plain(max_tokens=128, n=16, ignore_eos=True, timeout_s=0.001))
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert http.get("/health", params={"deep": "1"}).json()["engine"]["kv_used_tokens"] == 0


class Collector(BaseHTTPRequestHandler):
    """An OpenTelemetry collector that keeps what it gets."""

    spans: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.spans.extend(span for scope in resource.scope_spans for span in scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def collector() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def guarded(
    tiny_chat_model: Path, tmp_path_factory: pytest.TempPathFactory, collector: str
) -> Iterator[RunningServer]:
    """A server with keys, traces and a short queue over the null engine, whose steps take 5 ms."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text(f"# who may call\nalice:{KEY}\nbob:{KEY[::-1]}\n")
    running = start_server(
        tiny_chat_model, folder / "stderr.txt", "--null-engine-step-ms", "5", "--api-key-file", str(folder / "keys"),
        "--otlp-endpoint", collector, "--max-queue", "1", "--usd-per-hour", "3.6", "-e", "max_num_seqs=2",
    )  # fmt: skip
    yield running
    running.stop()


@pytest.fixture
def http(guarded: RunningServer) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=guarded.url, headers=headers, timeout=60) as client:
        yield client


def test_keys(guarded: RunningServer, http: httpx.Client) -> None:
    for header in (
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        "Bearer \u00e9\u00e9",
    ):
        headers = {} if header is None else {"Authorization": header.encode()}
        for method, path in (("POST", PLAIN), ("GET", "/v1/models"), ("POST", "/tokenize")):
            answer = httpx.request(
                method, guarded.url + path, json=plain() if method == "POST" else None, headers=headers
            )
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    parent = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    assert http.post(PLAIN, json=plain(user="mallory"), headers=parent).status_code == 200
    scrape = httpx.get(f"{guarded.url}/metrics").text
    assert 'inferoptim_tenant_requests_total{tenant="alice"} 1.0' in scrape, "the key names the tenant"
    assert "mallory" not in scrape


def test_a_full_queue_says_when_to_come_back(http: httpx.Client) -> None:
    streams = [Stream(http, max_tokens=400) for _ in range(3)]
    until(lambda: metric(http, "inferoptim_requests_running") == 2, "two run")
    until(lambda: metric(http, "inferoptim_requests_waiting") == 1, "one waits")
    full = http.post(PLAIN, json=plain())
    assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
    assert int(full.headers["Retry-After"]) >= 1
    for stream in streams:
        assert stream.ended.wait(60)
        assert stream.lines[-2:] == ["data: [DONE]", ""]
    assert http.post(PLAIN, json=plain()).status_code == 200


def test_a_dead_engine_fails_requests_and_comes_back(guarded: RunningServer, http: httpx.Client) -> None:
    served = metric(http, "inferoptim_generation_tokens_total")
    streaming, waiting = Stream(http, max_tokens=4000), Stream(http, max_tokens=4000)
    assert streaming.begun.wait(60)
    assert waiting.begun.wait(60)
    os.kill(engine_pid(guarded), signal.SIGKILL)
    assert streaming.ended.wait(60)
    assert '"code":"engine_dead"' in streaming.text
    assert "[DONE]" not in streaming.text
    statuses = set()

    def back() -> bool:
        statuses.add(http.get("/health").status_code)
        return http.get("/ready").status_code == 200

    until(back, "a new engine is loaded")
    assert http.get("/health").status_code == 200
    answer = http.post(PLAIN, json=plain(max_tokens=3))
    assert answer.json()["usage"]["completion_tokens"] == 3
    assert metric(http, "inferoptim_engine_deaths_total") == 1
    assert metric(http, "inferoptim_generation_tokens_total") > served, "counters survive the engine"
    assert metric(http, "inferoptim_requests_running") == 0
    assert 503 in statuses, "health was red meanwhile"


def test_the_official_client_sees_a_server_error_in_a_stream(
    guarded: RunningServer, http: httpx.Client
) -> None:
    client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=KEY, max_retries=0)
    chunks = client.completions.create(model=MODEL, prompt="x", max_tokens=4000, stream=True)
    next(iter(chunks))
    os.kill(engine_pid(guarded), signal.SIGKILL)
    with pytest.raises(openai.APIError, match="engine died"):
        list(chunks)
    until(lambda: http.get("/ready").status_code == 200, "a new engine is loaded")


def test_sigterm_drains(guarded: RunningServer, http: httpx.Client) -> None:
    """The last test with this server."""
    stream = Stream(http, max_tokens=600)
    assert stream.begun.wait(60)
    os.kill(guarded.pid, signal.SIGTERM)
    until(lambda: http.get("/ready").status_code == 503, "it takes no more")
    refused = http.post(PLAIN, json=plain())
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert http.get("/health").status_code == 200, "alive, only busy leaving"
    assert stream.ended.wait(60)
    assert stream.lines[-2:] == ["data: [DONE]", ""], "what had begun was finished"
    assert guarded.stop() == 0, guarded.complaints()
    assert [event["event"] for event in guarded.events()] == ["stopped"]


def test_a_span_a_request(guarded: RunningServer) -> None:
    """After the drain: the last spans were sent, too."""
    spans = [{a.key: a.value for a in s.attributes} | {"span": s} for s in Collector.spans]
    [child] = [s for s in spans if s["span"].trace_id.hex() == TRACE]
    assert child["span"].name == f"text_completion {MODEL}"
    assert child["span"].parent_span_id.hex() == PARENT
    assert child["gen_ai.operation.name"].string_value == "text_completion"
    assert child["gen_ai.request.model"].string_value == MODEL
    assert child["gen_ai.usage.output_tokens"].int_value == 2
    assert child["gen_ai.response.finish_reasons"].array_value.values[0].string_value == "length"
    assert 0 < child["gen_ai.response.time_to_first_chunk"].double_value < 60
    assert {s["error.type"].string_value for s in spans if "error.type" in s} == {"EngineDeadError"}


def test_a_drain_has_an_end_and_an_engine_that_stays_dead_ends_the_server(
    tiny_chat_model: Path, tmp_path: Path
) -> None:
    null = ("--null-engine-step-ms", "5", "--on-engine-death", "exit")
    slow = start_server(tiny_chat_model, tmp_path / "slow.txt", *null, "--drain-timeout", "0.2")
    mortal = start_server(tiny_chat_model, tmp_path / "mortal.txt", *null)
    with httpx.Client(base_url=slow.url) as to_slow, httpx.Client(base_url=mortal.url) as to_mortal:
        endless, cut = Stream(to_slow, max_tokens=8000), Stream(to_mortal, max_tokens=8000)
        assert endless.begun.wait(60)
        assert cut.begun.wait(60)
        os.kill(slow.pid, signal.SIGTERM)
        os.kill(engine_pid(mortal), signal.SIGKILL)
        for stream in (endless, cut):
            assert stream.ended.wait(60)
            assert '"code":"engine_dead"' in stream.text, "told, not just cut"
        assert slow.process.wait(60) == 0, slow.complaints()
        assert mortal.process.wait(60) == 5
        assert "the engine process ended" in mortal.complaints()


def engine_pid(server: RunningServer) -> int:
    """Process id of the server's only child."""
    [child] = psutil.Process(server.pid).children()
    return int(child.pid)
