"""What a bench run leaves behind. Versioned, typed, no torch: the report is a pure function of these.

Folder ``results/<run>/``:
  plan.json            BenchPlan as resolved (every default written out)
  environment.json     Environment
  configurations.jsonl ConfigurationRecord, one a configuration, as each ends (the last line of an id wins)
  runs.jsonl           RunRecord, one a measured or warm-up run, as it ends
  requests.jsonl       RequestRecord, one a request of every measured run
  telemetry.jsonl      TelemetrySample, as sampled
  quality.jsonl        QualityRecord
  summary.json, report.html, report.md   derived from the above, rewritten at will

Everything measured may be None, printed as "not measured"; 0 means a measured zero.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1


class Record(BaseModel):
    """Base of all records: frozen; unknown fields refused so that a typo never becomes silence."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Ceilings(Record):
    """What this machine can do at most, measured by us; method in hardware.py."""

    memory_read_bytes_per_s: float | None = None
    gemm_flops_per_s: dict[str, float] = Field(
        default_factory=dict, description="By dtype: float32, bfloat16, int8, fp8."
    )
    cached_read_bytes_per_s: float | None = Field(
        None, description="From the last-level cache: what binds a model that fits in it."
    )
    llc_bytes: int | None = None
    num_threads: int | None = None
    measured_at: str | None = None

    def read_ceiling(self, weight_bytes: float) -> float | None:
        """The read rate that cannot be beaten when `weight_bytes` are read over and over, bytes/s."""
        rates = [self.memory_read_bytes_per_s]
        if self.llc_bytes is not None and weight_bytes <= self.llc_bytes:
            rates.append(self.cached_read_bytes_per_s)
        return max((rate for rate in rates if rate is not None), default=None)


