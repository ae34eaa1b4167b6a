"""What an audit leaves behind: one record, which the console, the JSON output and the HTML page all show.

None means "not measured": the trace does not hold what the figure needs. Times in seconds, lengths in tokens.
No text of the trace is in it, unless the audit was told to keep excerpts (`--no-redact`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from inferoptim.records.schema import Interval, Record

FORMAT = "inferoptim-audit"
VERSION = 1

Verdict = Literal["can_pay", "unlikely", "unknown"]


class Bin(Record):
    """Rows with low ≤ length < high."""

    low: float
    high: float
    count: int


class Distribution(Record):
    """A length distribution; percentiles are exact, their intervals distribution-free."""

    n: int
    mean: Interval
    p50: Interval
    p90: Interval
    p99: Interval
    minimum: int
    maximum: int
    zeros: int
    bins: tuple[Bin, ...] = ()


class UnreadableRow(Record):
    """One row that could not be read."""

    file: str
    line: int
    reason: str


class Note(Record):
    """Something a reader must know; `key` names its sentence in the report's catalogues."""

    key: str
    values: dict[str, str | int | float] = Field(default_factory=dict)


class TraceRecord(Record):
    """What was read, and how."""

    files: tuple[str, ...]
    format: str
    sha256: str = Field(description="Of the bytes as read (compressed, if they were).")
    size_bytes: int
    columns: dict[str, str] = Field(default_factory=dict, description="Meaning → column of the trace.")
    requests: int
    unreadable: int = 0
    unreadable_reasons: dict[str, int] = Field(default_factory=dict)
    unreadable_examples: tuple[UnreadableRow, ...] = ()
    redacted: bool = True
    partial: str | None = Field(None, description="Why the trace was not read to its end.")


class LengthsRecord(Record):
    """Prompt and output lengths."""

    prompt: Distribution | None = None
    output: Distribution | None = None
    total: Distribution | None = Field(None, description="Prompt and output of one request together.")
    prompt_per_output: Interval | None = Field(None, description="Input tokens for one output token.")
    correlation: Interval | None = Field(None, description="Pearson, of prompt and output lengths.")
    longest_of_8: float | None = Field(
        None,
        description="Mean of the longest of 8 outputs drawn at random: what a static batch of 8 waits for.",
    )


class Series(Record):
    """A quantity over time, averaged over equal steps."""

    start_s: float
    step_s: float
    values: tuple[float, ...]


class ArrivalsRecord(Record):
    """When requests came."""

    span_s: float
    first_s: float
    calendar: bool = Field(description="True: Unix time; False: seconds from the trace's own zero.")
    rate_per_s: Interval | None = None
    gap_cv: Interval | None = Field(None, description="Coefficient of variation of gaps; Poisson has 1.")
    dispersion_1s: Interval | None = Field(None, description="Variance over mean of counts; Poisson has 1.")
    dispersion_60s: Interval | None = None
    peak_minute_per_mean: float | None = None
    repeated: int = Field(0, description="Requests with the same time as the one before.")
    out_of_order: int = Field(0, description="Requests earlier than the one before in the file.")
    late: int = Field(0, description="Of those, too late to be put in order; left out of the gaps.")
    rate_series: Series | None = Field(None, description="Requests per second.")
    diurnal_per_s: tuple[float, ...] | None = Field(None, description="Mean rate by hour of day, 24 values.")
    timezone: str = "UTC"


class ConcurrencyRecord(Record):
    """Requests in flight, at the end of each step of `step_s`."""

    basis: Literal["durations", "stated"]
    stated: dict[str, float] = Field(default_factory=dict)
    requests: int = Field(description="Requests whose duration is known.")
    mean_duration_s: float
    little: Interval = Field(description="Arrival rate × mean duration.")
    observed_mean: float
    observed_p50: float
    observed_p99: float
    observed_peak: float
    step_s: float
    series: Series
    kv_tokens_mean: float | None = Field(None, description="Prompt and output tokens of what is in flight.")
    kv_tokens_p99: float | None = None
    kv_tokens_peak: float | None = None
    kv_series: Series | None = None


class TurnsRecord(Record):
    """Conversations."""

    basis: Literal["messages", "sessions"]
    sessions: int | None = None
    mean: Interval
    p50: float
    p90: float
    maximum: int
    sampled_share: float = 1.0


class OutcomesRecord(Record):
    """How requests ended."""

    failed: Interval | None = None
    truncated: Interval | None = None
    zero_output: int = 0


class LanguageShare(Record):
    """One language of the prompts; 'other' where the detector does not know."""

    code: str
    requests: int
    share: Interval


