"""A bench run turned into the scenario behind `roi` and the simulator: measured speeds in, no invented one. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inferoptim.economics.scenario_file import Choice, Scenario, build
from inferoptim.economics.uncertainty import Range
from inferoptim.errors import ConfigError, DataError
from inferoptim.records.reader import RunFolder, read_run
from inferoptim.records.schema import ConfigurationRecord, Interval, MetricSummary, Summary
from inferoptim.report.economics_section import caveats_of, gpu_time_splits, tokens_per_request


def scenario_from_run(
    folder: str | Path,
    stated: dict[str, Any],
    *,
    config: str | None = None,
    baseline: str | None = None,
    workload: str | None = None,
    gpus: int = 1,
    currency: str = "EUR",
) -> Scenario:
    """The scenario "serve with `config` instead of `baseline`", from what a run measured on one workload.

    Args:
        folder: ``results/<run>``, with summary.json.
        stated: further inputs of the scenario (traffic, utilisation, costs), numbers or ranges; they win over the run's.
        config: configuration after the change; default: the fastest that passed its gate.
        baseline: configuration before; default: the run's own baseline.
        workload: default: the one with the most requests at once.
        gpus: GPUs (or machines) that did the work together.

    Raises:
        DataError: the folder holds no summarised run.
        ConfigError: a name that the run does not have, or nothing measured that can be compared.
    """
    run = read_run(folder)
    if run.summary is None:
        raise DataError(
            f"{folder}: no summary.json: finish the run with `inferoptim bench --resume {folder}`"
        )
    summary = run.summary
    name = _workload(folder, summary, workload)
    rows = {
        m.config_id: m for m in summary.metrics if m.workload == name and m.output_tokens_per_s is not None
    }
    configs = {c.config_id: c for c in summary.configurations if c.config_id in rows}
    for given, what in ((config, "--config"), (baseline, "--baseline")):
        if given is not None and given not in configs:
            raise ConfigError(
                f"{folder}: {what} {given!r} has no speed on {name}; measured: {', '.join(configs)}"
            )
    before = baseline or summary.baseline
    if before not in configs:
        raise ConfigError(
            f"{folder}: the baseline {before!r} has no speed on {name}; choose one with --baseline: {', '.join(configs)}"
        )
    choices = [
        Choice(
            key,
            c.label,
            _factor(rows[key], rows[before], summary.baseline),
            tuple(caveats_of(c, rows[key], summary)),
        )
        for key, c in configs.items()
        if key != before
    ]
    after = config or _fastest(configs, rows, before)
    chosen = next((choice for choice in choices if choice.id == after), None)
    if chosen is None:
        raise ConfigError(
            f"{folder}: nothing but the baseline {before!r} was measured on {name}: no change to price"
        )
    values, notes = _speeds(run, rows[before], gpus)
    notes.insert(
        0,
        f"measured: {summary.name}, workload {name}; before: {configs[before].label}; after: {chosen.label}",
    )
    notes += [f"{chosen.label}: {caveat}" for caveat in chosen.caveats]
    return build(
        {**values, **stated, "factor": chosen.factor},
        currency=currency,
        title=f"{summary.name} · {name}",
        notes=notes,
        choices=choices,
        chosen=chosen.id,
    )


def _workload(folder: str | Path, summary: Summary, wanted: str | None) -> str:
    names = {m.workload: m.concurrency or 0 for m in summary.metrics if m.output_tokens_per_s is not None}
    if not names:
        raise ConfigError(f"{folder}: nothing measured there has a speed")
    if wanted is None:
        return max(names, key=lambda name: names[name])
    if wanted not in names:
        raise ConfigError(f"{folder}: no workload {wanted!r}; it has {', '.join(names)}")
    return wanted


def _fastest(configs: dict[str, ConfigurationRecord], rows: dict[str, MetricSummary], before: str) -> str:
    def speed(key: str) -> float:
        interval = rows[key].output_tokens_per_s
        return interval.value if interval else 0.0

    passed = [key for key, config in configs.items() if config.status == "ok" and key != before]
    return max(passed, key=speed, default=before)


def _factor(row: MetricSummary, base: MetricSummary, run_baseline: str) -> float | Range:
    """GPU time over the baseline's. The run's own paired interval where there is one, else both intervals apart."""
    rate, reference = row.output_tokens_per_s, base.output_tokens_per_s
    assert rate is not None
    assert reference is not None
    paired = row.speedup_vs_baseline if base.config_id == run_baseline else None
    ratio = paired or Interval(
        value=rate.value / reference.value,
        low=rate.low / reference.high,
        high=rate.high / reference.low if reference.low > 0 else rate.high / reference.value,
    )
    if not 0 < ratio.low < ratio.high:
        return 1.0 / ratio.value
    return Range(1.0 / ratio.high, 1.0 / ratio.value, 1.0 / ratio.low, "measured")


def _speeds(run: RunFolder, base: MetricSummary, gpus: int) -> tuple[dict[str, Any], list[str]]:
    """GPU time of a token on the baseline, split between prompt and output where the run can tell."""
    assert base.output_tokens_per_s is not None
    records = run.measured_runs().get((base.config_id, base.workload), [])
    shape = tokens_per_request(records)
    values: dict[str, Any] = {}
    notes: list[str] = []
    if shape:
        values = {"input_tokens": shape[0], "output_tokens": shape[1]}
    split = gpu_time_splits(run).get((base.config_id, base.concurrency))
    if split is not None and shape:
        # The split says how; the throughput says how much: together they make this workload's own time.
        scale = gpus * shape[1] / base.output_tokens_per_s.value / split.request_s(*shape)
        values["gpu_s_per_m_input"] = split.s_per_input_token * 1e6 * scale
        values["gpu_s_per_m_output"] = split.s_per_output_token * 1e6 * scale
        notes.append(f"GPU time of prompt and output apart: {split.basis}")
    else:
        values["gpu_s_per_m_input"] = 0.0
        values["gpu_s_per_m_output"] = gpus * 1e6 / base.output_tokens_per_s.value
        notes.append(
            "prompt and output were not measured apart: the whole GPU time stands with the output tokens, "
            "and holds for prompts of this length only"
        )
    return values, notes
