"""`inferoptim load` as a person runs it, against real sockets: the null server, and a server that misbehaves."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

import pytest

from inferoptim.bench.load.null_server import NullProtocol, answer
from inferoptim.bench.load.rows import RowFile
from inferoptim.bench.load.self_test import null_server
from inferoptim.cli.main import main
from inferoptim.records.load_schema import LoadRequestRecord, LoadSummary
from inferoptim.records.workload_file import (
    Workload,
    WorkloadHeader,
    WorkloadRequest,
    WorkloadSource,
    save_workload,
)

QUIET = ["--no-self-test", "--max-lag-ms", "60000", "--input-tokens", "8", "--output-tokens", "4"]


@pytest.fixture(scope="module")
def null_url():
    with null_server() as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def counting_server():
    """A null server on a thread, and an event: two workers have sent so much that requests of theirs have ended."""
    counted, ready, ends = threading.Event(), threading.Event(), []

    class Counting(NullProtocol):
        requests = 0

        def on_message_complete(self):
            Counting.requests += 1
            if Counting.requests > 40:  # far more than the probes before the stage
                counted.set()
            super().on_message_complete()

    async def serve():
        server = await asyncio.get_running_loop().create_server(Counting, "127.0.0.1", 0)
        over = asyncio.Event()
        ends.extend((server.sockets[0].getsockname()[1], asyncio.get_running_loop(), over))
        ready.set()
        async with server:
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(timeout=60)
    port, loop, over = ends
    yield f"http://127.0.0.1:{port}", counted
    loop.call_soon_threadsafe(over.set)
    thread.join()


def _results(folder):
    summary = LoadSummary.model_validate_json((folder / "load.json").read_text())
    lines = (folder / "requests.jsonl").read_text().splitlines()
    return summary, [LoadRequestRecord.model_validate_json(line) for line in lines]


def test_open_loop_stages_keep_their_rate_and_every_request_is_recorded(null_url, tmp_path, capsys):
    out = tmp_path / "run"
    command = [
        "load",
        null_url,
        "--rate",
        "50,50..200",
        "--duration",
        "0.8",
        "--slo",
        "e2e=30s",
        "--out",
        str(out),
    ]
    assert main([*command, *QUIET]) == 0
    summary, records = _results(out)
    assert [s.loop for s in summary.stages] == ["open", "open"]
    assert len(records) == sum(s.requests for s in summary.stages)
    assert all(r.error is None and r.output_tokens == 4 and len(r.token_times_s) == 4 for r in records)
    assert all(r.sent_s >= r.started_s >= r.arrival_s for r in records)
    assert summary.stages[0].attainment == 1.0
    assert summary.stages[0].requests < summary.stages[1].requests
    assert summary.features["return_token_ids"] is True
    page = (out / "load.html").read_text()
    assert page.count("<svg") == 3
    assert "http" not in page.replace(null_url, "").replace("http://www.w3.org/2000/svg", "").replace(
        "http-equiv", ""
    )
    assert "rate-50..200" in capsys.readouterr().out


def test_closed_loop_json_and_french_page(null_url, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["load", null_url, "--concurrency", "1,4", "--num-requests", "70", "--json", "--language", "fr"]
    assert main([*command, "--out", str(out), *QUIET]) == 0
    printed = LoadSummary.model_validate_json(capsys.readouterr().out)
    assert printed == _results(out)[0]
    assert [s.requests for s in printed.stages] == [70, 70]
    assert set(printed.stages[0].e2e_s) == {"p50", "p95"}  # 70 requests do not carry a P99
    assert "Palier par palier" in (out / "load.html").read_text()


def test_a_lagging_client_invalidates_the_run(null_url, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["load", null_url, "--rate", "50", "--duration", "0.5", "--out", str(out), *QUIET]
    assert main([*command, "--max-lag-ms", "0.000001"]) == 7
    captured = capsys.readouterr()
    assert "client was the bottleneck" in captured.err
    assert "INVALID" in captured.out
    assert "INVALID" in (out / "load.html").read_text()
    assert not _results(out)[0].valid


def test_the_self_test_measures_the_client_beside_the_run(null_url, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["load", null_url, "--rate", "20", "--duration", "0.5", "--out", str(out)]
    status = main([*command, "--input-tokens", "8", "--output-tokens", "4", "--max-lag-ms", "60000"])
    assert status == 0
    summary, _ = _results(out)
    assert summary.self_test.tokens_per_request == 4
    assert 0 < summary.stages[0].client.ceiling_share < 0.7
    assert "self-test" in capsys.readouterr().out


class _Limited(BaseHTTPRequestHandler):
    """Answers while fewer than `room` requests are in flight, else 429: a capacity that a search can find."""

    protocol_version = "HTTP/1.1"
    room, busy, lock = 1, 0, threading.Lock()
    hold = threading.Event()

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._json(200, {"data": [{"id": "m"}]} if self.path == "/v1/models" else {})

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        asked = json.loads(self.rfile.read(length))
        with self.lock:
            full = type(self).busy >= self.room
            type(self).busy += not full
        if full:
            self._json(429, {"error": {"message": "the queue is full"}})
            return
        try:
            self.hold.wait(
                0.05
            )  # never set: each request holds its place for 50 ms, so one place serves 20 a second
            body = answer(asked["max_tokens"])
            self.wfile.write(body)
            self.wfile.flush()
        finally:
            with self.lock:
                type(self).busy -= 1

    def _json(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_the_search_finds_where_a_limited_server_refuses_and_names_the_refusals(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Limited)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    out = tmp_path / "run"
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        command = ["load", url, "--find-max-rate", "--slo", "e2e=5s", "--attainment", "0.5", "--rate", "400"]
        assert main([*command, "--duration", "0.4", "--tolerance", "1", "--out", str(out), *QUIET]) == 0
    finally:
        server.shutdown()
        server.server_close()
    summary, records = _results(out)
    found = summary.max_rate
    assert found.highest_passed_per_s is not None
    assert found.highest_passed_per_s < found.lowest_failed_per_s <= 400
    assert found.probes == tuple(s.name for s in summary.stages)
    refused = [r for r in records if r.error == "http_429"]
    assert refused
    assert refused[0].error_detail == "the queue is full"
    assert all(r.met_slo is False for r in refused)


def test_a_replay_keeps_the_times_the_lengths_and_the_shared_prefixes(server, tiny_chat_model, tmp_path):
    """On our own server, whose prefix cache must find what the workload shares and the tokenizer made exact."""
    header = WorkloadHeader(
        name="two-families",
        arrivals="open",
        segment_tokens=(64, 64),
        source=WorkloadSource(kind="stated"),
        num_requests=12,
    )
    requests = tuple(
        WorkloadRequest(80 + i % 3, 3 + i % 2, arrival_s=i * 0.05, segments=(i % 2,)) for i in range(12)
    )
    save_workload(tmp_path / "traffic.jsonl", Workload(header, requests))
    out = tmp_path / "run"
    command = [
        "load",
        server.url,
        "--replay",
        str(tmp_path / "traffic.jsonl"),
        "--tokenizer",
        str(tiny_chat_model),
    ]
    assert (
        main([*command, "--api", "completions", "--out", str(out), "--no-self-test", "--max-lag-ms", "60000"])
        == 0
    )
    summary, records = _results(out)
    by_arrival = sorted(records, key=lambda r: r.arrival_s)
    assert [r.prompt_tokens for r in by_arrival] == [r.prompt_tokens for r in requests]
    assert [r.output_tokens for r in by_arrival] == [r.output_tokens for r in requests]
    assert [round(r.arrival_s, 2) for r in by_arrival] == [round(r.arrival_s, 2) for r in requests]
    assert summary.stages[0].cached_prompt_share > 0.3
    assert summary.workload["exact_lengths"] is True
    assert all(len(r.token_times_s) == r.output_tokens for r in records)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_had_ended_and_says_so(counting_server, tmp_path, number):
    url, counted = counting_server
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "inferoptim",
        "load",
        url,
        "--concurrency",
        "2",
        "--duration",
        "600",
        *QUIET,
    ]
    process = subprocess.Popen(
        [*command, "--out", str(out), "--warmup", "0"], stdout=subprocess.PIPE, text=True
    )
    assert counted.wait(timeout=60), "the stage never began"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    summary, records = _results(out)
    assert summary.interrupted
    assert len(records) == summary.stages[0].requests > 0
    assert (out / "load.html").is_file()


def test_a_killed_run_leaves_what_had_ended_under_a_name_that_says_so(counting_server, tmp_path):
    url, counted = counting_server
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "inferoptim",
        "load",
        url,
        "--concurrency",
        "2",
        "--duration",
        "600",
        *QUIET,
    ]
    process = subprocess.Popen([*command, "--out", str(out), "--warmup", "0"], stdout=subprocess.DEVNULL)
    partial = out / "requests.partial.jsonl"
    assert counted.wait(timeout=60), "the stage never began"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    records = [LoadRequestRecord.model_validate_json(line) for line in partial.read_text().splitlines()]
    assert records
    assert {r.stage for r in records} == {"concurrency-2"}
    assert [p.name for p in out.iterdir()] == ["requests.partial.jsonl"]


def test_a_disk_that_is_full_ends_the_run_with_one_line(null_url, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    rows = tmp_path / "full"
    rows.symlink_to("/dev/full")
    command = ["load", null_url, "--concurrency", "2", "--duration", "600", *QUIET, "--out", str(out)]
    with mock.patch.object(RowFile, "partial", property(lambda _: rows, lambda *_: None), create=True):
        assert main(command) == 4
    error = capsys.readouterr().err
    assert "disk full" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["http://127.0.0.1:1", "--rate", "1"], "nobody listens"),
        (["http://127.0.0.1:1"], "choose one shape"),
        (["http://127.0.0.1:1", "--rate", "1", "--concurrency", "1"], "choose one shape"),
        (["http://127.0.0.1:1", "--find-max-rate"], "--slo"),
        (["http://127.0.0.1:1", "--rate", "1", "--replay", "nothing"], "no workload"),
        (["http://127.0.0.1:1", "--rate", "1", "--input-tokens", "3"], "both"),
        (["http://127.0.0.1:1", "--rate", "1", "--api-key-env", "NO_SUCH_VARIABLE"], "not set"),
        (["http://127.0.0.1:1", "--concurrency", "1", "--burstiness", "2"], "gamma"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(arguments, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["load", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_refused(null_url, tmp_path, capsys):
    (tmp_path / "note").write_text("mine")
    assert main(["load", null_url, "--rate", "1", "--out", str(tmp_path)]) == 2
    assert "choose another --out" in capsys.readouterr().err