class CachePoint(Record):
    """What an LRU prefix cache of this size would have hit."""

    blocks: int
    tokens: int
    hit_rate: float = Field(description="Prompt tokens found in the cache over all prompt tokens.")


class PrefixRecord(Record):
    """How much of the prompts had been seen before, block by block."""

    basis: Literal["block_ids", "tokens", "characters"]
    block_tokens: int = Field(description="Tokens (or characters, by `basis`) of one block.")
    requests: int
    accesses: int
    distinct_blocks: int
    reusable: Interval = Field(description="Share of prompt tokens that an unbounded cache would have held.")
    requests_with_hit: float
    curve: tuple[CachePoint, ...]
    sampled_share: float = Field(1.0, description="Share of blocks kept; 1 = exact.")


class PhasePoint(Record):
    """Floors of prefill and decode at one batch size."""

    batch: float
    prefill_s: float = Field(description="Per request, mean.")
    decode_s: float
    decode_share: float
    weights_share: float = Field(
        description="Of the bytes that decoding reads: weights; the rest is KV-cache."
    )
    step_s: float = Field(description="One decode step of that batch.")


class RooflineRecord(Record):
    """Where the time would go at the physical floor of a stated model on a stated GPU. A floor, not a forecast."""

    model: str
    gpu: str
    source: str
    weight_bytes: float
    element_bytes: float
    kv_bytes_per_token: float
    memory_bytes: float
    flops_per_s: float
    bytes_per_s: float
    points: tuple[PhasePoint, ...]
    chosen_batch: float
    chosen_basis: Literal["observed", "stated"]
    p99_prefill_s: float
    kv_room_tokens: float = Field(
        description="Tokens of KV-cache that 90 % of the memory holds beside the weights."
    )


class LeverRecord(Record):
    """Whether one lever can pay on this traffic: a stated rule and the numbers it was applied to."""

    lever: str
    verdict: Verdict
    figures: dict[str, float] = Field(default_factory=dict)
    missing: tuple[str, ...] = Field((), description="What the rule needs and the trace does not tell.")


class LatencyPoint(Record):
    """Time to encode and decode texts of one length; seconds."""

    tokens: int
    repeats: int
    encode_p50_s: float
    encode_p95_s: float
    decode_p50_s: float
    decode_p95_s: float
    ttft_share: float | None = None


class LanguageCost(Record):
    """Tokens of one language's text."""

    code: str
    texts: int
    characters: int
    tokens_per_character: Interval


class TokenizerRecord(Record):
    """What one tokenizer makes of text."""

    name: str
    kind: str
    vocabulary: int
    parallel: tuple[LanguageCost, ...] = Field((), description="On the same text in several languages.")
    extra_over_english: dict[str, Interval] = Field(
        default_factory=dict, description="Tokens over those of the English text, minus 1."
    )
    own: tuple[LanguageCost, ...] = Field((), description="On the prompts of the trace.")
    latency: tuple[LatencyPoint, ...] = ()


class DietFinding(Record):
    """Tokens that the prompts could do without."""

    kind: Literal["whitespace", "shared_prefix", "varying_prefix", "few_shot"]
    requests: int
    tokens: float = Field(description="Over the whole trace; scaled up where only a sample was encoded.")
    share: float = Field(description="Of all prompt tokens.")
    saved: float | None = Field(None, description="Money over the trace; None without a stated price.")
    detail: dict[str, float | int | str] = Field(default_factory=dict)


class TextRecord(Record):
    """Tokenisation cost and prompt diet; only of traces that hold text, or of the parallel text alone."""

    tokenizers: tuple[TokenizerRecord, ...] = ()
    parallel_source: str = ""
    ttft_s: float | None = None
    ttft_basis: Literal["measured", "floor"] | None = None
    diet: tuple[DietFinding, ...] = ()
    diet_sampled: int = Field(0, description="Prompts that were encoded to find them.")
    price_per_million: float | None = None
    currency: str = "EUR"


class AuditRecord(Record):
    """Everything an audit found."""

    format: Literal["inferoptim-audit"] = "inferoptim-audit"
    version: Literal[1] = 1
    trace: TraceRecord
    lengths: LengthsRecord
    arrivals: ArrivalsRecord | None = None
    concurrency: ConcurrencyRecord | None = None
    turns: TurnsRecord | None = None
    outcomes: OutcomesRecord = OutcomesRecord()
    languages: tuple[LanguageShare, ...] = ()
    prefix: PrefixRecord | None = None
    roofline: RooflineRecord | None = None
    levers: tuple[LeverRecord, ...] = ()
    text: TextRecord | None = None
    notes: tuple[Note, ...] = ()
    elapsed_s: float = 0.0
