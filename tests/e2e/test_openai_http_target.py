"""The bench's HTTP target against our own server: the same work, token for token, as it asks of every target."""

from __future__ import annotations

import numpy as np
import pytest

from inferoptim.config import SamplingParams
from inferoptim.errors import ConfigError, UnsupportedError
from inferoptim.models.tokenizer import load_tokenizer
from inferoptim.targets.base import TargetRequest
from inferoptim.targets.openai_http import OpenAIHttpTarget
from tests.server import RunningServer


def _requests(count: int, tokens: int = 24) -> list[TargetRequest]:
    rng = np.random.default_rng(3)
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    prompts = [tuple(rng.integers(10, 1000, 40).tolist()) for _ in range(count)]
    return [
        TargetRequest(f"r{i}", "", ids, sampling, arrival_offset_s=i * 0.01) for i, ids in enumerate(prompts)
    ]


@pytest.fixture
def target(server: RunningServer):
    made = OpenAIHttpTarget(server.url)
    yield made
    made.close()


def test_answers_are_exact_timed_and_the_same_open_or_closed(target):
    info = target.load()
    assert info.settings["token_ids"] == "the server's"
    assert info.settings["prefix_cache_reset"] == "cache_salt"
    requests = _requests(8)
    closed = target.run(requests, concurrency=3)
    opened = target.run(requests)
    assert [r.request_id for r in closed] == [r.request_id for r in requests]
    for a, b in zip(closed, opened, strict=True):
        assert a.error is None
        assert a.token_ids == b.token_ids
        assert len(a.token_ids) == 24
        assert len(a.token_times_s) == 24
        assert a.sent_s <= a.token_times_s[0] <= a.token_times_s[-1] == a.finished_s
        assert list(a.token_times_s) == sorted(a.token_times_s)


def test_a_reset_forgets_the_prefix_cache_and_counters_show_it(target):
    target.load()
    requests = _requests(4)
    target.reset()
    target.run(requests, concurrency=4)
    before = target.counters()
    again = target.run(requests, concurrency=4)
    warm = target.counters()["prefix_cache_hit_tokens"] - before["prefix_cache_hit_tokens"]
    assert warm > 0
    assert all(r.num_cached_prompt_tokens > 0 for r in again)
    target.reset()
    cold = target.run(requests, concurrency=4)
    assert all(r.num_cached_prompt_tokens == 0 for r in cold)
    assert target.counters()["prefix_cache_hit_tokens"] - before["prefix_cache_hit_tokens"] == warm


def test_without_token_ids_a_tokenizer_is_needed_and_disagreement_is_an_error(
    server, tiny_chat_model, monkeypatch
):
    from inferoptim.targets import openai_client

    async def no_ids(self, api="auto"):
        self.features = openai_client.Features("completions", return_token_ids=False)
        return self.features

    monkeypatch.setattr(openai_client.OpenAIClient, "probe", no_ids)
    with pytest.raises(UnsupportedError, match="tokenizer"):
        OpenAIHttpTarget(server.url).load()
    target = OpenAIHttpTarget(server.url, tokenizer=load_tokenizer(tiny_chat_model))
    assert target.load().settings["token_ids"] == "answers encoded again"
    for response in target.run(_requests(2), concurrency=2):
        # random tokens rarely encode back to themselves: then the answer is an error, never a wrong count
        assert response.error is not None or len(response.token_ids) == 24
    target.close()


def test_a_server_that_is_not_there_is_one_clear_line():
    with pytest.raises(ConfigError, match="nobody listens"):
        OpenAIHttpTarget("http://127.0.0.1:1").load()


@pytest.mark.parametrize("chat", [False, True])
def test_every_event_counts_its_tokens_on_request(server: RunningServer, chat: bool):
    import json
    import urllib.request

    prompt = {"messages": [{"role": "user", "content": "hello"}]} if chat else {"prompt": "hello"}
    options = {"include_usage": True, "continuous_usage_stats": True}
    fields = {
        "model": "tiny",
        "max_tokens": 20,
        "ignore_eos": True,
        "return_token_ids": True,
        "temperature": 0,
        **prompt,
    }
    path = f"{server.url}/v1/{'chat/' if chat else ''}completions"

    def post(**more):
        request = urllib.request.Request(
            path, json.dumps({**fields, **more}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    whole = json.loads(post())
    stream = post(stream=True, stream_options=options).decode()
    events = [json.loads(line[6:]) for line in stream.split("\n\n") if line.startswith("data: {")]
    counted, ids = 0, []
    for event in events[:-1]:
        (choice,) = event["choices"]
        here = choice.get("token_ids") or []
        ids += here
        if here or choice["finish_reason"]:
            assert event["usage"]["completion_tokens"] >= counted + len(here)
        counted = len(ids)
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == len(ids) == 20
    assert ids == whole["choices"][0]["token_ids"]


def test_an_endpoint_stands_in_the_bench_beside_the_engine(server: RunningServer, tiny_chat_model, tmp_path):
    from inferoptim.cli.main import main
    from inferoptim.records.reader import read_run

    out = tmp_path / "run"
    command = [
        "bench",
        "--model",
        str(tiny_chat_model),
        "--device",
        "cpu",
        "--targets",
        "engine",
        "--levers",
        "paged_kv",
    ]
    command += [
        "--workload",
        "synthetic:16/8",
        "--concurrency",
        "2",
        "--runs",
        "2",
        "--warmups",
        "1",
        "--no-quality",
    ]
    command += ["--endpoint", f"ours={server.url}", "--endpoint", "gone=http://127.0.0.1:1"]
    main([*command, "--out", str(out), "--json"])
    run = read_run(out)
    found = {c.config_id: c for c in run.summary.configurations}
    assert found["endpoint-gone"].status == "failed"
    assert "nobody listens" in found["endpoint-gone"].error
    assert found["engine-off"].status == "ok"
    endpoint = found["endpoint-ours"]
    assert endpoint.status == "ok"
    assert endpoint.settings["prefix_cache_reset"] == "cache_salt"
    (metric,) = [m for m in run.summary.metrics if m.config_id == endpoint.config_id]
    assert metric.runs == 2
    assert metric.output_tokens_per_s.value > 0
    assert metric.ttft_s["p50"].value > 0
    assert metric.floor_s is None
    assert metric.peak_rss_bytes is None  # this process is only the client
    assert any("ours, over HTTP" in warning for warning in run.summary.warnings)
    hashes = {r.output_sha256 for runs in run.requests_by_run().values() for rs in runs.values() for r in rs}
    assert len(hashes) == 2  # two prompts, each with one answer, whoever gave it
    assert "ours, over HTTP" in (out / "report.html").read_text()
