"""What `inferoptim load` leaves behind. Versioned, typed, no torch: its page is a pure function of these.

Folder ``results/load-<time>/``:
  load.json       LoadSummary
  requests.jsonl  LoadRequestRecord, one a request, as it ended; requests.partial.jsonl until the run is over
  load.html       derived from the above

Everything measured may be None, printed as "not measured"; 0 means a measured zero.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from inferoptim.records.schema import Record

LOAD_SCHEMA_VERSION = 1


class LoadRequestRecord(Record):
    """One request. Times are seconds since its stage began; TTFT and E2E count from `arrival_s`."""

    stage: str
    request_id: str
    arrival_s: float  # when it should be sent; in a closed loop, when the client took it up
    started_s: float  # when the client took it up: started - arrival is the client's own lag
    sent_s: float  # when its bytes were handed to the socket
    first_token_s: float | None
    finished_s: float
    token_times_s: tuple[float, ...] | None = None  # None where chunks cannot be mapped to tokens
    prompt_tokens: int | None = None  # as the server counted them
    cached_prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    status: int | None = None  # HTTP
    error: str | None = None  # name in the error taxonomy
    error_detail: str = ""
    met_slo: bool | None = None  # None where no objective was stated


class Objectives(Record):
    """Bounds that a request must meet to count in the goodput, and the share of requests that must."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = Field(None, description="Largest gap between two tokens of the request.")
    e2e_s: float | None = None
    attainment: float = 0.95

    @property
    def stated(self) -> bool:
        """True when any bound was set."""
        return any(b is not None for b in (self.ttft_s, self.tpot_s, self.itl_s, self.e2e_s))


class ClientHealth(Record):
    """Was the client the bottleneck? Measured while the load ran."""

    send_lag_s: dict[str, float] = Field(
        default_factory=dict,
        description="p50, p95, p99 where n allows, and max of started - arrival; {} in a closed loop.",
    )
    loop_lag_s: dict[str, float] = Field(
        default_factory=dict,
        description="Lateness of a 10 ms timer in the client's event loop: p50, p95, p99, max.",
    )
    cpu_share: float  # of one core
    allowed_lag_s: float
    ceiling_share: float | None = None  # of what the self-test reached, the larger of requests/s and tokens/s
    valid: bool
    reasons: tuple[str, ...] = ()  # why it is not


class SelfTest(Record):
    """What this client reached on this machine against a server that answers at once."""

    requests_per_s: float
    output_tokens_per_s: float
    tokens_per_request: int
    concurrency: int
    duration_s: float


class LoadStage(Record):
    """One level of load."""

    name: str
    shape: str  # 'open, Poisson, 4 requests/s', in words
    loop: Literal["open", "closed"]
    offered_per_s: float | None = None  # mean rate asked for; None in a closed loop
    concurrency: int | None = None
    requests: int
    succeeded: int
    errors: dict[str, int] = Field(default_factory=dict, description="By taxonomy name.")
    error_examples: dict[str, str] = Field(default_factory=dict)
    stopped_early: bool = False
    wall_s: float  # first arrival → last answer
    requests_per_s: float | None = None  # succeeded / wall
    output_tokens_per_s: float | None = None
    prompt_tokens_per_s: float | None = None
    goodput_per_s: float | None = None  # requests that met every objective / wall
    attainment: float | None = None  # share of all requests (failed ones included) that did
    attainment_late: float | None = None  # of those that arrived in the second half
    ttft_s: dict[str, float] = Field(default_factory=dict)
    tpot_s: dict[str, float] = Field(default_factory=dict)
    itl_s: dict[str, float] = Field(default_factory=dict)
    e2e_s: dict[str, float] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict, description="Observations behind each metric.")
    prompt_tokens_p50: float | None = None
    output_tokens_p50: float | None = None
    cached_prompt_share: float | None = None
    client: ClientHealth


class MaxRate(Record):
    """Result of --find-max-rate."""

    highest_passed_per_s: float | None
    lowest_failed_per_s: float | None
    goodput_per_s: float | None  # at the highest rate that passed
    tolerance: float
    probes: tuple[str, ...]  # stage names, in order
    note: str = ""


class LoadSummary(Record):
    """load.json."""

    schema_version: int = LOAD_SCHEMA_VERSION
    url: str
    model: str
    server_version: str | None = None
    client_version: str
    machine: dict[str, Any] = Field(default_factory=dict)
    command: str = ""
    started_at: str = ""
    features: dict[str, Any] = Field(
        default_factory=dict, description="Optional fields that the server accepted."
    )
    workload: dict[str, Any] = Field(default_factory=dict)
    objectives: Objectives = Objectives()
    seed: int = 0
    warmup_requests: int = 0
    self_test: SelfTest | None = None
    stages: tuple[LoadStage, ...] = ()
    max_rate: MaxRate | None = None
    interrupted: bool = False
    notes: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        """False when the client was the bottleneck of any stage."""
        return all(stage.client.valid for stage in self.stages)
