"""The Python API as docs/python-api.md shows it: many prompts, a conversation, a stream, and asyncio."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from inferoptim import LLM, AsyncLLM, EngineConfig, SamplingParams
from inferoptim.errors import EngineDeadError, RequestError
from tests.bpe import save_bpe_tokenizer
from tests.tiny import save_tiny_llama

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPTS = ["A lighthouse keeper", "Le phare de la côte", "One"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("tiny")
    save_tiny_llama(folder, vocab_size=512)
    save_bpe_tokenizer(folder, vocab_size=512)
    return str(folder)


@pytest.fixture(scope="module")
def llm(model: str) -> LLM:
    return LLM(model, dtype="float32", num_threads=1)


def test_many_prompts_come_back_in_order(llm: LLM):
    outputs = llm.generate(PROMPTS, GREEDY)
    assert [out.text for out in outputs] == [llm.generate(prompt, GREEDY).text for prompt in PROMPTS]
    for out in outputs:
        assert (len(out.token_ids), out.finish_reason) == (12, "length")
        assert out.text == llm.tokenizer.decode(out.token_ids)
    own = [GREEDY, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True), GREEDY]
    assert [len(out.token_ids) for out in llm.generate(PROMPTS, own)] == [12, 3, 12]


def test_a_conversation_goes_through_the_models_template(llm: LLM):
    out = llm.chat([{"role": "user", "content": "Bonjour"}], GREEDY)
    text = llm.tokenizer.decode(out.prompt_token_ids, skip_special=False)
    assert text == "<|user|>Bonjour</s><|assistant|>"


def test_a_stream_adds_up_and_stops_at_a_stop_string(llm: LLM):
    longer = GREEDY.model_copy(update={"max_tokens": 40})  # up to eight tokens come together
    deltas = [out.delta for out in llm.stream(PROMPTS[0], longer)]
    assert "".join(deltas) == llm.generate(PROMPTS[0], longer).text
    assert len(deltas) > 3
    whole = llm.generate(PROMPTS[0], GREEDY).text
    stop = whole[4:7]
    stopped = GREEDY.model_copy(update={"stop": (stop,)})
    out = llm.generate(PROMPTS[0], stopped)
    assert out.text == whole[: whole.index(stop)]
    assert out.finish_reason == "stop"
    assert "".join(o.delta for o in llm.stream(PROMPTS[0], stopped)) == out.text
    assert not llm.core.has_work


def test_a_whole_configuration_can_be_given(model: str):
    config = EngineConfig.create(model=model, dtype="float32", num_threads=1)
    assert LLM(config, max_num_seqs=2).config.max_num_seqs == 2


def test_asyncio_serves_many_tasks_and_hears_of_cancellation(model: str, llm: LLM):
    expected = [out.text for out in llm.generate(PROMPTS, GREEDY)]

    async def complete(engine: AsyncLLM, prompt: str) -> str:
        text = ""
        async for out in engine.generate(prompt, GREEDY):
            text += out.delta
        return text

    async def scenario() -> None:
        engine = AsyncLLM(model, dtype="float32", num_threads=1)
        try:
            endless = SamplingParams(temperature=0, max_tokens=110, ignore_eos=True)
            leaver = engine.generate(PROMPTS[2], endless)
            await anext(leaver)
            texts = await asyncio.gather(*(complete(engine, prompt) for prompt in PROMPTS))
            assert texts == expected
            await leaver.aclose()
            with pytest.raises(RequestError, match="empty"):
                await complete(engine, "")
            assert await complete(engine, PROMPTS[1]) == expected[1]
            await engine.reset_prefix_cache()
            assert engine.core.kv_usage()["running"] == 0
        finally:
            engine.close()
        with pytest.raises(EngineDeadError, match="closed"):
            await complete(engine, "One")

    asyncio.run(scenario())
