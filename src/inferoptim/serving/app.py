"""The HTTP application: routes, error bodies, the OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from inferoptim import __version__
from inferoptim.serving import generate, openapi
from inferoptim.serving.engine_client import EngineState
from inferoptim.serving.problems import HttpError
from inferoptim.serving.prompts import message_dict, render
from inferoptim.serving.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from inferoptim.serving.state import ServerState

_DEEP_TIMEOUT_S = 30.0  # longer than the longest step (a whole prompt on a slow machine)

Handler = Callable[[ServerState, Request], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(state: ServerState, registry: CollectorRegistry) -> ASGIApp:
    """The whole application.

    Args:
        state: of this server.
        registry: what /metrics shows.
    """
    app = FastAPI(
        title="inferoptim", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )

    direct: dict[str, Endpoint] = {}

    def add(method: str, path: str, handler: Handler, summary: str, **document: Any) -> None:
        async def endpoint(request: Request) -> Response:
            try:
                return await handler(state, request)
            except Exception as error:
                return generate.answer_error(error)

        if document.get("streams"):
            direct[path] = endpoint
        app.add_api_route(
            path,
            endpoint,
            methods=[method],
            summary=summary,
            name=handler.__name__,
            response_model=None,
            **openapi.document(**document),
        )

    add(
        "POST", "/v1/chat/completions", generate.chat_completions, "Answer a conversation.",
        body=ChatCompletionRequest, streams=True, needs_key=True,
    )  # fmt: skip
    add(
        "POST", "/v1/completions", generate.completions, "Complete a prompt.",
        body=CompletionRequest, streams=True, needs_key=True,
    )  # fmt: skip
    add("GET", "/v1/models", _models, "What is served here.", needs_key=True)
    add("GET", "/v1/models/{model:path}", _model, "One of the served names.", needs_key=True)
    add(
        "POST",
        "/tokenize",
        _tokenize,
        "Token ids of a text or a conversation.",
        body=TokenizeRequest,
        needs_key=True,
    )
    add("POST", "/detokenize", _detokenize, "Text of token ids.", body=DetokenizeRequest, needs_key=True)
    add("GET", "/health", _health, "Is the server alive? 503 while its engine is dead.")
    add("GET", "/ready", _ready, "Does it take requests now?")
    add("GET", "/version", _version, "Versions, and what the engine says of itself.")

    async def metrics(_state: ServerState, _request: Request) -> Response:
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    add("GET", "/metrics", metrics, "Counters in the Prometheus text format.", media_type="text/plain")

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return HttpError(error.status_code, str(error.detail), headers=error.headers).response()

    openapi.install(app, state.settings.served_model_names)
    wrapped: ASGIApp = _Count(app, state, {getattr(r, "path", "") for r in app.routes}, direct)
    if state.settings.cors_origins:
        from starlette.middleware.cors import CORSMiddleware

        wrapped = CORSMiddleware(
            wrapped,
            allow_origins=list(state.settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return wrapped


class _Count:
    """Counts answers by route and status; a path that is no route is counted as 'other', or labels would grow.

    Args:
        direct: POST to these paths goes straight to its endpoint, which reads the body and answers every error itself: what the
            framework does around one costs a quarter of a short request.
    """

    def __init__(
        self, app: ASGIApp, state: ServerState, paths: set[str], direct: dict[str, Endpoint]
    ) -> None:
        self._app, self._responses, self._paths, self._direct = app, state.metrics.responses, paths, direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        route = path if path in self._paths else "other"

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._responses[(route, message["status"])] += 1
            await send(message)

        endpoint = self._direct.get(path) if scope["method"] == "POST" else None
        if endpoint is None:
            await self._app(scope, receive, counted)
            return
        response = await endpoint(Request(scope, receive))
        await response(scope, receive, counted)


async def _models(state: ServerState, request: Request) -> Response:
    generate.authenticate(state, request)
    names = state.settings.served_model_names
    return JSONResponse({"object": "list", "data": [_model_card(state, name) for name in names]})


async def _model(state: ServerState, request: Request) -> Response:
    generate.authenticate(state, request)
    name = request.path_params["model"]
    generate.check_model(state, name)
    return JSONResponse(_model_card(state, name))


def _model_card(state: ServerState, name: str) -> dict[str, Any]:
    ready = state.engine.ready
    card = {"id": name, "object": "model", "created": state.created, "owned_by": "inferoptim"}
    return card if ready is None else {**card, "max_model_len": ready.max_model_len}


async def _tokenize(state: ServerState, request: Request) -> Response:
    generate.authenticate(state, request)
    body = await generate.read_body(request, TokenizeRequest, state.settings.max_body_bytes)
    generate.check_model(state, body.model)
    tokenizer = state.tokenizer

    def work() -> list[int]:
        if body.prompt is not None:
            return tokenizer.encode(body.prompt, body.add_special_tokens is not False)
        text = render(tokenizer, [message_dict(m) for m in body.messages or []], None, None)
        return tokenizer.encode(text, add_special_tokens=False)

    tokens = await generate.run_off_loop(state, work)
    ready = state.engine.ready
    answer: dict[str, Any] = {
        "tokens": tokens,
        "count": len(tokens),
        "max_model_len": None if ready is None else ready.max_model_len,
    }
    if body.return_token_strs:
        answer["token_strs"] = [tokenizer.id_to_token(token) for token in tokens]
    return JSONResponse(answer)


async def _detokenize(state: ServerState, request: Request) -> Response:
    generate.authenticate(state, request)
    body = await generate.read_body(request, DetokenizeRequest, state.settings.max_body_bytes)
    generate.check_model(state, body.model)
    wrong = next((t for t in body.tokens if t >= state.tokenizer.vocab_size), None)
    if wrong is not None:
        raise HttpError(400, f"tokens: {wrong} is outside the vocabulary", "tokens", "invalid_value")
    text = await generate.run_off_loop(state, lambda: state.tokenizer.decode(body.tokens, skip_special=False))
    return JSONResponse({"prompt": text})


async def _health(state: ServerState, request: Request) -> Response:
    """Red from the death of an engine until the next one is loaded. With ?deep=1, the engine itself must answer."""
    engine = state.engine
    starting = engine.state is EngineState.LOADING and engine.deaths == 0
    if engine.state is not EngineState.READY and not starting:
        return JSONResponse({"status": "engine dead"}, 503)
    if request.query_params.get("deep") != "1" or starting:
        return JSONResponse({"status": "ok"})
    try:
        checked = await asyncio.wait_for(engine.check(), _DEEP_TIMEOUT_S)
    except asyncio.TimeoutError:
        return JSONResponse({"status": f"the engine has not answered for {_DEEP_TIMEOUT_S:g} s"}, 503)
    if checked.problem:
        return JSONResponse({"status": f"KV blocks: {checked.problem}"}, 503)
    return JSONResponse({"status": "ok", "engine": checked.gauges})


async def _ready(state: ServerState, _request: Request) -> Response:
    state.check_available()
    return JSONResponse({"status": "ready"})


async def _version(state: ServerState, _request: Request) -> Response:
    return JSONResponse({"version": __version__, "engine": state.metrics.info})
