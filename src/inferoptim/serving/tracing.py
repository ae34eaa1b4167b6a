"""One OpenTelemetry span a request, in the words of the GenAI semantic conventions. Needs the extra `otel`.

Neither prompts nor answers are recorded. Source: opentelemetry.io, Semantic conventions for generative AI spans.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

from inferoptim import __version__
from inferoptim.errors import ConfigError, UnsupportedError
from inferoptim.serving.generation import DeadlineError, Generation


class Tracer(Protocol):
    """Records requests; there is none unless the operator asks for it."""

    def record(
        self, generation: Generation, operation: str, model: str, headers: Mapping[str, str]
    ) -> None: ...
    def close(self) -> None: ...


class OtlpTracer:
    """Sends spans to a collector over OTLP/HTTP, from a thread of its own.

    Args:
        endpoint: URL of the collector, with or without its path /v1/traces.
        address: of this server, host and port.

    Raises:
        ConfigError: the endpoint is not an HTTP URL. UnsupportedError: OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str, address: tuple[str, int]) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(f"--otlp-endpoint {endpoint}: an http:// or https:// URL is expected")
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise UnsupportedError(
                "traces need OpenTelemetry: pip install 'inference-optim-llm[otel]'"
            ) from error
        url = endpoint if parts.path.strip("/") else endpoint.rstrip("/") + "/v1/traces"
        resource = Resource.create({"service.name": "inferoptim", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer("inferoptim", __version__)
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._address: dict[str, Any] = {"server.address": address[0], "server.port": address[1]}

    def record(self, generation: Generation, operation: str, model: str, headers: Mapping[str, str]) -> None:
        """A request has ended: write its span, a child of the caller's if it sent a traceparent.

        Args:
            generation: the request, ended in whatever way.
            operation: 'chat' or 'text_completion'.
            model: the name that the client asked for.
            headers: of the HTTP request.
        """
        now_s, now_ns = time.perf_counter(), time.time_ns()

        def wall_ns(at_s: float) -> int:
            return now_ns - int((now_s - at_s) * 1e9)

        span = self._tracer.start_span(
            f"{operation} {model}",
            context=self._propagator.extract(carrier=dict(headers)),
            kind=self._trace.SpanKind.SERVER,
            start_time=wall_ns(generation.arrival_s),
            attributes={**self._address, **_attributes(generation, operation, model)},
        )
        if generation.error is not None or not generation.finished:
            kind = _error_type(generation)
            span.set_attribute("error.type", kind)
            span.set_status(self._trace.StatusCode.ERROR, str(generation.error or kind))
        span.end(now_ns)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _error_type(generation: Generation) -> str:
    if generation.error is None:
        return "client_disconnected"
    return (
        "deadline_exceeded"
        if isinstance(generation.error, DeadlineError)
        else type(generation.error).__name__
    )


def _attributes(generation: Generation, operation: str, model: str) -> dict[str, Any]:
    sampling, usage = generation.sampling, generation.usage
    first_s = min((c.first_token_s for c in generation.choices if c.first_token_s), default=None)
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "inferoptim",
        "gen_ai.request.model": model,
        "gen_ai.request.stream": generation.streaming,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k or None,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.choice.count": generation.n if generation.n != 1 else None,
        "gen_ai.request.stop_sequences": list(sampling.stop) or None,
        "gen_ai.output.type": "text" if sampling.grammar is None else "json",
        "gen_ai.response.id": generation.id,
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": [c.finish_reason or "error" for c in generation.choices],
        "gen_ai.response.time_to_first_chunk": None if first_s is None else first_s - generation.arrival_s,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
    }
    return {name: value for name, value in attributes.items() if value is not None}
