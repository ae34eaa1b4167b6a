"""From a request to token ids and sampling parameters. Runs on a worker thread: nothing here touches the event loop."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from inferoptim.config import SamplingParams
from inferoptim.errors import InferOptimError
from inferoptim.models.tokenizer import Tokenizer
from inferoptim.serving.problems import HttpError
from inferoptim.serving.schemas import (
    AssistantMessage,
    ChatCompletionRequest,
    CompletionRequest,
    Generate,
    Message,
    Tool,
    ToolMessage,
)
from inferoptim.serving.structured import TOOL_BEGIN, response_grammar, tool_grammar
from inferoptim.serving.tools import plain_messages

_RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes that a request must respect."""

    max_model_len: int  # prompt + output, tokens
    vocab_size: int
    max_tokens: int | None = None  # output of one choice, set by the operator


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the engine needs to know of a request."""

    prompts: list[list[int]]
    sampling: SamplingParams
    cache_salt: int
    tools: bool  # the answer may hold tool calls


def prepare_completion(request: CompletionRequest, tokenizer: Tokenizer, limits: Limits) -> Prepared:
    """Token ids and parameters of a plain completion.

    Raises:
        HttpError, RequestError: naming the field.
    """
    prompts = _token_prompts(request, tokenizer)
    for ids in prompts:
        if not ids:
            raise HttpError(400, "prompt: it has no tokens", "prompt", "invalid_value")
        if max(ids) >= limits.vocab_size:
            wrong = next(i for i in ids if i >= limits.vocab_size)
            raise HttpError(
                400,
                f"prompt: token id {wrong} is outside the vocabulary (0…{limits.vocab_size - 1})",
                "prompt",
                "invalid_value",
            )
    max_tokens = 16 if request.max_tokens is None else max(request.max_tokens, 1)
    logprobs = request.logprobs
    prompt_logprobs = request.prompt_logprobs
    if request.echo and logprobs is not None:
        prompt_logprobs = max(logprobs, prompt_logprobs or 0)
    grammar = response_grammar(request.response_format)
    sampling = _sampling(
        request,
        limits,
        _budget(prompts, max_tokens, "max_tokens", limits),
        logprobs,
        prompt_logprobs,
        grammar,
    )
    return Prepared(prompts, sampling, _salt(request.cache_salt), tools=False)


def prepare_chat(request: ChatCompletionRequest, tokenizer: Tokenizer, limits: Limits) -> Prepared:
    """Token ids and parameters of a chat completion.

    Raises:
        HttpError, RequestError: naming the field.
    """
    tools = request.tools if request.tools is not None and request.tool_choice != "none" else None
    messages = [message_dict(m) for m in request.messages]
    description = _format_description(request)
    if description:
        messages = _with_system(messages, description)
    text = render(tokenizer, messages, tools, request.chat_template_kwargs)
    _check_names(request.messages, text)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    if not prompt:
        raise HttpError(400, "messages: they have no tokens", "messages", "invalid_value")
    if request.max_completion_tokens is not None:
        name, asked = "max_completion_tokens", request.max_completion_tokens
    else:
        name, asked = "max_tokens", request.max_tokens or 0
    if tools is not None:
        grammar = tool_grammar(tools, request.tool_choice, request.parallel_tool_calls is not False)
    else:
        grammar = response_grammar(request.response_format)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    budget = _budget([prompt], asked or None, name, limits)
    sampling = _sampling(request, limits, budget, logprobs, request.prompt_logprobs, grammar)
    return Prepared([prompt], sampling, _salt(request.cache_salt), tools=tools is not None)


def message_dict(message: Message) -> dict[str, Any]:
    """A message as chat templates read it: text content, 'system' for 'developer'."""
    content = message.content
    text = (
        content if content is None or isinstance(content, str) else "\n".join(part.text for part in content)
    )
    result: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": text,
    }
    if isinstance(message, ToolMessage):
        result["tool_call_id"] = message.tool_call_id
        return result
    if message.name is not None:
        result["name"] = message.name
    if isinstance(message, AssistantMessage) and message.tool_calls is not None:
        result["content"] = text or ""
        result["tool_calls"] = [
            {
                "id": c.id,
                "type": "function",
                "function": {"name": c.function.name, "arguments": _arguments(c.function.arguments)},
            }
            for c in message.tool_calls
        ]
    return result


def render(
    tokenizer: Tokenizer,
    messages: list[dict[str, Any]],
    tools: list[Tool] | None,
    variables: dict[str, Any] | None,
) -> str:
    """The prompt of a conversation, through the model's own template.

    Raises:
        HttpError: 400, the model has no chat template, or a variable would replace what the server passes.
        RequestError: the template refuses the messages.
    """
    variables = dict(variables or {})
    taken = sorted(_RESERVED & variables.keys())
    if taken:
        raise HttpError(
            400,
            f"chat_template_kwargs: {taken[0]} is set by the server",
            "chat_template_kwargs",
            "invalid_value",
        )
    if not tokenizer.has_chat_template:
        raise HttpError(
            400, "this model has no chat template: use /v1/completions", "messages", "no_chat_template"
        )
    functions = [tool.model_dump(exclude_none=True) for tool in tools or []]
    has_calls = any(m["role"] == "tool" or "tool_calls" in m for m in messages)
    if not functions and not has_calls:
        return tokenizer.apply_chat_template(messages, **variables)
    if _speaks_our_format(tokenizer, variables):
        return tokenizer.apply_chat_template(messages, tools=functions or None, **variables)
    return tokenizer.apply_chat_template(plain_messages(messages, functions), **variables)


def _speaks_our_format(tokenizer: Tokenizer, variables: dict[str, Any]) -> bool:
    """Whether the template itself tells the model of tools, in the format that this server reads."""
    probe = {
        "type": "function",
        "function": {"name": "probe_7f3a", "description": "", "parameters": {"type": "object"}},
    }
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tools=[probe], **variables)
    except InferOptimError:
        return False
    return "probe_7f3a" in text and TOOL_BEGIN in text


def _token_prompts(request: CompletionRequest, tokenizer: Tokenizer) -> list[list[int]]:
    prompt, special = request.prompt, request.add_special_tokens is not False
    if isinstance(prompt, str):
        return [tokenizer.encode(prompt, special)]
    if isinstance(prompt[0], str):  # the schema lets no list of two kinds by
        return [tokenizer.encode(text, special) for text in prompt if isinstance(text, str)]
    if request.add_special_tokens is not None:
        raise HttpError(
            400, "add_special_tokens: the prompt is token ids already", "add_special_tokens", "invalid_value"
        )
    # one prompt, or several; not looked through, since each may be long
    return [prompt] if isinstance(prompt[0], int) else prompt


def _budget(prompts: list[list[int]], asked: int | None, name: str, limits: Limits) -> int:
    """Most tokens of output; what was asked, if it fits the context and the operator's limit."""
    longest = max(map(len, prompts))
    room = limits.max_model_len - longest
    if room < 1:
        raise HttpError(
            400,
            f"the prompt has {longest} tokens; the context holds {limits.max_model_len}, one of them for output",
            "messages" if name != "max_tokens" or asked is None else "prompt",
            "context_length_exceeded",
        )
    if limits.max_tokens is not None:
        if asked is not None and asked > limits.max_tokens:
            raise HttpError(
                400,
                f"{name}: {asked} is above this server's limit of {limits.max_tokens}",
                name,
                "invalid_value",
            )
        room = min(room, limits.max_tokens)
    if asked is None:
        return room
    if asked > room:
        raise HttpError(
            400,
            f"{name}: {longest} tokens of prompt and {asked} of output exceed the context of {limits.max_model_len}",
            name,
            "context_length_exceeded",
        )
    return asked


