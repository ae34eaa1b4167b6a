"""The two endpoints that generate: from a body of bytes to an answer."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from inferoptim.serving import responses
from inferoptim.serving.generation import Delta, Generation
from inferoptim.serving.problems import HttpError, of_exception, of_validation
from inferoptim.serving.prompts import Prepared, prepare_chat, prepare_completion
from inferoptim.serving.schemas import Body, ChatCompletionRequest, CompletionRequest
from inferoptim.serving.state import ServerState
from inferoptim.serving.streaming import EventStream, Writer, stream

Parsed = TypeVar("Parsed", bound=Body)
Result = TypeVar("Result")
_INLINE_BYTES = 1024  # a smaller body is tokenised sooner than a thread is woken


class ClientGoneError(Exception):
    """The client closed the connection before an answer; there is nobody to answer."""


async def read_body(request: Request, model: type[Parsed], limit: int) -> Parsed:
    """Read and validate a JSON body.

    Raises:
        HttpError: 400 naming what is wrong, 413 above `limit` bytes, 415 for another content type.
    """
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise HttpError(415, f"content type {content_type!r}: send application/json")
    too_large = HttpError(
        413, f"the body is larger than {limit} bytes", code="body_too_large", headers={"Connection": "close"}
    )
    if int(request.headers.get("content-length", "0")) > limit:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
    except ClientDisconnect as gone:
        raise ClientGoneError from gone
    try:
        return model.model_validate_json(bytes(body))
    except ValidationError as error:
        raise of_validation(error, bytes(body)) from error


async def chat_completions(state: ServerState, request: Request) -> Response:
    """POST /v1/chat/completions."""
    arrival_s = time.perf_counter()
    tenant = authenticate(state, request)
    body = await read_body(request, ChatCompletionRequest, state.settings.max_body_bytes)
    check_model(state, body.model)
    structured = body.response_format is not None or body.tools is not None
    prepare = partial(prepare_chat, body, state.tokenizer, state.limits())
    prepared = await _prepare(state, request, prepare, structured)
    head = _head("chatcmpl", "chat.completion", body.model)
    if body.service_tier is not None:
        head["service_tier"] = "default"
    generation = _generation(state, body, prepared, head["id"], arrival_s, tenant)
    return await _answer(
        state,
        request,
        generation,
        head,
        body,
        chat=True,
        tools=prepared.tools,
        whole=lambda: responses.chat_body(generation, head, prepared.tools),
    )


async def completions(state: ServerState, request: Request) -> Response:
    """POST /v1/completions."""
    arrival_s = time.perf_counter()
    tenant = authenticate(state, request)
    body = await read_body(request, CompletionRequest, state.settings.max_body_bytes)
    check_model(state, body.model)
    prepare = partial(prepare_completion, body, state.tokenizer, state.limits())
    prepared = await _prepare(state, request, prepare, body.response_format is not None)
    head = _head("cmpl", "text_completion", body.model)
    generation = _generation(state, body, prepared, head["id"], arrival_s, tenant)
    return await _answer(
        state,
        request,
        generation,
        head,
        body,
        chat=False,
        tools=False,
        whole=lambda: responses.completion_body(
            generation,
            head,
            echo=bool(body.echo),
            no_output=body.max_tokens == 0,
            asked_prompt_logprobs=body.prompt_logprobs is not None,
        ),
    )


def authenticate(state: ServerState, request: Request) -> str | None:
    """The name of the key that was sent; None where no keys are configured.

    Raises:
        HttpError: 401, the key is missing or wrong.
    """
    if state.keys is None:
        return None
    name = state.keys.name_of(request.headers.get("authorization"))
    if name is None:
        raise HttpError(
            401,
            "the API key is missing or wrong: send it as Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return name


def check_model(state: ServerState, model: str | None) -> None:
    """Whether this server serves the model that was asked for.

    Raises:
        HttpError: 404.
    """
    names = state.settings.served_model_names
    if model is not None and model not in names:
        raise HttpError(
            404,
            f"the model {model[:100]!r} is not served here; there is {', '.join(names)}",
            "model",
            "model_not_found",
        )


async def run_off_loop(state: ServerState, work: Callable[[], Result]) -> Result:
    """The result of a function run on a worker thread: tokenising a long prompt must not hold up the streams."""
    return await asyncio.get_running_loop().run_in_executor(state.workers, work)


async def _prepare(
    state: ServerState, request: Request, prepare: Callable[[], Prepared], structured: bool
) -> Prepared:
    """Prompt and parameters; on the event loop only where that is sooner done than a thread is woken."""
    if not structured and int(request.headers.get("content-length", _INLINE_BYTES)) < _INLINE_BYTES:
        return prepare()
    return await run_off_loop(state, prepare)


def _generation(
    state: ServerState,
    body: ChatCompletionRequest | CompletionRequest,
    prepared: Prepared,
    request_id: str,
    arrival_s: float,
    tenant: str | None,
) -> Generation:
    timeout_s = min(body.timeout_s or state.settings.request_timeout_s, state.settings.request_timeout_s)
    return Generation(
        id=request_id,
        engine=state.engine,
        tokenizer=state.tokenizer,
        prompts=prepared.prompts,
        sampling=prepared.sampling,
        n=body.n or 1,
        record=state.metrics.request(tenant or body.user or "default", arrival_s),
        deadline_s=arrival_s + timeout_s,
        streaming=bool(body.stream),
        cache_salt=prepared.cache_salt,
        arrival_s=arrival_s,
    )


async def _answer(
    state: ServerState,
    request: Request,
    generation: Generation,
    head: dict[str, Any],
    body: ChatCompletionRequest | CompletionRequest,
    *,
    chat: bool,
    tools: bool,
    whole: Callable[[], dict[str, Any]],
) -> Response:
    """Run a generation and answer with it; room in the queue is held until the last byte."""
    sequences = len(generation.prompts) * generation.n
    ready = state.engine.ready
    assert ready is not None
    state.check_available()
    most = ready.max_num_seqs + state.settings.max_queue
    if sequences > most:
        raise HttpError(
            400, f"n: {sequences} sequences (prompts times n); this server holds {most}", "n", "invalid_value"
        )
    state.admission.enter(sequences, ready.max_num_seqs)
    state.enter()

    def end() -> None:
        generation.close()
        operation = "chat" if chat else "text_completion"
        if state.access_log is not None:
            state.access_log.record(generation, operation, head["model"], generation.record.tenant)
        if state.tracer is not None:
            state.tracer.record(generation, operation, head["model"], request.headers)
        state.admission.leave(sequences)
        state.leave()

    headers = {"X-Request-Id": generation.id}
    try:
        generation.start()
        if not generation.streaming:
            await _while_connected(request, generation.finish())
            answer = whole()
            if body.return_token_ids:
                empty = (
                    answer["usage"]["completion_tokens"] == 0
                )  # max_tokens=0: the engine's one token is no answer
                for entry, choice in zip(answer["choices"], generation.choices, strict=True):
                    entry["token_ids"] = [] if empty else choice.token_ids
            encoded = msgspec.json.encode(answer)
            end()
            return Response(encoded, headers=headers, media_type="application/json")
        deltas: list[Delta] = await _while_connected(request, generation.next())
    except BaseException:
        end()
        raise
    if chat:
        head = {**head, "object": "chat.completion.chunk"}
    options = body.stream_options
    writer = Writer(
        generation,
        head,
        chat=chat,
        tools=tools,
        include_usage=bool(options is not None and options.include_usage),
        continuous_usage=bool(options is not None and options.continuous_usage_stats),
        token_ids=bool(body.return_token_ids),
    )
    return EventStream(stream(generation, writer, deltas), end, headers)


async def _while_connected(request: Request, work: Any) -> Any:
    """The result of a coroutine, unless the client leaves first.

    Raises:
        ClientGoneError: it left; the coroutine was cancelled.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    watcher = loop.create_task(_disconnected(request))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    """What every chunk of an answer begins with."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model,
    }  # fmt: skip


def answer_error(error: Exception) -> Response:
    """The response to any error of a handler."""
    if isinstance(error, ClientGoneError):
        return Response(status_code=499)  # nobody reads it; the word of nginx for a client that left
    return of_exception(error).response()
