"""Prompts long enough for the native step to give each thread rows of its own, against the torch operators."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inferoptim import LLM, EngineConfig, SamplingParams
from tests.tiny import save_tiny_llama, tiny_tokenizer


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_long_prompts_give_the_same_logprobs_on_two_threads(tmp_path: Path, quantization: str) -> None:
    """Threads that run apart must not overwrite each other's prepared inputs (products of different widths)."""
    save_tiny_llama(tmp_path, max_position_embeddings=512, intermediate_size=512, num_hidden_layers=4)
    tiny_tokenizer(tmp_path)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(5, 200, (n,), generator=generator).tolist() for n in (97, 211, 389)]
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    logprobs = {}
    for kernels in ("torch", "native"):
        llm = LLM(
            EngineConfig.create(
                model=str(tmp_path),
                dtype="float32",
                kernels=kernels,
                num_threads=2,
                max_num_seqs=1,
                quantization=quantization,
            )
        )
        logprobs[kernels] = [
            [step.logprob for step in llm.generate([ids], sampling)[0].prompt_logprobs or []]
            for _ in range(3)
            for ids in prompts
        ]
    for expected, got in zip(logprobs["torch"], logprobs["native"], strict=True):
        assert len(got) == len(expected) > 90
        if quantization == "none":
            torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), rtol=1e-4, atol=1e-4)
        else:  # the native step quantises inputs by groups, the torch operators by tokens
            assert torch.tensor(got).sub(torch.tensor(expected)).abs().mean() < 0.1
