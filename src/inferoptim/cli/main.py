"""The application: every command's name, and the one place where an error becomes a line and an exit status."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated

import typer

from inferoptim import __version__
from inferoptim.cli.interrupt import defer_while_importing
from inferoptim.cli.lazy import CommandEntry, LazyGroup, StoppedError
from inferoptim.errors import InferOptimError

START = "Start here"
TRAFFIC = "Know your traffic"
MONEY = "What it is worth"
SIZE = "Size it"
SERVE = "Run it"

COMMANDS = (
    CommandEntry(
        "doctor",
        "inferoptim.cli.doctor:doctor",
        "Is this machine ready? What is missing, and what to do about it.",
        START,
    ),
    CommandEntry(
        "pull",
        "inferoptim.cli.pull:pull",
        "Fetch a model: Hub id, local folder or GGUF. The default needs no account.",
        START,
    ),
    CommandEntry(
        "bench",
        "inferoptim.cli.bench:bench",
        "The main job: what does each lever gain here? Writes a report.",
        START,
    ),
    CommandEntry(
        "report", "inferoptim.cli.report:report", "Write the report of a results folder again.", START
    ),
    CommandEntry(
        "build",
        "inferoptim.cli.build:build",
        "Quantise with calibration and write a serving artefact with its proof.",
        SERVE,
    ),
    CommandEntry(
        "inspect",
        "inferoptim.cli.build:inspect",
        "Show an artefact and check that its files are what was built.",
        SERVE,
    ),
    CommandEntry(
        "compare", "inferoptim.cli.compare:compare", "Same quality? faster? The A/B and CI gate.", SERVE
    ),
    CommandEntry(
        "serve",
        "inferoptim.cli.serve:serve",
        "OpenAI-compatible server with Prometheus metrics and live cost.",
        SERVE,
    ),
    CommandEntry(
        "load",
        "inferoptim.cli.load:load",
        "Load test of any OpenAI endpoint; the highest rate that meets the SLO.",
        SERVE,
    ),
    CommandEntry(
        "deploy",
        "inferoptim.cli.deploy:deploy",
        "Compose, KServe, Ray Serve, Prometheus rules, Grafana dashboards: written and checked.",
        SERVE,
    ),
    CommandEntry(
        "audit",
        "inferoptim.cli.audit:audit",
        "Read request logs: lengths, bursts, prefix reuse, languages, cost.",
        TRAFFIC,
    ),
    CommandEntry(
        "cost",
        "inferoptim.cli.cost:cost",
        "Cost per million tokens, from a measurement and a price.",
        MONEY,
    ),
    CommandEntry("tco", "inferoptim.cli.tco:tco", "Total cost of ownership over a horizon.", MONEY),
    CommandEntry(
        "roi",
        "inferoptim.cli.roi:roi",
        "Return on the optimisation work: break-even and sensitivity.",
        MONEY,
    ),
    CommandEntry(
        "prices",
        "inferoptim.cli.prices:prices",
        "The price list: each price with its date and source.",
        MONEY,
    ),
    CommandEntry(
        "claims", "inferoptim.cli.claims:claims", "Every figure of the guide, with its verdict.", MONEY
    ),
    CommandEntry(
        "lint", "inferoptim.cli.claims:lint", "Is a published benchmark row physically possible?", MONEY
    ),
    CommandEntry(
        "plan",
        "inferoptim.cli.plan:plan",
        "Memory of a model and its KV-cache, and what fits on which card.",
        SIZE,
    ),
)

EXTRA_OF_MODULE = {
    "transformers": "bench",
    "fastapi": "serve",
    "uvicorn": "serve",
    "msgspec": "serve",
    "starlette": "serve",
    "httptools": "serve",
    "prometheus_client": "serve",
    "llguidance": "serve",
    "httpx": "serve",
    "uvloop": "serve",
    "polars": "audit",
    "zstandard": "audit",
    "mistral_common": "tokens",
    "sentencepiece": "tokens",
    "tiktoken": "tokens",
    "genai_prices": "prices",
    "pynvml": "gpu",
    "opentelemetry": "otel",
}

EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell expects
EXIT_CLOSED_PIPE = 141  # 128 + SIGPIPE


class InferoptimGroup(LazyGroup):
    """The commands of this package."""

    entries = COMMANDS


app = typer.Typer(
    name="inferoptim",
    cls=InferoptimGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A first report: inferoptim doctor, then inferoptim bench --quick. Each command has its own --help.",
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"inferoptim {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="On an error, print the traceback too. Works before or after the command."
        ),
    ] = False,
) -> None:
    """Measure what each LLM inference lever gains on your model, traffic and machine; price it; serve the winner."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; default: `sys.argv[1:]`.

    Returns:
        The exit status: 0, the error class's `exit_status`, 2 for wrong usage, 130 after Ctrl-C, 141 on a closed pipe.
    """
    arguments, debug = _without_debug(sys.argv[1:] if argv is None else argv)
    _print_what_can_be()
    try:
        defer_while_importing()
        app(args=arguments, prog_name="inferoptim")
        return 0
    except SystemExit as stop:
        return _exit_status(stop)
    except (StoppedError, KeyboardInterrupt) as stop:
        if isinstance(stop.__cause__, BrokenPipeError):
            return _leave_closed_pipe()
        _complain("interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        line, status = explain(error)
        _complain(f"error: {line}")
        return status


def explain(error: Exception) -> tuple[str, int]:
    """One line for a person, and the exit status, of any error that reached the top."""
    if isinstance(error, InferOptimError):
        return str(error), error.exit_status
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("inferoptim"):
        package = error.name.partition(".")[0]
        extra = EXTRA_OF_MODULE.get(package)
        wanted = f"'inference-optim-llm[{extra}]'" if extra else package
        return (
            f"this command needs the Python package {package}, which is not installed: pip install {wanted}",
            3,
        )
    if isinstance(error, MemoryError):
        return (
            f"out of memory{_detail(error)}: use a smaller model, batch or KV budget, or free some memory",
            4,
        )
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        if error.errno == errno.ENOSPC:
            return (
                f"the disk is full{where}: free some space or write elsewhere; what was complete is kept",
                4,
            )
        if error.strerror:
            return f"{error.strerror}{where}", 1
    return (
        f"unexpected {type(error).__name__}{_detail(error)} (a bug: --debug shows where; please report it)",
        1,
    )


def _detail(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f": {text}" if text else ""


def _without_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """Take `--debug` out wherever it stands before a `--`, so that it can follow any command."""
    options = list(argv)
    literal: list[str] = []
    if "--" in options:
        split = options.index("--")
        options, literal = options[:split], options[split:]
    return [word for word in options if word != "--debug"] + literal, "--debug" in options


def _print_what_can_be() -> None:
    """Where the terminal's character set lacks a sign, print a question mark instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="replace")


def _exit_status(stop: SystemExit) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _leave_closed_pipe()
    return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1


def _leave_closed_pipe() -> int:
    """The reader went away (`| head`): nothing to say, and nothing to flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_CLOSED_PIPE


def _complain(line: str) -> None:
    typer.echo(f"inferoptim: {line}", err=True)