class Environment(Record):
    """Where the run took place."""

    hostname_hash: str
    os: str
    cpu: str
    cores: int
    memory_bytes: int
    gpus: tuple[dict[str, Any], ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    kernels: dict[str, str] = Field(
        default_factory=dict, description="Kernel set chosen, e.g. cpu=native-avx512vnni."
    )
    git_commit: str | None = None
    git_dirty: bool | None = None
    model: str
    model_revision: str | None = None
    model_fingerprint: str | None = None
    model_shape: dict[str, Any] = Field(
        default_factory=dict,
        description="The ModelSpec's fields: what floors are computed from; {} where it is unknown.",
    )
    ceilings: Ceilings = Ceilings()
    command: str = ""
    started_at: str = ""


class ConfigurationRecord(Record):
    """One rung: a target with a set of levers, and how it fared."""

    config_id: str  # stable slug: 'transformers-static', 'engine-off', '+paged_kv'
    label: str
    target: str  # transformers | engine | vllm | trtllm | openai_http
    settings: dict[str, Any]
    levers: tuple[str, ...] = ()  # levers on
    added_lever: str | None = None  # what this rung adds to `previous`
    previous: str | None = None  # config_id of the rung below, on a ladder
    is_baseline: bool = False
    status: Literal["ok", "failed", "failed_quality", "not_supported", "not_run"] = "not_run"
    error: str | None = None  # one line, for every status but ok
    load_s: float | None = None
    weight_bytes: int | None = None
    kv_capacity_bytes: int | None = None
    kv_capacity_tokens: int | None = None
    decode_floor_s: dict[str, float] = Field(
        default_factory=dict,
        description="Physical floor of one decode step by batch size, from bytes and measured ceilings.",
    )


class RunRecord(Record):
    """One pass over the workload by one configuration."""

    config_id: str
    workload: str  # name of the workload case, e.g. 'guide@1', 'guide@32'
    run_index: int  # 0.. within (config, workload); warm-ups count apart
    warmup: bool
    order_index: int  # place in the randomised interleaved order of the whole bench
    started_at_s: float  # seconds since the bench began
    wall_s: float  # first send → last token
    num_requests: int
    num_failed: int
    prompt_tokens: int
    output_tokens: int
    peak_rss_bytes: int | None = None
    cpu_s: float | None = None
    energy_j: float | None = None
    counters: dict[str, float] = Field(default_factory=dict, description="Counter increments during the run.")


class RequestRecord(Record):
    """One request of one measured run. Times are seconds since the run's start; see DESIGN §2 for the definitions."""

    config_id: str
    workload: str
    run_index: int
    request_id: str
    arrival_s: float
    sent_s: float
    first_token_s: float | None  # None where the target does not stream: then TTFT and TPOT are not measured
    finished_s: float
    token_times_s: tuple[float, ...] | None = None
    prompt_tokens: int
    cached_prompt_tokens: int = 0
    output_tokens: int
    output_sha256: str | None = None  # of the token ids, to compare configurations
    error: str | None = None


class TelemetrySample(Record):
    """One background sample. None = no meter."""

    config_id: str
    workload: str
    run_index: int
    time_s: float  # since the run's start
    rss_bytes: int | None = None
    cpu_percent: float | None = None
    gpu_memory_bytes: int | None = None
    gpu_power_w: float | None = None
    gpu_sm_clock_mhz: float | None = None
    gpu_throttle_reasons: int | None = None
    kv_used_tokens: int | None = None  # tokens whose KV is live
    kv_reserved_tokens: int | None = None  # tokens' worth of blocks or slots held by sequences
    running: int | None = None
    waiting: int | None = None


class Interval(Record):
    """An estimate with its bootstrap interval (resampled by run)."""

    value: float
    low: float
    high: float
    confidence: float = 0.95
    n: int = 0  # runs (or texts) that it rests on


class QualityRecord(Record):
    """The gate's verdict on one configuration."""

    config_id: str
    kind: Literal["token_identity", "logits_vs_transformers", "distribution"]
    passed: bool
    threshold: dict[str, float] = Field(default_factory=dict)
    values: dict[str, Interval] = Field(
        default_factory=dict,
        description="perplexity_ratio, kl_nats, top1_agreement, max_abs_logit_error, identical_tokens, …",
    )
    by_language: dict[str, dict[str, Interval]] = Field(default_factory=dict)
    detail: str = ""


class MetricSummary(Record):
    """Statistics of one configuration on one workload; all None when it failed its gate."""

    config_id: str
    workload: str
    concurrency: int | None
    runs: int
    output_tokens_per_s: Interval | None = None
    requests_per_s: Interval | None = None
    ttft_s: dict[str, Interval] = Field(
        default_factory=dict, description="By percentile: p50, p95, p99 (only where n allows)."
    )
    tpot_s: dict[str, Interval] = Field(default_factory=dict)
    itl_s: dict[str, Interval] = Field(default_factory=dict)
    e2e_s: dict[str, Interval] = Field(default_factory=dict)
    peak_rss_bytes: int | None = None
    energy_j_per_token: Interval | None = None
    mbu: float | None = None
    mfu: float | None = None
    share_of_possible: float | None = None  # physical floor of the whole work / measured time
    floor_s: float | None = None
    cost_per_million_output_tokens: Interval | None = None
    cost_index: Interval | None = None  # baseline = 100
    speedup_vs_baseline: Interval | None = None
    speedup_vs_previous: Interval | None = None
    separated_from_previous: bool | None = None  # False: the interval is too wide to rank the two


class Summary(Record):
    """summary.json: what report and economics read."""

    schema_version: int = SCHEMA_VERSION
    name: str
    baseline: str
    price_per_hour: float | None = None
    currency: str = "EUR"
    price_source: str = ""
    protocol: dict[str, Any] = Field(
        default_factory=dict,
        description="How it was measured: runs, warmups, schedule (interleaved | blocks), seed, workloads, interrupted.",
    )
    configurations: tuple[ConfigurationRecord, ...] = ()
    metrics: tuple[MetricSummary, ...] = ()
    quality: tuple[QualityRecord, ...] = ()
    warnings: tuple[str, ...] = ()
