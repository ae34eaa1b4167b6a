"""The OpenAPI document. Bodies are read by our own code, so their schemas are put in by hand: from the same models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from inferoptim.serving.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)

_BODIES: tuple[type[BaseModel], ...] = (
    ChatCompletionRequest,
    CompletionRequest,
    TokenizeRequest,
    DetokenizeRequest,
)
_REF = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_WORDS = {
    400: "A field is wrong; it is named.",
    401: "The API key is missing or wrong.",
    404: "No such model.",
    413: "The body is too large.",
    415: "Not application/json.",
    429: "The queue is full; see Retry-After.",
    503: "Not ready, shutting down, or the engine died.",
    504: "The deadline passed.",
}


def document(
    *,
    body: type[BaseModel] | None = None,
    streams: bool = False,
    needs_key: bool = False,
    media_type: str = "application/json",
) -> dict[str, Any]:
    """Arguments of `add_api_route` that describe a route.

    Args:
        body: model of the JSON body.
        streams: it can also answer with server-sent events.
        needs_key: it asks for an API key where keys are configured.
        media_type: of its answer.
    """
    content: dict[str, Any] = {
        media_type: {"schema": {"type": "string" if media_type == "text/plain" else "object"}}
    }
    if streams:
        one_event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
        content["text/event-stream"] = {"schema": one_event}
    statuses = [503]
    if needs_key:
        statuses += [401, 404]
    if body is not None:
        statuses += [400, 413, 415]
    if streams:
        statuses += [429, 504]
    responses: dict[int | str, dict[str, Any]] = {
        status: {
            "description": _WORDS[status],
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        for status in sorted(statuses)
    }
    responses[200] = {"description": "Success.", "content": content}
    extra: dict[str, Any] = {}
    if body is not None:
        reference = {"$ref": _REF.format(model=body.__name__)}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
    if needs_key:
        extra["security"] = [{"bearer": []}, {}]
    return {"responses": responses, "openapi_extra": extra}


def install(app: FastAPI, served_model_names: Sequence[str]) -> None:
    """Give the application its document."""

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            components = schema.setdefault("components", {})
            schemas: dict[str, Any] = {"Error": _ERROR}
            for model in _BODIES:
                own = model.model_json_schema(ref_template=_REF)
                schemas.update(own.pop("$defs", {}))
                own["properties"]["model"] = _model_names(own["properties"]["model"], served_model_names)
                schemas[model.__name__] = own
            components["schemas"] = schemas
            components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = build  # type: ignore[method-assign]  # FastAPI's own way to replace its document


def _model_names(field: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The `model` field, with the names that are served as its only values."""
    optional = "anyOf" in field
    kept = {key: value for key, value in field.items() if key in ("title", "description", "default")}
    return {**kept, "enum": [*names, None] if optional else list(names)}
