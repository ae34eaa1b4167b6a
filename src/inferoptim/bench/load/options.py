"""What a load test is asked to do, and what is refused before anything is sent."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from inferoptim.bench.load.arrivals import Level, Process
from inferoptim.bench.load.client_health import DEFAULT_ALLOWED_LAG_S
from inferoptim.errors import CapacityError, ConfigError
from inferoptim.records.load_schema import Objectives
from inferoptim.records.synthetic_text import TextTokenizer
from inferoptim.records.workload_file import Workload
from inferoptim.records.writer import missing_folders
from inferoptim.targets.http_client import Endpoint
from inferoptim.targets.openai_client import Api


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What to do; checked by `plan_check`."""

    endpoint: Endpoint
    workload: Workload
    out: Path
    model: str | None = None
    api: Api | Literal["auto"] = "auto"
    tokenizer: TextTokenizer | None = None
    rates: tuple[Level, ...] = ()
    concurrencies: tuple[Level, ...] = ()
    process: Process = "poisson"
    burstiness: float = 1.0
    replay_arrivals: bool = False  # send at the workload's own times
    find_max: bool = False
    tolerance: float = 0.1
    duration_s: float = 30.0
    num_requests: int | None = None
    objectives: Objectives = field(default_factory=Objectives)
    temperature: float = 0.0
    ignore_eos: bool = True
    timeout_s: float = 600.0
    warmup: int = 2
    seed: int = 0
    allowed_lag_s: float = DEFAULT_ALLOWED_LAG_S
    run_self_test: bool = True
    command: str = ""


def plan_check(options: LoadOptions) -> None:
    """Refuse contradictions before anything is sent.

    Raises:
        ConfigError: what contradicts what, and which to drop.
    """
    chosen = [bool(options.rates), bool(options.concurrencies), options.replay_arrivals]
    if options.find_max:
        if options.concurrencies or options.replay_arrivals or len(options.rates) > 1:
            raise ConfigError(
                "--find-max-rate searches the rate itself: give at most one --rate, to start from"
            )
        if not options.objectives.stated:
            raise ConfigError("--find-max-rate needs at least one objective, such as --slo ttft=500ms")
        if any(r.first != r.last for r in options.rates):
            raise ConfigError("--find-max-rate starts from one --rate, not a ramp")
    elif sum(chosen) != 1:
        raise ConfigError(
            "choose one shape of load: --rate (open loop), --concurrency (closed loop), or --replay of a workload "
            "with arrival times"
        )
    if options.replay_arrivals and options.workload.header.arrivals != "open":
        raise ConfigError(
            f"workload {options.workload.header.name} has no arrival times: add --rate or --concurrency"
        )
    if options.process == "trace":
        if options.workload.rate_per_s is None:
            raise ConfigError(
                f"workload {options.workload.header.name} has no arrival times: --arrivals trace needs some"
            )
        if any(r.first != r.last for r in options.rates):
            raise ConfigError("--arrivals trace keeps the trace's own rhythm: it cannot follow a ramp")
    if not options.duration_s > 0 or not options.timeout_s > 0 or not options.burstiness > 0:
        raise ConfigError("--duration, --timeout and --burstiness must be above 0")
    if options.num_requests is not None and options.num_requests < 1:
        raise ConfigError("--num-requests must be at least 1")
    if options.num_requests is not None and any(c.first != c.last for c in options.concurrencies):
        raise ConfigError("a ramp of concurrency runs for --duration, not for --num-requests")
    if options.process != "gamma" and options.burstiness != 1.0:
        raise ConfigError("--burstiness belongs to --arrivals gamma")


def prepare_out(out: Path | None) -> tuple[Path, list[Path]]:
    """The folder of the results, made or refused; and every folder that was made for it, innermost first.

    Raises:
        ConfigError: it exists and is not empty. CapacityError: it cannot be written.
    """
    folder = out or Path("results") / f"load-{time.strftime('%Y%m%d-%H%M%S')}"
    made = missing_folders(folder)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} exists and is not an empty folder: choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CapacityError(
            f"{folder}: cannot be written ({error.strerror}); choose another --out"
        ) from error
    return folder, made
