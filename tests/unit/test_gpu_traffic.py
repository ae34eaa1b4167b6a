"""The driver of `benchmarks.gpu --phases traffic` on an engine without a GPU: it must see what it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.traffic import drive

from inferoptim import LLM, EngineConfig
from tests.tiny import save_tiny_llama, tiny_tokenizer


def test_random_traffic_keeps_the_accounts(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    tiny_tokenizer(tmp_path)
    token_bytes = 2 * 2 * 2 * 16 * 4
    settings: dict[str, Any] = {
        "dtype": "float32", "max_model_len": 48, "max_num_seqs": 4, "block_size": 4, "max_num_batched_tokens": 24,
        "kv_budget_bytes": 14 * 4 * token_bytes,
    }  # fmt: skip
    llm = LLM(EngineConfig.create(model=str(tmp_path), kernels="torch", **settings))
    seen = drive(llm.core, seed=2, go_on=lambda seen: seen.steps < 80, longest=(14, 16), at_once=10)
    assert not seen.failed
    assert seen.finished > 10
    assert seen.aborted
