"""A real `inferoptim serve` process over a tiny random model, for tests that need a server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.bpe import save_bpe_tokenizer
from tests.tiny import save_tiny_llama

MODEL = "tiny"


def save_tiny_chat_model(folder: Path, **overrides: object) -> Path:
    """A random 2-layer Llama with a real BPE tokenizer, a chat template and a context of 512 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tiny_llama(folder, **{"vocab_size": 1024, "max_position_embeddings": 512, **overrides})
    save_bpe_tokenizer(folder)
    return folder


@dataclass
class RunningServer:
    """One server process, ready for requests."""

    process: subprocess.Popen[str]
    url: str
    engine: dict[str, Any]  # what the engine says of itself
    stderr: IO[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def events(self) -> list[dict[str, Any]]:
        """What the server has said since it was ready; call it once, after its end."""
        assert self.process.stdout is not None
        return [json.loads(line) for line in self.process.stdout]

    def complaints(self) -> str:
        """What it wrote to standard error so far."""
        self.stderr.seek(0)
        return self.stderr.read()

    def stop(self, timeout_s: float = 30.0) -> int:
        """Ask it to end; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def start_server(model: Path, log: Path, *options: str) -> RunningServer:
    """Start a server on a free port and wait until its model is loaded.

    Args:
        model: folder.
        log: file for its standard error.
        options: more options of `inferoptim serve`.

    Raises:
        AssertionError: it ended instead; the message holds what it wrote.
    """
    stderr = log.open("w+")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "inferoptim", "serve", str(model), "--served-model-name", MODEL, "--port", "0",
            "--json", *options,
        ],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    url = ""
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "bound":
            url = event["url"]
        elif event["event"] == "ready":
            return RunningServer(process, url, event["engine"], stderr)
    process.wait()
    stderr.seek(0)
    raise AssertionError(f"the server ended with status {process.returncode}: {stderr.read()}")
