"""``inferoptim load``: put an OpenAI endpoint under a stated load and say what came back, and whether to believe it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from inferoptim.errors import ConfigError, InferOptimError

if TYPE_CHECKING:
    from inferoptim.bench.load.session import LoadSession
    from inferoptim.records.load_schema import LoadStage, LoadSummary
    from inferoptim.records.workload_file import Workload


class InvalidRunError(InferOptimError):
    """The client was the bottleneck: the figures describe it, not the server."""

    exit_status = 7


def load(
    url: Annotated[str, typer.Argument(help="The server, e.g. http://127.0.0.1:8000 (with or without /v1).")],
    rate: Annotated[
        str | None,
        typer.Option("--rate", help="Open loop, requests/s: 4, or 2,4,8 (stages), or 1..10 (a ramp)."),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option("--concurrency", help="Closed loop, requests at once: 8, or 1,8,32, or 1..32."),
    ] = None,
    replay: Annotated[
        str,
        typer.Option(
            "--replay",
            help="Workload: a file of `audit --save-workload`, or guide, rag, summarise. "
            "Its arrival times are used unless --rate or --concurrency is given.",
        ),
    ] = "guide",
    input_tokens: Annotated[
        int | None, typer.Option("--input-tokens", help="Prompt length instead of the workload's.")
    ] = None,
    output_tokens: Annotated[
        int | None, typer.Option("--output-tokens", help="Output length instead of the workload's.")
    ] = None,
    duration: Annotated[float, typer.Option("--duration", help="Seconds of each stage or probe.")] = 30.0,
    num_requests: Annotated[
        int | None, typer.Option("--num-requests", help="Requests of each stage, instead of --duration.")
    ] = None,
    arrivals: Annotated[
        Literal["poisson", "gamma", "constant", "trace"],
        typer.Option("--arrivals", help="Gaps of the open loop; trace: the workload's own, at --rate."),
    ] = "poisson",
    burstiness: Annotated[
        float, typer.Option("--burstiness", help="Variation of the gamma gaps: 1 = Poisson, 2 = bursts.")
    ] = 1.0,
    find_max_rate: Annotated[
        bool, typer.Option("--find-max-rate", help="Search the highest rate that meets the objectives.")
    ] = False,
    slo: Annotated[
        list[str] | None,
        typer.Option("--slo", help="Objective of one request: ttft=500ms, tpot=40ms, itl=200ms, e2e=10s."),
    ] = None,
    attainment: Annotated[
        float, typer.Option("--attainment", help="Share of requests that must meet every objective.")
    ] = 0.95,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Width of the answer of --find-max-rate, as a share.")
    ] = 0.1,
    model: Annotated[str | None, typer.Option("--model", help="Default: the only one served.")] = None,
    api: Annotated[
        Literal["auto", "completions", "chat"], typer.Option("--api", help="auto asks the server.")
    ] = "auto",
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="Model or folder whose tokenizer makes prompts of exact length."),
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", help="Name of the environment variable that holds the key.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos/--stop-at-eos", help="Ask for exact output lengths, where honoured.")
    ] = True,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0)] = 0.0,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for one request.")] = 600.0,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Requests before the clock starts.")] = 2,
    max_lag_ms: Annotated[
        float, typer.Option("--max-lag-ms", help="Client lag (P99) above which a run is invalid.")
    ] = 20.0,
    self_test: Annotated[
        bool, typer.Option("--self-test/--no-self-test", help="Measure this client's own ceiling first.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Results folder; default: results/load-….")
    ] = None,
    language: Annotated[
        Literal["en", "fr"], typer.Option("--lang", "--language", help="Of the page.")
    ] = "en",
    json: Annotated[bool, typer.Option("--json", help="Print load.json instead of the table.")] = False,
) -> None:
    """Load test of any OpenAI endpoint.

    An open loop (--rate) sends at its times whatever the server does; a closed loop (--concurrency) waits for answers.
    Exit status 7: the client was the bottleneck, the run is invalid.
    """
    from inferoptim.bench.load.arrivals import parse_levels
    from inferoptim.bench.load.objectives import parse_objectives
    from inferoptim.bench.load.options import LoadOptions, plan_check, prepare_out
    from inferoptim.bench.load.session import LoadSession
    from inferoptim.records.writer import remove_empty
    from inferoptim.targets.http_client import Endpoint

    workload = _workload(replay, input_tokens, output_tokens, seed)
    endpoint = Endpoint.parse(url, _key_header(api_key_env))
    options: dict[str, Any] = {
        "endpoint": endpoint,
        "workload": workload,
        "model": model,
        "api": api,
        "rates": parse_levels(rate, "--rate") if rate else (),
        "concurrencies": parse_levels(concurrency, "--concurrency", whole=True) if concurrency else (),
        "process": arrivals,
        "burstiness": burstiness,
        "find_max": find_max_rate,
        "tolerance": tolerance,
        "duration_s": duration,
        "num_requests": num_requests,
        "objectives": parse_objectives(slo or (), attainment),
        "temperature": temperature,
        "ignore_eos": ignore_eos,
        "timeout_s": timeout,
        "warmup": warmup,
        "seed": seed,
        "allowed_lag_s": max_lag_ms / 1e3,
        "run_self_test": self_test,
        "command": "inferoptim " + " ".join(sys.argv[1:]),
    }
    own_times = workload.header.arrivals == "open" and not (rate or concurrency or find_max_rate)
    options["replay_arrivals"] = own_times
    plan_check(LoadOptions(**options, out=Path()))
    options["tokenizer"] = _tokenizer(tokenizer)
    folder, made = prepare_out(out)
    try:
        session = LoadSession(LoadOptions(**options, out=folder), announce=_announcer(json))
        summary = _run(session, show=not json and sys.stderr.isatty())
    except BaseException:
        remove_empty(made)
        raise
    page = _page(session.options.out, language)
    if json:
        typer.echo(summary.model_dump_json(indent=2))
    else:
        _show(summary, session.options.out, page)
    if summary.interrupted:
        raise KeyboardInterrupt
    if not summary.valid:
        reasons = "; ".join(
            f"{s.name}: {', '.join(s.client.reasons)}" for s in summary.stages if not s.client.valid
        )
        raise InvalidRunError(
            f"invalid run, the client was the bottleneck ({reasons}): use a freer or larger machine"
        )


def _workload(replay: str, input_tokens: int | None, output_tokens: int | None, seed: int) -> Workload:
    from inferoptim.bench.load.prompts import fixed_lengths
    from inferoptim.records.workload_file import load_workload

    if input_tokens is None and output_tokens is None:
        return load_workload(replay)
    if input_tokens is None or output_tokens is None:
        raise ConfigError("give both --input-tokens and --output-tokens, or neither")
    return fixed_lengths(input_tokens, output_tokens, seed)


def _key_header(variable: str | None) -> Mapping[str, str]:
    import os

    if variable is None:
        return {}
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"--api-key-env {variable}: that environment variable is not set")
    return {"Authorization": f"Bearer {key.strip()}"}


def _tokenizer(name: str | None) -> Any:
    if name is None:
        return None
    from inferoptim.models.hub import resolve_model
    from inferoptim.models.tokenizer import load_tokenizer

    folder = Path(name)
    return load_tokenizer(folder if (folder / "tokenizer.json").is_file() else resolve_model(name).folder)


def _announcer(json: bool) -> Any:
    return lambda line: typer.echo(line, err=json)


def _run(session: LoadSession, *, show: bool) -> LoadSummary:
    from inferoptim.bench.load.session import run_load

    if not show:
        return run_load(session)
    from rich.console import Console
    from rich.live import Live

    from inferoptim.cli.load_display import progress_line

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as display:

        async def refresh() -> None:
            import asyncio

            while True:
                display.update(progress_line(session.live), refresh=True)
                await asyncio.sleep(0.5)

        return run_load(session, refresh)


def _page(folder: Path, language: Literal["en", "fr"]) -> Path:
    from inferoptim.report.load_page import write_load_page

    return write_load_page(folder, language)


def _show(summary: LoadSummary, folder: Path, page: Path) -> None:
    from inferoptim.cli.load_display import max_rate_lines, notes, stage_table
    from inferoptim.cli.money import emit

    emit({}, [stage_table(summary)], json=False, csv=False, notes=[*max_rate_lines(summary), *notes(summary)])
    typer.echo(f"page written: {page}")
    typer.echo(f"requests: {folder / 'requests.jsonl'}")


__all__ = ["InvalidRunError", "LoadStage", "load"]
