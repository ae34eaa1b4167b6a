"""Grammars in the sampler: the output follows them under every lever, and they say where it ends."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher

from inferoptim import LLM, SamplingParams
from inferoptim.config import EngineConfig
from inferoptim.engine.core import EngineCore
from inferoptim.engine.grammar import GrammarCompiler
from inferoptim.engine.request import Request
from inferoptim.errors import RequestError, UnsupportedError
from tests.server import save_tiny_chat_model

SCHEMA = {
    "type": "object",
    "properties": {
        "who": {"enum": ["Ada", "Grace"]},
        "tags": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3},
    },
    "required": ["who", "tags"],
    "additionalProperties": False,
}
GRAMMAR = LLMatcher.grammar_from_json_schema(json.dumps(SCHEMA), overrides={"whitespace_flexible": False})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_chat_model(tmp_path_factory.mktemp("grammar")))


def outputs(model: str, exercised: str = "steps", **levers: object) -> list[tuple[str, str | None]]:
    llm = LLM(model, device="cpu", kernels="torch", max_model_len=96, **levers)
    samplings = [
        SamplingParams(max_tokens=80, grammar=GRAMMAR, temperature=0 if i % 2 else 1.0, seed=i)
        for i in range(4)
    ]
    free = SamplingParams(max_tokens=40, temperature=0)
    results = llm.generate([f"prompt {i}" for i in range(5)], [*samplings, free])
    llm.core.check()
    assert llm.core.counters()[exercised] > 0
    return [(r.text, r.finish_reason) for r in results]


def test_output_follows_the_grammar_under_every_lever(model: str) -> None:
    plain = outputs(model)
    for text, reason in plain[:4]:
        jsonschema.validate(json.loads(text), SCHEMA)
        assert reason == "stop"
    assert len({text for text, _ in plain[:4]}) > 1
    assert plain[4][1] == "length", "a free neighbour is not touched"
    assert outputs(model, speculative="prompt-lookup", num_speculative_tokens=4) == plain
    crowded = outputs(model, "preemptions", kv_budget_bytes=25 * 4 * 512, block_size=4, prefix_caching=False)
    assert crowded == plain, "a preempted sequence goes on where its grammar stood"


def test_masks_along_drafts_are_those_of_one_token_at_a_time(model: str) -> None:
    llm = LLM(model, device="cpu", kernels="torch")
    core = llm.core
    compiler = GrammarCompiler(core.files.folder, core.vocab_size, core.eos_token_ids)
    text = '{"who":"Ada","tags":[1]}'
    tokens = [*llm.tokenizer.encode(text), *core.eos_token_ids]
    state = compiler.start(GRAMMAR)
    masks = state.allowed_along(tokens)
    for i, token in enumerate(tokens):
        assert masks[i][token], "what the grammar allows is in the mask"
        assert np.array_equal(masks[i], compiler.start(GRAMMAR, tokens[:i]).allowed())
    assert np.flatnonzero(masks[-1]).tolist() == list(core.eos_token_ids), "then only the end"
    assert np.array_equal(state.allowed(), masks[0]), "looking ahead moves nothing"
    wrong = int(np.flatnonzero(~masks[0])[0])
    assert len(state.allowed_along([wrong, wrong, wrong])) == 4


def test_a_wrong_grammar_fails_its_request_only(model: str) -> None:
    llm = LLM(model, device="cpu", kernels="torch")
    with pytest.raises(RequestError, match="grammar"):
        llm.generate(["x"], SamplingParams(grammar="start: nothing_of_that_name"))
    with pytest.raises(ValueError, match="grammar"):
        SamplingParams(grammar=GRAMMAR, ignore_eos=True)
    assert llm.generate("x", SamplingParams(max_tokens=2)).token_ids


def test_a_tokenizer_that_llguidance_cannot_take_refuses_grammars_and_nothing_else(tmp_path: Path) -> None:
    folder = save_tiny_chat_model(tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["decoder"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    core = EngineCore(EngineConfig.create(model=str(folder), device="cpu", kernels="torch"))
    core.prepare_grammars()
    with pytest.raises(UnsupportedError, match=r"tokenizer\.json: can't determine decoder"):
        core.add(Request("a", (5,), SamplingParams(max_tokens=2, grammar=GRAMMAR), 0.0))
    core.add(Request("b", (5,), SamplingParams(max_tokens=2), 0.0))
    while core.has_work:
        core.step()
