"""Prometheus recording and alerting rules for the server's metrics, as code: thresholds are inputs, the rest is fixed.

Burn-rate alerts follow "The Site Reliability Workbook", chapter 5: an objective of 99 % leaves an error budget of 1 %;
14.4 times that rate, over an hour and over the last five minutes, spends 2 % of a month's budget in an hour and pages a
person; 6 times, over six hours and the last thirty minutes, spends 5 % in six hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from inferoptim.errors import ConfigError

# Upper bounds of the server's latency histograms: an objective between two of them could not be computed.
LATENCY_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 5.0,
    7.5, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 300.0,
)  # fmt: skip
WINDOWS = ("5m", "30m", "1h", "6h")
FAST, SLOW = 14.4, 6.0
MIN_REQUESTS = (
    50  # fewer in the long window say nothing about a percentile: no page for one slow request at night
)
GROUPS = (
    "inferoptim-recording",
    "inferoptim-objectives",
    "inferoptim-service",
    "inferoptim-money",
    "inferoptim-gpu",
)


@dataclass(frozen=True, slots=True)
class RuleInputs:
    """What the operator states."""

    ttft_s: float = 2.0  # objective: this share of requests has its first token within so long
    e2e_s: float = 30.0
    objective: float = 0.99
    usd_per_million_output_tokens: float = 10.0  # budget, idle time included
    error_ratio: float = 0.02
    runbooks: str = "docs/runbooks"  # folder or address that the alerts point to
    job: str = "inferoptim"

    def __post_init__(self) -> None:
        for name in ("ttft_s", "e2e_s"):
            value = getattr(self, name)
            if value not in LATENCY_BUCKETS_S:
                near = sorted(LATENCY_BUCKETS_S, key=lambda b: abs(b - value))[:2]
                raise ConfigError(
                    f"{name} = {value:g}: an objective must be a bucket of the server's histogram; the nearest are "
                    + " and ".join(f"{b:g}" for b in sorted(near))
                )
        if not 0 < self.objective < 1:
            raise ConfigError(
                f"objective = {self.objective}: a share of requests between 0 and 1, such as 0.99"
            )
        if not self.usd_per_million_output_tokens > 0 or not 0 < self.error_ratio < 1:
            raise ConfigError("the budget must be above 0, and the error ratio between 0 and 1")
        if not self.job.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"job {self.job!r}: letters, digits, - and _ only")


@dataclass(frozen=True, slots=True)
class Recording:
    """A series computed once, named level:metric:operation."""

    record: str
    expr: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. `why` is a comment in the file, for the reader who would simplify it away."""

    name: str
    expr: str
    hold: str  # how long it must be true
    severity: str  # page: wake somebody; ticket: within days; info: look when you pass
    summary: str
    runbook: str  # page, without .md
    why: str = ""


def recordings(inputs: RuleInputs) -> Iterator[Recording]:
    """The series that alerts and dashboards share."""
    for name, metric, bound in (
        ("ttft", "inferoptim_time_to_first_token_seconds", inputs.ttft_s),
        ("e2e", "inferoptim_e2e_request_latency_seconds", inputs.e2e_s),
    ):
        for window in WINDOWS:
            yield Recording(
                f"inferoptim:{name}_slow:ratio_rate{window}",
                f'1 - sum by (job) (rate({metric}_bucket{{le="{bound}"}}[{window}]))'
                f" / sum by (job) (rate({metric}_count[{window}]))",
            )
    api = 'inferoptim_http_responses_total{route=~"/v1/.*"'
    yield Recording(
        "inferoptim:errors:ratio_rate5m",
        f'(sum by (job) (rate({api},status=~"5.."}}[5m])) or 0 * sum by (job) (rate({api}}}[5m])))'
        f" / sum by (job) (rate({api}}}[5m]))",
    )
    yield Recording(
        "inferoptim:refused:ratio_rate5m",
        f'(sum by (job) (rate({api},status="429"}}[5m])) or 0 * sum by (job) (rate({api}}}[5m])))'
        f" / sum by (job) (rate({api}}}[5m]))",
    )
    yield Recording(
        "inferoptim:generation_tokens:rate5m", "sum by (job) (rate(inferoptim_generation_tokens_total[5m]))"
    )
    yield Recording(
        "inferoptim:cost_per_million_output_tokens:usd_rate1h",
        "1e6 * sum by (job) (rate(inferoptim_wall_cost_usd_total[1h]))"
        " / sum by (job) (rate(inferoptim_generation_tokens_total[1h]))",
    )
    yield Recording(
        "inferoptim:idle:ratio_rate1h",
        "sum by (job) (rate(inferoptim_idle_cost_usd_total[1h])) / sum by (job) (rate(inferoptim_wall_cost_usd_total[1h]))",
    )


