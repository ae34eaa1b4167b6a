"""One server for all end-to-end tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import RunningServer, save_tiny_chat_model, start_server


@pytest.fixture(scope="session")
def tiny_chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat_model(tmp_path_factory.mktemp("tiny-chat"))


@pytest.fixture(scope="session")
def server(tiny_chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log = tmp_path_factory.mktemp("server") / "stderr.txt"
    options = ["--usd-per-hour", "2", "--metrics-alias", "vllm", "--max-tokens", "128"]
    running = start_server(tiny_chat_model, log, *options, "-e", "kernels=torch", "-e", "num_threads=1")
    yield running
    assert running.stop() == 0, running.complaints()
