"""The official client against a real server: what it offers is honoured, and read back by its own types."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from tests.server import MODEL, RunningServer


@pytest.fixture(scope="module")
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Lyon"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def test_chat_streamed_and_whole_are_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=ask("hello"), max_tokens=24, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=ask("hello"),
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert not any(reasons[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    assert all(c.usage is None for c in chunks[:-1])
    assert whole.usage.completion_tokens == 24


def test_many_async_streams_do_not_mix(server: RunningServer) -> None:
    async def run() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def both(i: int) -> tuple[str, str]:
                fields: dict[str, Any] = {
                    "model": MODEL,
                    "prompt": f"number {i}",
                    "max_tokens": 20,
                    "temperature": 0,
                }
                stream = await client.completions.create(stream=True, **fields)
                text = "".join([c.choices[0].text async for c in stream])
                whole = await client.completions.create(**fields)
                return text, whole.choices[0].text

            return list(await asyncio.gather(*(both(i) for i in range(12))))

    results = asyncio.run(run())
    assert all(streamed == whole for streamed, whole in results)
    assert len({whole for _, whole in results}) > 6, "different prompts, different answers"


def test_n_and_seed(client: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str]:
        answer = client.completions.create(model=MODEL, prompt="once", max_tokens=12, n=3, seed=seed)
        assert [c.index for c in answer.choices] == [0, 1, 2]
        assert answer.usage.completion_tokens <= 36
        return [c.text for c in answer.choices]

    first = texts(7)
    assert first == texts(7)
    assert len(set(first)) == 3
    one = client.completions.create(model=MODEL, prompt="once", max_tokens=12, seed=8)
    assert one.choices[0].text == first[1], "choice i of n uses seed + i"


def test_prompts_in_one_request_and_prefix_cache_in_usage(client: openai.OpenAI) -> None:
    long = "the same long beginning, " * 12
    answer = client.completions.create(model=MODEL, prompt=[long + "a", "b"], max_tokens=2, n=2)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    again = client.completions.create(model=MODEL, prompt=long + "a", max_tokens=2)
    assert again.usage.prompt_tokens_details.cached_tokens >= 16
    salted = client.completions.create(
        model=MODEL, prompt=long + "a", max_tokens=2, extra_body={"cache_salt": "another tenant"}
    )
    assert salted.usage.prompt_tokens_details.cached_tokens == 0


def test_stop_strings_that_span_tokens(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "prompt": "tell", "max_tokens": 40, "temperature": 0}
    full = client.completions.create(**fields).choices[0].text
    stop = full[9:17]  # eight characters: several tokens, from the middle of one to the middle of another
    cut = client.completions.create(stop=["never there", stop], **fields)
    assert cut.choices[0].text == full[: full.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    streamed = "".join(c.choices[0].text for c in client.completions.create(stop=stop, stream=True, **fields))
    assert streamed == cut.choices[0].text
    kept = client.completions.create(stop=stop, extra_body={"include_stop_str_in_output": True}, **fields)
    assert kept.choices[0].text == full[: full.index(stop) + len(stop)]


def test_logit_bias_stop_ids_and_min_tokens(client: openai.OpenAI, server: RunningServer) -> None:
    [token] = client.post("/../tokenize", body={"prompt": " the"}, cast_to=dict)["tokens"]
    fields: dict[str, Any] = {"model": MODEL, "prompt": "go", "max_tokens": 5, "temperature": 0}
    forced = client.completions.create(logit_bias={str(token): 100}, **fields)
    assert forced.choices[0].text == " the" * 5
    stopped = client.completions.create(
        logit_bias={str(token): 100}, extra_body={"stop_token_ids": [token]}, **fields
    )
    assert (stopped.choices[0].finish_reason, stopped.usage.completion_tokens) == ("stop", 1)
    later = client.completions.create(
        logit_bias={str(token): 50}, extra_body={"stop_token_ids": [token], "min_tokens": 3}, **fields
    )
    assert later.usage.completion_tokens >= 3


def test_logprobs(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "max_tokens": 6, "temperature": 0}
    chat = client.chat.completions.create(messages=ask("hi"), logprobs=True, top_logprobs=3, **fields)
    content = chat.choices[0].logprobs.content
    assert len(content) == chat.usage.completion_tokens
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob), "greedy takes the likeliest"
    joined = b"".join(bytes(entry.bytes) for entry in content)
    assert joined.decode(errors="replace") == chat.choices[0].message.content
    chunks = client.chat.completions.create(
        messages=ask("hi"), logprobs=True, top_logprobs=3, stream=True, **fields
    )
    streamed = [
        e for c in chunks if c.choices and c.choices[0].logprobs for e in c.choices[0].logprobs.content
    ]
    assert [e.token for e in streamed] == [e.token for e in content]

    plain = client.completions.create(prompt="hi there", logprobs=2, echo=True, **fields)
    logprobs = plain.choices[0].logprobs
    assert len(logprobs.tokens) == plain.usage.prompt_tokens + plain.usage.completion_tokens
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert plain.choices[0].text.startswith("hi there")
    scored = client.completions.create(
        **{**fields, "max_tokens": 0}, prompt="hi there", logprobs=0, echo=True
    )
    assert scored.choices[0].logprobs.token_logprobs[1:] == pytest.approx(
        logprobs.token_logprobs[1 : scored.usage.prompt_tokens]
    )
    assert (scored.choices[0].text, scored.usage.completion_tokens) == ("hi there", 0)
    asked = client.completions.create(prompt="hi there", extra_body={"prompt_logprobs": 1}, **fields)
    first, *others = asked.choices[0].prompt_logprobs
    assert first is None
    assert len(others) == asked.usage.prompt_tokens - 1


class Answer(BaseModel):
    word: Literal["yes", "no"]
    parrot: Literal["🦜"]
    sure: bool


def test_json_schema_and_an_emoji_split_across_tokens(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model=MODEL, messages=ask("is it?"), response_format=Answer, max_tokens=120
    )
    assert isinstance(parsed.choices[0].message.parsed, Answer)
    with client.chat.completions.stream(
        model=MODEL, messages=ask("is it?"), response_format=Answer, max_tokens=120
    ) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
    assert "�" not in "".join(pieces), "a character leaves whole or not at all"
    assert Answer.model_validate_json("".join(pieces))
    loose = client.chat.completions.create(
        model=MODEL, messages=ask("x"), response_format={"type": "json_object"}, max_tokens=30
    )
    assert loose.choices[0].message.content.startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_tools(client: openai.OpenAI, choice: Any) -> None:
    fields: dict[str, Any] = {
        "model": MODEL,
        "messages": ask("weather?"),
        "tools": [WEATHER],
        "max_tokens": 128,
    }
    whole = client.chat.completions.create(tool_choice=choice, parallel_tool_calls=False, **fields)
    [call] = whole.choices[0].message.tool_calls
    assert whole.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city", "days"}
    with client.chat.completions.stream(tool_choice=choice, parallel_tool_calls=False, **fields) as stream:
        final = stream.get_final_completion()
    [streamed] = final.choices[0].message.tool_calls
    assert json.loads(streamed.function.arguments)["city"] in ("Paris", "Lyon")
    follow_up = [
        *ask("weather?"),
        whole.choices[0].message.model_dump(exclude_none=True, include={"role", "tool_calls"}),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=follow_up, tools=[WEATHER], max_tokens=4)
    assert answer.usage.completion_tokens > 0


def test_errors_are_the_clients_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.chat.completions.create(model="gpt-9", messages=ask("x"))
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        client.chat.completions.create(model=MODEL, messages=ask("x"), temperature=9)
    assert caught.value.param == "temperature"
    assert [m.id for m in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_curl(server: RunningServer) -> None:
    body = json.dumps({"model": MODEL, "prompt": "hello", "max_tokens": 3, "stream": True})
    done = subprocess.run(
        ["curl", "-sSN", "-H", "Content-Type: application/json", "-d", body, f"{server.url}/v1/completions"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert [json.loads(line[6:])["object"] for line in lines[:-1]] == ["text_completion"] * (len(lines) - 1)


def test_tokenize_and_back(client: openai.OpenAI) -> None:
    text = "héllo 🦜 wörld"
    asked = client.post("/../tokenize", body={"prompt": text, "return_token_strs": True}, cast_to=dict)
    assert asked["count"] == len(asked["tokens"]) == len(asked["token_strs"])
    assert client.post("/../detokenize", body={"tokens": asked["tokens"]}, cast_to=dict) == {"prompt": text}
    chat = client.post("/../tokenize", body={"messages": ask("hello")}, cast_to=dict)
    answer = client.chat.completions.create(model=MODEL, messages=ask("hello"), max_tokens=1)
    assert chat["count"] == answer.usage.prompt_tokens