def _sampling(
    request: Generate,
    limits: Limits,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
    grammar: str | None,
) -> SamplingParams:
    if grammar is not None:
        for name in ("ignore_eos", "min_tokens"):
            if getattr(request, name):
                raise HttpError(
                    400,
                    f"{name}: not together with structured output, which says where the answer ends",
                    name,
                    "invalid_value",
                )
    if request.min_tokens is not None and request.min_tokens > max_tokens:
        raise HttpError(
            400,
            f"min_tokens: {request.min_tokens} is above the {max_tokens} tokens that may be made",
            "min_tokens",
            "invalid_value",
        )
    stop = request.stop
    fields: dict[str, Any] = {
        "max_tokens": max_tokens,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
        "grammar": grammar,
        "stop": (stop,) if isinstance(stop, str) else tuple(stop or ()),
        "stop_token_ids": _known_ids(request.stop_token_ids, limits.vocab_size),
        "logit_bias": _biases(request.logit_bias, limits.vocab_size),
    }
    for name in (
        "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
        "seed", "min_tokens", "ignore_eos", "include_stop_str_in_output",
    ):  # fmt: skip
        value = getattr(request, name)
        if value is not None:
            fields[name] = value
    return SamplingParams.create(**fields)


def _known_ids(ids: list[int] | None, vocab_size: int) -> tuple[int, ...]:
    wrong = next((i for i in ids or () if i >= vocab_size), None)
    if wrong is not None:
        raise HttpError(
            400,
            f"stop_token_ids: {wrong} is outside the vocabulary (0…{vocab_size - 1})",
            "stop_token_ids",
            "invalid_value",
        )
    return tuple(ids or ())


def _biases(bias: dict[str, float] | None, vocab_size: int) -> dict[int, float]:
    result = {}
    for key, value in (bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < vocab_size):
            raise HttpError(
                400,
                f"logit_bias: {key[:40]!r} is not a token id (0…{vocab_size - 1})",
                "logit_bias",
                "invalid_value",
            )
        result[int(key)] = value
    return result


def _arguments(text: str) -> Any:
    """Templates write the arguments with tojson, so they get the object; text that is none stays text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check_names(messages: list[Message], text: str) -> None:
    for index, message in enumerate(messages):
        name = None if isinstance(message, ToolMessage) else message.name
        if name is not None and name not in text:
            param = f"messages[{index}].name"
            raise HttpError(
                400, f"{param}: this model's chat template does not use names", param, "unsupported_field"
            )


def _format_description(request: ChatCompletionRequest) -> str | None:
    chosen = request.response_format
    if chosen is None or chosen.type != "json_schema" or chosen.json_schema.description is None:
        return None
    return f"Answer with {chosen.json_schema.name}: {chosen.json_schema.description}"


def _with_system(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    if messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _salt(text: str | None) -> int:
    if text is None:
        return 0
    return (
        int.from_bytes(
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=7).digest(), "little"
        )
        | 1
    )
