"""Whole answers, as the OpenAI API writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inferoptim.models.tokenizer import Tokenizer
from inferoptim.serving.generation import Choice, Generation, Usage
from inferoptim.serving.messages import Logprob
from inferoptim.serving.tools import Call, ToolReader

LOWEST_LOGPROB = -9999.0  # JSON has no -inf


def usage_dict(usage: Usage) -> dict[str, Any]:
    """The `usage` object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token's text on its own; what is not a whole character becomes U+FFFD."""
    return tokenizer.token_bytes(token_id).decode(errors="replace")


def chat_logprobs(tokenizer: Tokenizer, values: Sequence[Logprob]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token_id)
        text = raw.decode(errors="replace")
        return {"token": text, "logprob": max(logprob, LOWEST_LOGPROB), "bytes": list(raw)}

    return {
        "content": [
            {**entry(v.token_id, v.logprob), "top_logprobs": [entry(t, p) for t, p in v.top]} for v in values
        ],
        "refusal": None,
    }


def completion_logprobs(
    tokenizer: Tokenizer, values: Sequence[Logprob | None], token_ids: Sequence[int], offset: int
) -> dict[str, Any]:
    """`choices[].logprobs` of a plain completion; None stands for the first token of a prompt, which has none."""
    texts = [token_text(tokenizer, i) for i in token_ids]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    tops: list[dict[str, float] | None] = []
    for value in values:
        if value is None:
            tops.append(None)
            continue
        top: dict[str, float] = {}
        for token_id, logprob in value.top:
            # two ids can read the same (parts of a character): the likelier one keeps the key
            top.setdefault(token_text(tokenizer, token_id), max(logprob, LOWEST_LOGPROB))
        tops.append(top)
    return {
        "tokens": texts,
        "token_logprobs": [None if v is None else max(v.logprob, LOWEST_LOGPROB) for v in values],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def prompt_logprobs(tokenizer: Tokenizer, values: Sequence[Logprob]) -> list[dict[str, Any] | None]:
    """The `prompt_logprobs` extension: one entry a prompt token, null for the first."""
    result: list[dict[str, Any] | None] = [None]
    for value in values:
        known = dict(value.top)
        known.setdefault(value.token_id, value.logprob)
        result.append(
            {
                str(token_id): {
                    "logprob": max(logprob, LOWEST_LOGPROB),
                    "decoded_token": token_text(tokenizer, token_id),
                }
                for token_id, logprob in known.items()
            }
        )
    return result


def tool_call_dict(call: Call) -> dict[str, Any]:
    """One entry of `tool_calls`."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def chat_body(generation: Generation, head: dict[str, Any], tools: bool) -> dict[str, Any]:
    """The body of a chat completion that has ended."""
    choices = []
    wants_prompt = generation.sampling.prompt_logprobs is not None
    for choice in generation.choices:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        reason = choice.finish_reason
        if tools:
            pieces = ToolReader().feed(choice.text, finished=True)
            message["content"] = pieces.content or None
            if pieces.calls:
                message["tool_calls"] = [tool_call_dict(call) for call in pieces.calls]
                reason = "tool_calls" if reason == "stop" else reason
        entry: dict[str, Any] = {
            "index": choice.index,
            "message": message,
            "logprobs": chat_logprobs(generation.tokenizer, choice.logprobs)
            if generation.sampling.logprobs is not None
            else None,
            "finish_reason": reason,
        }
        if wants_prompt:
            entry["prompt_logprobs"] = prompt_logprobs(generation.tokenizer, choice.prompt_logprobs)
        choices.append(entry)
    return {**head, "choices": choices, "usage": usage_dict(generation.usage)}


def completion_body(
    generation: Generation, head: dict[str, Any], *, echo: bool, no_output: bool, asked_prompt_logprobs: bool
) -> dict[str, Any]:
    """The body of a plain completion that has ended.

    Args:
        generation: the request.
        head: id, object, created, model.
        echo: put the prompt in front.
        no_output: max_tokens was 0: the one token that the engine made is not part of the answer.
        asked_prompt_logprobs: the client set `prompt_logprobs` (echo computes them as well).
    """
    choices = []
    usage = generation.usage
    if no_output:
        usage = Usage(usage.prompt_tokens, 0, usage.cached_tokens)
    for choice in generation.choices:
        text = "" if no_output else choice.text
        prompt_text = generation.tokenizer.decode(choice.prompt) if echo else ""
        entry: dict[str, Any] = {
            "index": choice.index,
            "text": prompt_text + text,
            "logprobs": _logprobs_of(generation, choice, echo, no_output),
            "finish_reason": "length" if no_output else choice.finish_reason,
        }
        if asked_prompt_logprobs:
            entry["prompt_logprobs"] = prompt_logprobs(generation.tokenizer, choice.prompt_logprobs)
        choices.append(entry)
    return {**head, "choices": choices, "usage": usage_dict(usage)}


def _logprobs_of(
    generation: Generation, choice: Choice, echo: bool, no_output: bool
) -> dict[str, Any] | None:
    if generation.sampling.logprobs is None:
        return None
    values: list[Logprob | None] = []
    ids: list[int] = []
    if echo:
        values += [None, *choice.prompt_logprobs]
        ids += choice.prompt
    if not no_output:
        values += choice.logprobs
        ids += choice.token_ids
    return completion_logprobs(generation.tokenizer, values, ids, 0)
