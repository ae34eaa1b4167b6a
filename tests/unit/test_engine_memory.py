"""Memory of an engine process outside weights and KV-cache: at most 300 MB, torch and Python included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import save_tiny_llama, tiny_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
@pytest.mark.skipif(torch.version.cuda is not None, reason="torch with CUDA in it takes more by itself")
def test_an_engine_process_takes_little_beside_weights_and_written_kv(tmp_path: Path):
    save_tiny_llama(
        tmp_path, head_dim=128, max_position_embeddings=512
    )  # 134 MB of KV budget, a third of it used
    tiny_tokenizer(tmp_path)
    script = [str(ROOT / "benchmarks/engine_memory.py"), "--model", str(tmp_path), "--json"]
    done = subprocess.run([sys.executable, *script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    account = json.loads(done.stdout)
    assert (
        account["kv_budget"] > 3 * account["kv_written"] > 0
    )  # else a cache written in advance would go unseen
    assert account["overhead_with_it"] <= 300e6, account
    assert account["unwanted_modules"] == []
