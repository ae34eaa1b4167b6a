"""The native step gives the same bits on one thread and on several, for short steps and long ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from inferoptim import LLM, EngineConfig
from tests.tiny import save_tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    # widths that differ from product to product: rows prepared for one product would overlap those of another
    save_tiny_llama(folder, max_position_embeddings=512, intermediate_size=416, num_hidden_layers=4)
    tiny_tokenizer(folder)
    return folder


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [("float32", "none"), ("bfloat16", "none"), ("float32", "int8"), ("float32", "int8-weight-only")],
)
def test_threads_change_no_bit(model: Path, dtype: str, quantization: str):
    def build(threads: int) -> LLM:
        return LLM(
            EngineConfig.create(
                model=str(model),
                dtype=dtype,
                quantization=quantization,
                kernels="native",
                num_threads=threads,
            )
        )

    one, three = build(1), build(3)
    generator = torch.Generator().manual_seed(1)
    for length in (
        1,
        5,
        40,
        143,
        400,
    ):  # below 48 tokens a thread the threads share rows, above each has its own
        tokens = torch.randint(3, 250, (length,), generator=generator).tolist()
        expected = one.core.logits(tokens)
        for _ in range(4):  # threads drift apart by chance
            np.testing.assert_array_equal(three.core.logits(tokens), expected)
