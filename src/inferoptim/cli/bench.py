"""``inferoptim bench``: flags to a plan, a plan to a run, progress while it lasts, a table at the end."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferoptim.errors import ConfigError, InferOptimError

if TYPE_CHECKING:
    from inferoptim.bench.plan import BenchPlan
    from inferoptim.records.schema import Summary

TAKES_LENGTH = ("guide", "chat", "chat-short", "summarise", "prompts")
WHAT = "What to measure"
HOW = "How long"
WHERE = "Where it goes"


def bench(
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="A plan in YAML; flags win over it.", rich_help_panel=WHAT),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Alias, Hub id, local folder or .gguf file.", rich_help_panel=WHAT),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Minutes instead of hours: short requests, fewer runs.", rich_help_panel=HOW
        ),
    ] = False,
    workload: Annotated[
        list[str] | None,
        typer.Option(
            "--workload",
            help="guide, chat, chat-short, summarise, synthetic:IN/OUT, rag or a workload file; repeat for several.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", help="Prompts of your own: .txt (one a line) or .jsonl.", rich_help_panel=WHAT
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            "--concurrency", help="Requests in flight, e.g. 1,32 (the default).", rich_help_panel=WHAT
        ),
    ] = None,
    output_tokens: Annotated[
        int | None,
        typer.Option("--output-tokens", help="Tokens produced per request.", rich_help_panel=WHAT),
    ] = None,
    design: Annotated[
        str | None,
        typer.Option("--design", help="ladder, one-at-a-time, leave-one-out or full.", rich_help_panel=WHAT),
    ] = None,
    levers: Annotated[
        str | None,
        typer.Option("--levers", help="Only these levers, separated by commas.", rich_help_panel=WHAT),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets", help="transformers,engine (the default); also vllm, trtllm.", rich_help_panel=WHAT
        ),
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            "--endpoint",
            metavar="NAME=URL",
            help="A running OpenAI server (vLLM, TensorRT-LLM, ours) to measure beside them; repeatable.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="auto, cpu or cuda.", rich_help_panel=WHAT)
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", help="CPU threads; default: all usable cores.", rich_help_panel=WHAT),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option("--runs", help="Measured runs of each configuration and case.", rich_help_panel=HOW),
    ] = None,
    warmups: Annotated[
        int | None, typer.Option("--warmups", help="Runs dropped before.", rich_help_panel=HOW)
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            help="Seconds after which nothing is measured beyond the minimum.",
            rich_help_panel=HOW,
        ),
    ] = None,
    until_separated: Annotated[
        bool,
        typer.Option(
            "--until-separated",
            help="Go on until neighbours on the ladder can be ranked (or 200 runs).",
            rich_help_panel=HOW,
        ),
    ] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of requests and order.", rich_help_panel=HOW)
    ] = None,
    no_quality: Annotated[
        bool,
        typer.Option("--no-quality", help="Skip the quality gate; the report says so.", rich_help_panel=HOW),
    ] = False,
    remeasure: Annotated[
        bool,
        typer.Option(
            "--remeasure-ceilings", help="Measure this machine's ceilings anew.", rich_help_panel=HOW
        ),
    ] = False,
    price: Annotated[
        float | None,
        typer.Option("--price-per-hour", help="What an hour of this machine costs.", rich_help_panel=WHERE),
    ] = None,
    currency: Annotated[
        str | None, typer.Option("--currency", help="Of that price; default EUR.", rich_help_panel=WHERE)
    ] = None,
    price_source: Annotated[
        str | None, typer.Option("--price-source", help="Where the price comes from.", rich_help_panel=WHERE)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Results folder; default results/NAME-DATE.", rich_help_panel=WHERE),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="Go on with an interrupted run of this folder.", rich_help_panel=WHERE),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier run in --out.", rich_help_panel=WHERE)
    ] = False,
    lang: Annotated[
        str, typer.Option("--lang", help="Language of the report: en or fr.", rich_help_panel=WHERE)
    ] = "en",
    json: Annotated[
        bool, typer.Option("--json", help="Print summary.json instead of a table.", rich_help_panel=WHERE)
    ] = False,
) -> None:
    """Measure what each lever gains on this machine, with a quality gate, and write a report.

    Plain PyTorch (transformers) first, then this project's engine with its levers off, then each lever on top of the one
    before. `inferoptim bench --quick` takes minutes on two cores. Ctrl-C keeps what was measured; --resume FOLDER goes on.
    """
    flags: dict[str, Any] = {
        "model": model,
        "design": design,
        "levers": _names(levers),
        "targets": _names(targets),
        "endpoints": _endpoints(endpoint),
        "device": device,
        "num_threads": threads,
        "runs": runs,
        "warmups": warmups,
        "budget_s": budget,
        "until_separated": until_separated or None,
        "seed": seed,
    }
    prices = {"price_per_hour": price, "currency": currency, "price_source": price_source}
    given = {name: value for name, value in flags.items() if value is not None}
    priced = {name: value for name, value in prices.items() if value is not None}
    traffic = (workload, prompts, concurrency, output_tokens)
    if resume is not None:
        if given or plan or quick or no_quality or any(t is not None for t in traffic):
            raise ConfigError("--resume goes on with the stored plan: only a price and --lang may go with it")
        chosen = _stored_plan(resume, priced)
        folder = out or resume
        if folder != resume:
            raise ConfigError("--resume names the folder itself: leave --out away")
    else:
        chosen = _plan(
            plan, {**given, **priced}, quick, no_quality, workload, prompts, concurrency, output_tokens
        )
        folder = out or _default_folder(chosen.name)
    _run(chosen, folder, resume=resume is not None, force=force, remeasure=remeasure, lang=lang, json=json)


def _run(
    plan: BenchPlan, folder: Path, *, resume: bool, force: bool, remeasure: bool, lang: str, json: bool
) -> None:
    from inferoptim.bench.protocol import Bench, resolve
    from inferoptim.build.artefact import record_benchmark
    from inferoptim.cli.progress import BenchProgress, download_progress
    from inferoptim.cli.report import publish
    from inferoptim.models.hub import resolve_model
    from inferoptim.report.write_report import check_language

    language = check_language(lang)
    signal.signal(signal.SIGTERM, _interrupt)  # `kill` and `timeout` mean what Ctrl-C means
    with download_progress() as show:
        files = resolve_model(plan.model, progress=show)
    with BenchProgress() as progress:
        run = Bench(
            resolve(plan, files),
            folder,
            command=_command(plan),
            observer=progress,
            resume=resume,
            force=force,
            remeasure=remeasure,
            publish=lambda written: publish(written, language),
        )
        try:
            summary = run.run()
        except KeyboardInterrupt:
            progress.close()
            if (folder / "plan.json").exists():
                typer.echo(
                    f"kept in {folder}; go on with: inferoptim bench --resume {shlex.quote(str(folder))}",
                    err=True,
                )
            raise
    record_benchmark(files.folder, summary)
    if json:
        typer.echo(summary.model_dump_json(indent=2))
    else:
        print_summary(summary)
        typer.echo(f"report: {folder / 'report.html'}")
    if not any(metric.runs for metric in summary.metrics):
        why = next((c.error for c in summary.configurations if c.error), "no configuration was run")
        raise InferOptimError(f"nothing was measured: {why}; the report lists every reason")


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def print_summary(summary: Summary) -> None:
    """The ladder of every case, on the terminal."""
    from rich.console import Console

    from inferoptim.cli.console_table import print_table
    from inferoptim.cli.money import number

    columns = ("configuration", "output tokens/s", "× baseline", "cost index", "of possible")
    labels = {c.config_id: c for c in summary.configurations}
    for case in dict.fromkeys(m.workload for m in summary.metrics):
        rows = []
        for metric in (m for m in summary.metrics if m.workload == case):
            config = labels[metric.config_id]
            rate, ratio, index = metric.output_tokens_per_s, metric.speedup_vs_baseline, metric.cost_index
            if rate is None:
                why = "not measured" if config.status == "ok" else config.status.replace("_", " ")
                rows.append([config.label, why])
                continue
            span = f" ({number(rate.low)}–{number(rate.high)})" if rate.n > 1 else ""
            rows.append(
                [
                    config.label,
                    f"{number(rate.value)}{span}",
                    "1" if config.is_baseline else f"{ratio.value:.3g}" if ratio else "–",
                    f"{index.value:.3g}" if index else "–",
                    f"{metric.share_of_possible:.0%}" if metric.share_of_possible else "–",
                ]
            )
        print_table(Console(), case, columns, rows, (False, True, True, True, True))


def _plan(
    path: Path | None,
    given: dict[str, Any],
    quick: bool,
    no_quality: bool,
    workload: list[str] | None,
    prompts: Path | None,
    concurrency: str | None,
    output_tokens: int | None,
) -> BenchPlan:
    from inferoptim.bench.plan import QUICK, load_plan, make_plan

    base: dict[str, Any] = dict(QUICK) if quick else {}
    if workload or prompts or concurrency or output_tokens:
        if output_tokens is not None and any(
            _workload(n, {})["name"] not in TAKES_LENGTH for n in workload or ()
        ):
            raise ConfigError("--output-tokens: this workload states its own lengths")
        if path is not None:
            raise ConfigError(
                "--workload, --prompts, --concurrency and --output-tokens go into the plan's workloads"
            )
        template: dict[str, Any] = dict(base.get("workloads", [{}])[0])
        for stated in ("name", "concurrency"):
            template.pop(stated, None)
        if concurrency is not None:
            template["concurrency"] = _numbers("--concurrency", concurrency)
        if output_tokens is not None:
            template["output_tokens"] = output_tokens
        names: list[dict[str, Any]] = [_workload(name, template) for name in workload or ()]
        if output_tokens is None:  # short already, and its lengths are meant to differ
            names = [
                {k: v for k, v in w.items() if k != "output_tokens"} if w["name"] == "chat-short" else w
                for w in names
            ]
        if prompts is not None:
            own = {
                k: v for k, v in template.items() if k != "prompt_tokens"
            }  # theirs are as long as they are
            names.append({**own, "name": "prompts", "file": str(prompts)})
        given["workloads"] = names or [{**template, "name": "guide"}]
    if no_quality:
        given["quality"] = {"enabled": False}
    if path is not None:
        return load_plan(path, given, quick=quick)
    return make_plan({**base, **given})


def _workload(name: str, template: dict[str, Any]) -> dict[str, Any]:
    """A workload's plan entry; what states its own lengths takes none."""
    from inferoptim.bench.plan import WORKLOADS

    fields = dict(template)
    if name != "guide":
        fields.pop("prompt_tokens", None)
    if name in WORKLOADS:
        return {**fields, "name": name}
    fields.pop("output_tokens", None)
    if name.startswith("synthetic"):
        return {**fields, "name": name}
    return {**fields, "name": "replay", "file": name}


def _stored_plan(folder: Path, priced: dict[str, Any]) -> BenchPlan:
    from inferoptim.bench.plan import make_plan
    from inferoptim.records.reader import read_run

    stored = read_run(folder).plan
    return make_plan({**stored, **priced}, str(folder / "plan.json"))


def _default_folder(name: str) -> Path:
    from datetime import datetime

    return Path("results") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _command(plan: BenchPlan) -> list[str]:
    """What was typed, folder and force left out: they say where, not what."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv and sys.argv[0] else ["inferoptim", "bench"]
    out: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in ("--out", "--resume"):
            skip = True
        elif word != "--force" and not word.startswith(("--out=", "--resume=")):
            out.append(shlex.quote(word))
    return out


def _endpoints(given: list[str] | None) -> list[dict[str, str]] | None:
    """NAME=URL, as often as given."""
    if not given:
        return None
    pairs = [text.partition("=") for text in given]
    if any(not name or not url for name, _, url in pairs):
        raise ConfigError("--endpoint: write it as NAME=URL, such as vllm=http://127.0.0.1:8000")
    return [{"name": name, "url": url} for name, _, url in pairs]


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _numbers(flag: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{flag}: whole numbers separated by commas are expected, not {text!r}") from None
