"""The engine in fp32 against transformers: logits within 1e-4, and the same 64 greedy tokens.

Greedy tokens are those of transformers in float32. Logits are compared with transformers' in float64, on both kernel sets: its
float32 ones are themselves up to 1.0e-4 off on the default model, where the native step is up to 7e-5 off. Torch's operators
are compared with the float32 ones too.

Every architecture that `SUPPORTED_ARCHITECTURES` stands for, tied and untied, on torch's operators and on the native
step; then the default model itself, with its own tokenizer and text.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from inferoptim import LLM, EngineConfig, SamplingParams
from inferoptim.errors import InferOptimError
from inferoptim.models.hub import resolve_model
from inferoptim.models.spec import SUPPORTED_ARCHITECTURES
from inferoptim.models.tokenizer import load_tokenizer
from tests.parity.architectures import ARCHITECTURES, random_model
from tests.tiny import tiny_tokenizer

NEW_TOKENS = 64
TOLERANCE = 1e-4
GREEDY = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)


@dataclass
class Reference:
    """One model as transformers runs it, and what its `generate` answers to the first prompt."""

    folder: Path
    model: Any
    prompts: list[list[int]]
    answer: list[int]

    @cached_property
    def exact(self) -> Any:
        """The same model in float64."""
        return deepcopy(self.model).double()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose time to a second thread, above all beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("model")
    model = random_model(request.param, folder)
    tiny_tokenizer(folder)
    return ask(folder, model, [torch.arange(3, 240, 7).tolist(), [7], [5, 9, 200, 31, 5, 9, 200]])


@torch.inference_mode()
def ask(folder: Path, model: Any, prompts: list[list[int]]) -> Reference:
    prompt = torch.tensor([prompts[0]])
    answer = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    )[0, prompt.shape[1] :].tolist()
    return Reference(folder, model, prompts, answer)


@torch.inference_mode()
def compare(reference: Reference, kernels: str, **fields: Any) -> None:
    llm = LLM(EngineConfig.create(model=str(reference.folder), dtype="float32", kernels=kernels, **fields))
    assert llm.core.info()["decoder"] == ("FusedDecoder" if kernels == "native" else "Decoder")
    outputs = [out.token_ids for out in llm.generate(reference.prompts, GREEDY)]
    assert outputs[0] == reference.answer, "greedy tokens differ from transformers' generate"
    for prompt, output in zip(reference.prompts, outputs, strict=True):
        logits = reference.model(torch.tensor([prompt + output])).logits[0]
        # token after token by induction: the likeliest one after every prefix is the one that the engine chose
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == output
        exact = reference.exact(torch.tensor([prompt + output])).logits[0]
        found = torch.from_numpy(llm.core.logits(prompt + output))
        assert (found - exact).abs().max().item() < TOLERANCE
        if kernels == "torch":
            assert (found - logits).abs().max().item() < TOLERANCE


@pytest.mark.parametrize("kernels", ["torch", "native"])
def test_a_tiny_random_model_of_every_architecture(reference: Reference, kernels: str):
    # chunks of 16 tokens and blocks of 8: prompts cross both, and sequences decode beside each other
    compare(reference, kernels, max_num_batched_tokens=16, block_size=8, num_threads=1)


def test_every_supported_architecture_is_compared():
    assert {f"{family}ForCausalLM" for family, _ in ARCHITECTURES.values()} == set(SUPPORTED_ARCHITECTURES)


@pytest.fixture(scope="module")
def default_model() -> Reference:
    from transformers import AutoModelForCausalLM

    try:
        folder = resolve_model("smollm2-135m").folder
    except InferOptimError as error:
        pytest.skip(f"the default model cannot be had here: {error}")
    tokenizer = load_tokenizer(folder)
    text = tokenizer.apply_chat_template(
        [
            {
                "role": "user",
                "content": "Write three sentences about a lighthouse, puis une phrase en français.",
            }
        ]
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return ask(folder, model, [tokenizer.encode(text, add_special_tokens=False)])


@pytest.mark.parametrize("kernels", ["torch", "native"])
def test_the_default_model(default_model: Reference, kernels: str):
    compare(default_model, kernels, max_model_len=512)
