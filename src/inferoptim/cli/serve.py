"""``inferoptim serve``: an OpenAI-compatible server over one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_SERVER, _ENGINE, _MONEY = "Server", "Engine", "Live cost"


def serve(
    model: Annotated[
        str, typer.Argument(help="Alias, Hub id, local folder, .gguf file or artefact.")
    ] = "smollm2-135m",
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all.", rich_help_panel=_SERVER)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 = any free one.", rich_help_panel=_SERVER)] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that clients ask for; may be repeated. Default: MODEL.", rich_help_panel=_SERVER
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="Lines name:key; without it, everybody may call.", rich_help_panel=_SERVER),
    ] = None,
    max_queue: Annotated[
        int,
        typer.Option(help="Sequences that may wait; beyond, 429 with Retry-After.", rich_help_panel=_SERVER),
    ] = 128,
    max_body_bytes: Annotated[int, typer.Option(help="Largest request body.", rich_help_panel=_SERVER)] = 8
    << 20,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most output tokens a client may ask for.", rich_help_panel=_SERVER)
    ] = None,
    request_timeout: Annotated[
        float, typer.Option(help="Deadline of a request, seconds.", rich_help_panel=_SERVER)
    ] = 600.0,
    drain_timeout: Annotated[
        float,
        typer.Option(help="After SIGTERM, seconds that running requests may take.", rich_help_panel=_SERVER),
    ] = 30.0,
    on_engine_death: Annotated[
        str,
        typer.Option(help="restart: load a new engine; exit: end with status 5.", rich_help_panel=_SERVER),
    ] = "restart",
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin that browsers may call from; may be repeated. Default: none.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    metrics_alias: Annotated[
        str, typer.Option(help="vllm: also export the metrics under vLLM's names.", rich_help_panel=_SERVER)
    ] = "none",
    access_log: Annotated[
        Path | None,
        typer.Option(
            help="Append one JSON line a request: times, token counts, outcome, no text; `inferoptim audit` reads it.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            help="OpenTelemetry collector (OTLP over HTTP) for a span a request.", rich_help_panel=_SERVER
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            "-e",
            metavar="FIELD=VALUE",
            help="Any field of EngineConfig, such as max_num_seqs=16, quantization=int8, speculative=prompt-lookup; "
            "may be repeated. --engine help lists them.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    usd_per_hour: Annotated[
        float | None,
        typer.Option(help="Price of this machine; turns engine time into cost.", rich_help_panel=_MONEY),
    ] = None,
    usd_per_kwh: Annotated[
        float | None,
        typer.Option(
            help="Price of electricity, for energy that is measured (NVML).", rich_help_panel=_MONEY
        ),
    ] = None,
    max_tenants: Annotated[
        int,
        typer.Option(
            help="Tenants with a metric label of their own; the rest is 'other'.", rich_help_panel=_MONEY
        ),
    ] = 50,
    null_engine_step_ms: Annotated[float | None, typer.Option(hidden=True)] = None,  # for benchmarks only
    json: Annotated[
        bool, typer.Option("--json", help="Say what happens as JSON lines on standard output.")
    ] = False,
) -> None:
    """Serve a model through the OpenAI API, with Prometheus metrics at /metrics, until SIGTERM or Ctrl-C."""
    import logging

    from inferoptim.config import EngineConfig, create_validated
    from inferoptim.models.artefact import engine_fields
    from inferoptim.serving.auth import read_keys
    from inferoptim.serving.engine_process import ENGINE_CORE, NULL_CORE
    from inferoptim.serving.server import Announcement
    from inferoptim.serving.server import serve as run
    from inferoptim.serving.settings import ServerSettings

    if engine and "help" in engine:
        _print_fields(EngineConfig)
        return
    logging.basicConfig(level=logging.WARNING, format="inferoptim: %(message)s")
    proved, warning = engine_fields(Path(model))
    if warning:
        logging.getLogger(__name__).warning(warning)
    fields = {**proved, **assignments(engine or []), "model": model}
    engine_config = create_validated(EngineConfig, fields, "--engine")
    settings = create_validated(
        ServerSettings,
        {
            "host": host,
            "port": port,
            "served_model_names": tuple(served_model_name or [model]),
            "max_queue": max_queue,
            "max_body_bytes": max_body_bytes,
            "max_tokens": max_tokens,
            "request_timeout_s": request_timeout,
            "drain_timeout_s": drain_timeout,
            "on_engine_death": on_engine_death,
            "cors_origins": tuple(cors_origin or ()),
            "metrics_alias": metrics_alias,
            "access_log": access_log,
            "otlp_endpoint": otlp_endpoint,
            "usd_per_hour": usd_per_hour,
            "usd_per_kwh": usd_per_kwh,
            "max_tenants": max_tenants,
        },
    )
    keys = read_keys(api_key_file) if api_key_file is not None else None

    def say(event: str, text: str, **values: Any) -> None:
        if json:
            import json as json_module

            typer.echo(json_module.dumps({"event": event, **values}))
        else:
            typer.echo(text)

    def bound(a: Announcement) -> None:
        url = f"http://{f'[{a.host}]' if ':' in a.host else a.host}:{a.port}"
        say("bound", f"listening on {url}; loading {model}", url=url, model=model)

    def ready(a: Announcement) -> None:
        info = a.state.metrics.info
        names = ", ".join(settings.served_model_names)
        open_to = "" if keys is not None else " (no API key asked)"
        text = f"ready: {names} on {info.get('device')}, {info.get('dtype', 'no dtype')}, {info.get('decoder')}{open_to}"
        say("ready", text, engine=info)

    run(
        settings,
        engine_config,
        keys=keys,
        core=ENGINE_CORE if null_engine_step_ms is None else NULL_CORE,
        core_options={} if null_engine_step_ms is None else {"step_s": null_engine_step_ms / 1000},
        on_bound=bound,
        on_ready=ready,
    )
    say("stopped", "stopped")


def assignments(words: list[str]) -> dict[str, Any]:
    """FIELD=VALUE words as plain values: true/false, numbers and null as in JSON, anything else as text."""
    import json

    from inferoptim.errors import ConfigError

    fields: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--engine {word}: write FIELD=VALUE")
        if name == "model":
            raise ConfigError("--engine model=…: the model is the command's argument")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields


def _print_fields(config: Any) -> None:
    for name, field in config.model_fields.items():
        if name != "model":
            annotation = (
                str(field.annotation).replace("typing.", "").removeprefix("<class '").removesuffix("'>")
            )
            typer.echo(f"{name}={field.default}  ({annotation})  {field.description or ''}".rstrip())