def objective_alerts(inputs: RuleInputs) -> Iterator[Alert]:
    """Burn rates of the latency objectives."""
    budget = 1 - inputs.objective
    for label, name, metric, bound in (
        ("TTFT", "ttft", "inferoptim_time_to_first_token_seconds", inputs.ttft_s),
        ("E2E", "e2e", "inferoptim_e2e_request_latency_seconds", inputs.e2e_s),
    ):
        for speed, factor, long, short, hold, severity in (
            ("Fast", FAST, "1h", "5m", "2m", "page"),
            ("Slow", SLOW, "6h", "30m", "15m", "ticket"),
        ):
            limit = f"{factor * budget:.6g}"
            yield Alert(
                f"Inferoptim{label}BudgetBurn{speed}",
                f"inferoptim:{name}_slow:ratio_rate{long} > {limit}\n"
                f"and inferoptim:{name}_slow:ratio_rate{short} > {limit}\n"
                f"and on (job) sum by (job) (increase({metric}_count[{long}])) >= {MIN_REQUESTS}",
                hold,
                severity,
                f"{{{{ $value | humanizePercentage }}}} of requests exceed {label} {bound:g} s: the {budget:.3g} error "
                f"budget burns {factor:g} times too fast",
                f"{name}-budget-burn",
            )


def service_alerts(inputs: RuleInputs) -> Iterator[Alert]:
    """Is it up, does it move, does it refuse."""
    job = inputs.job
    yield Alert(
        "InferoptimTargetDown",
        f'up{{job="{job}"}} == 0 or absent(up{{job="{job}"}})',
        "2m",
        "page",
        "Prometheus cannot scrape the server {{ $labels.instance }}",
        "target-down",
    )
    yield Alert(
        "InferoptimEngineDown",
        "inferoptim_engine_up == 0",
        "3m",
        "page",
        "No engine with a loaded model behind {{ $labels.instance }}",
        "engine-down",
        "3 minutes: a restart that loads the model is not an incident yet",
    )
    yield Alert(
        "InferoptimEngineRestarts",
        "increase(inferoptim_engine_deaths_total[30m]) > 1",
        "1m",
        "ticket",
        "The engine of {{ $labels.instance }} died {{ $value | humanize }} times in 30 minutes",
        "engine-down",
    )
    yield Alert(
        "InferoptimQueueStuck",
        "min_over_time(inferoptim_requests_waiting[5m]) > 0\n"
        "and deriv(inferoptim_requests_waiting[5m]) >= 0\n"
        "and rate(inferoptim_generation_tokens_total[5m]) == 0",
        "2m",
        "page",
        "{{ $value | humanize }} requests wait on {{ $labels.instance }} and no token comes out",
        "queue-stuck",
        "a long queue alone is load; a queue that does not fall while nothing is produced is a hang",
    )
    yield Alert(
        "InferoptimQueueGrowing",
        "min_over_time(inferoptim_requests_waiting[15m]) > 0\nand deriv(inferoptim_requests_waiting[15m]) > 0.01",
        "10m",
        "ticket",
        "The queue of {{ $labels.instance }} has grown for 15 minutes: more arrives than is served",
        "queue-growing",
    )
    yield Alert(
        "InferoptimErrorRatio",
        f"inferoptim:errors:ratio_rate5m > {inputs.error_ratio:g}\n"
        'and on (job) sum by (job) (increase(inferoptim_http_responses_total{route=~"/v1/.*",status=~"5.."}[5m])) >= 5',
        "5m",
        "page",
        "{{ $value | humanizePercentage }} of API answers are 5xx",
        "error-ratio",
    )
    yield Alert(
        "InferoptimRefusing",
        "inferoptim:refused:ratio_rate5m > 0.05",
        "10m",
        "ticket",
        "{{ $value | humanizePercentage }} of requests get 429: the queue is full",
        "refusing",
    )
    yield Alert(
        "InferoptimKVCachePressure",
        "avg_over_time(inferoptim_kv_cache_usage_ratio[10m]) > 0.9\nand rate(inferoptim_preemptions_total[10m]) > 0",
        "10m",
        "ticket",
        "The KV-cache of {{ $labels.instance }} is {{ $value | humanizePercentage }} full and sequences are preempted",
        "kv-cache-pressure",
        "guide 7.3 GPUMemoryHigh (used / total > 0.9) corrected: an engine takes its KV memory at start, so GPU memory is "
        "always above 90 %; what hurts is a full cache that preempts",
    )
    yield Alert(
        "InferoptimHighLatency",
        "histogram_quantile(0.95, sum by (job, le) (rate(inferoptim_time_to_first_token_seconds_bucket[10m]))) "
        f"> {inputs.ttft_s:g}\n"
        f"and on (job) sum by (job) (increase(inferoptim_time_to_first_token_seconds_count[10m])) >= {MIN_REQUESTS}",
        "10m",
        "ticket",
        "P95 of the time to first token is {{ $value | humanizeDuration }}",
        "high-latency",
        'guide 7.3 HighLatency ({quantile="0.95"} > 2) corrected: quantiles of replicas cannot be aggregated and the Python '
        "client exports none; buckets can; and the whole answer's time depends on its length, so TTFT is judged",
    )
    yield Alert(
        "InferoptimLowThroughput",
        "inferoptim:generation_tokens:rate5m\n"
        "  < 0.5 * quantile_over_time(0.95, inferoptim:generation_tokens:rate5m[1d])\n"
        "and on (job) min by (job) (min_over_time(inferoptim_requests_waiting[10m])) > 0",
        "10m",
        "ticket",
        "{{ $value | humanize }} tokens/s while requests wait: under half of this service's own busy rate",
        "low-throughput",
        "guide 7.3 LowThroughput (rate < 1000) corrected: a fixed floor fires every night when nobody asks; it means "
        "something only while requests wait, and against this service's own busy hours",
    )


