"""The access log of a real server, read by the audit."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from inferoptim.cli.main import main
from tests.server import MODEL, save_tiny_chat_model, start_server


def test_every_request_is_a_line_that_the_audit_reads(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    model = save_tiny_chat_model(tmp_path / "model")
    log = tmp_path / "access.jsonl"
    server = start_server(model, tmp_path / "log", "--access-log", str(log))
    try:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            body = {"model": MODEL, "prompt": "one secret prompt", "max_tokens": 5, "ignore_eos": True}
            usages = [http.post("/v1/completions", json=body).json()["usage"] for _ in range(4)]
            chat = {
                "model": MODEL,
                "messages": [{"role": "user", "content": "hello"}],
                "max_tokens": 3,
                "stream": True,
            }
            assert "[DONE]" in http.post("/v1/chat/completions", json=chat).text
    finally:
        assert server.stop() == 0
    text = log.read_text()
    assert "secret" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["operation"] for line in lines] == ["text_completion"] * 4 + ["chat"]
    assert all(line["status"] == 200 for line in lines)
    assert all(0 < line["ttft_s"] <= line["e2e_s"] for line in lines)
    for line, usage in zip(lines, usages, strict=False):
        assert (line["prompt_tokens"], line["completion_tokens"]) == (usage["prompt_tokens"], 5)
    capsys.readouterr()
    assert main(["audit", str(log), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert str(sum(line["prompt_tokens"] for line in lines)) in json.dumps(page)


def test_an_access_log_that_cannot_be_written_stops_the_start(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    model = save_tiny_chat_model(tmp_path / "model")
    assert main(["serve", str(model), "--port", "0", "--access-log", str(tmp_path / "no" / "log")]) == 2
    assert "--access-log" in capsys.readouterr().err