def money_alerts(inputs: RuleInputs) -> Iterator[Alert]:
    """Needs a price: `inferoptim serve --usd-per-hour`."""
    budget = inputs.usd_per_million_output_tokens
    yield Alert(
        "InferoptimCostAboveBudget",
        f"inferoptim:cost_per_million_output_tokens:usd_rate1h > {budget:g}\n"
        "and on (job) sum by (job) (increase(inferoptim_generation_tokens_total[1h])) > 0",
        "30m",
        "ticket",
        f"A million output tokens cost {{{{ $value | humanize }}}} USD, idle time included (budget {budget:g})",
        "cost-above-budget",
    )
    yield Alert(
        "InferoptimMostlyIdle",
        "avg_over_time(inferoptim:idle:ratio_rate1h[6h]) > 0.8",
        "1h",
        "info",
        "{{ $value | humanizePercentage }} of the machine's cost is idle time",
        "mostly-idle",
    )


def gpu_alerts(inputs: RuleInputs) -> Iterator[Alert]:
    """Needs dcgm-exporter among the scrape targets; silent without it."""
    yield Alert(
        "InferoptimGpuXid",
        "(changes(DCGM_FI_DEV_XID_ERRORS[10m]) > 0 and DCGM_FI_DEV_XID_ERRORS > 0)\nor DCGM_EXP_XID_ERRORS_COUNT > 0",
        "1m",
        "page",
        "GPU {{ $labels.gpu }} of {{ $labels.Hostname }} reports an Xid error",
        "gpu-xid",
        "DCGM_FI_DEV_XID_ERRORS keeps the last code for ever, so its change is what counts",
    )


def alerts(inputs: RuleInputs) -> list[Alert]:
    """All of them."""
    return [*objective_alerts(inputs), *service_alerts(inputs), *money_alerts(inputs), *gpu_alerts(inputs)]


def rules_yaml(inputs: RuleInputs) -> str:
    """The rule file, with the reasons as comments."""
    head = (
        "# Generated by `inferoptim deploy` (src/inferoptim/deploy/rules.py): change the code or the options, not this file.\n"
        f"# Objectives: TTFT <= {inputs.ttft_s:g} s and E2E <= {inputs.e2e_s:g} s for {inputs.objective:.4g} of requests.\n"
        "groups:\n"
    )
    groups: tuple[list[Recording] | list[Alert], ...] = (
        list(recordings(inputs)),
        list(objective_alerts(inputs)),
        list(service_alerts(inputs)),
        list(money_alerts(inputs)),
        list(gpu_alerts(inputs)),
    )
    out = [head]
    for name, rules in zip(GROUPS, groups, strict=True):
        out.append(f"  - name: {name}\n    interval: 30s\n    rules:\n")
        for rule in rules:
            why = rule.why if isinstance(rule, Alert) else ""
            if why:
                out.append(f"      # {why}\n")
            body = yaml.dump(
                [_plain(rule, inputs)], Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True
            )
            out.append("".join(f"      {line}\n" for line in body.splitlines()))
    return "".join(out)


def _plain(rule: Recording | Alert, inputs: RuleInputs) -> dict[str, object]:
    if isinstance(rule, Recording):
        return {"record": rule.record, "expr": rule.expr}
    return {
        "alert": rule.name,
        "expr": rule.expr,
        "for": rule.hold,
        "labels": {"severity": rule.severity, "service": "inferoptim"},
        "annotations": {
            "summary": rule.summary,
            "runbook_url": f"{inputs.runbooks.rstrip('/')}/{rule.runbook}.md",
        },
    }


class _Dumper(yaml.SafeDumper):
    """Long expressions as literal blocks."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value + ("\n" if style else ""), style=style)


_Dumper.add_representer(str, _text)


def prometheus_yaml(job: str = "inferoptim", target: str = "inferoptim:8000") -> str:
    """The scrape configuration that goes with the rules."""
    return (
        "# Generated by `inferoptim deploy`.\n"
        "global:\n  scrape_interval: 15s\n  evaluation_interval: 30s\n"
        "rule_files:\n  - rules.yml\n"
        "scrape_configs:\n"
        f"  - job_name: {job}\n    static_configs:\n      - targets: ['{target}']\n"
        "  # GPUs, where NVIDIA's dcgm-exporter runs: write its targets into dcgm-targets.json\n"
        '  #   [{"targets": ["dcgm-exporter:9400"]}]\n'
        "  - job_name: dcgm\n    file_sd_configs:\n      - files: ['dcgm-targets*.json']\n"
    )
