"""Workload files: a small replayable traffic. Written by `audit`, read by `bench --workload` and `load --replay`.

JSON lines. Line 1 is the header (`WorkloadHeader`); each further line is one request:

    {"arrival_s": 0.52, "prompt_tokens": 812, "output_tokens": 64, "segments": [0, 3]}

`segments` names the leading parts of the prompt that other requests of the file share; their lengths stand in the
header. Two prompts that begin with the same segment ids begin with the same tokens; what follows belongs to one
request alone. No file holds text: `synthetic_text.py` makes prompts of exactly these lengths, the same for one seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inferoptim.errors import ConfigError, DataError
from inferoptim.records.writer import write_atomic

FORMAT = "inferoptim-workload"
VERSION = 1
REFERENCE_POINTS = (
    400  # quantiles kept of each distribution of the trace; the KS distance is exact to 1 / this
)
MAX_TOKENS = 1 << 24  # a length above this is a broken file


class WorkloadSource(BaseModel):
    """Where the lengths and arrivals come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["trace", "stated"]
    description: str = ""
    format: str | None = Field(None, description="Reader that read the trace.")
    sha256: str | None = Field(None, description="Of the trace's bytes as read.")
    rows: int | None = Field(None, description="Rows of the trace that could be read.")
    method: Literal["rows", "window"] | None = Field(
        None,
        description="rows: lengths and gaps drawn independently; window: consecutive rows, as they came.",
    )
    licence: str | None = None


class WorkloadHeader(BaseModel):
    """The first line of a workload file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["inferoptim-workload"] = "inferoptim-workload"
    version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    seed: int = Field(0, ge=0, description="Seed of the sample and of the synthetic text.")
    arrivals: Literal["open", "closed"] = Field(
        description="open: send each request at its arrival_s; closed: send the next when one ends."
    )
    segment_tokens: tuple[int, ...] = Field((), description="Tokens of shared segment 0, 1, 2, …")
    source: WorkloadSource
    reference: dict[str, tuple[float, ...]] = Field(
        default_factory=dict,
        description="Quantiles of the trace by name: prompt_tokens, output_tokens, gap_s.",
    )
    ks: dict[str, float] = Field(
        default_factory=dict, description="KS distance of this file from its trace, by the same names."
    )
    num_requests: int = Field(ge=1)


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """One request to replay."""

    prompt_tokens: int
    output_tokens: int
    arrival_s: float = 0.0  # since the first request
    segments: tuple[int, ...] = ()  # leading shared segments, in order


@dataclass(frozen=True, slots=True)
class Workload:
    """A header and its requests, in order of arrival."""

    header: WorkloadHeader
    requests: tuple[WorkloadRequest, ...]

    @property
    def fingerprint(self) -> str:
        """Identity of what is replayed: the requests, the segments and the seed, not the name or the description."""
        digest = hashlib.sha256(
            f"{VERSION} {self.header.seed} {self.header.arrivals} {self.header.segment_tokens}\n".encode()
        )
        for request in self.requests:
            digest.update(_line(request, self.header.arrivals).encode())
        return digest.hexdigest()[:16]

    @property
    def rate_per_s(self) -> float | None:
        """Mean arrival rate; None for a closed workload or a single instant."""
        span = self.requests[-1].arrival_s
        return (len(self.requests) - 1) / span if self.header.arrivals == "open" and span > 0 else None

    def at_rate(self, requests_per_s: float) -> Workload:
        """The same requests in the same order and burstiness, at another mean rate.

        Raises:
            ConfigError: the workload is closed, or the rate is not positive.
        """
        current = self.rate_per_s
        if current is None or not requests_per_s > 0:
            raise ConfigError(
                f"workload {self.header.name}: cannot set {requests_per_s} requests/s; "
                "only an open workload with a positive rate can be rescaled"
            )
        factor = current / requests_per_s
        return replace(
            self, requests=tuple(replace(r, arrival_s=r.arrival_s * factor) for r in self.requests)
        )

    def shared_tokens(self, request: WorkloadRequest) -> int:
        """Leading prompt tokens of `request` that lie in shared segments."""
        return sum(self.header.segment_tokens[segment] for segment in request.segments)

    def distance(self, replayed: Sequence[WorkloadRequest] | None = None) -> dict[str, float]:
        """KS distance of what is replayed (default: the whole file) from the trace that the file was made of.

        Gaps are compared after scaling both to mean 1, so that replay at another rate is not a difference.

        Returns:
            By name; empty where the file keeps no reference (a stated workload).
        """
        chosen = self.requests if replayed is None else replayed
        measured = distributions(chosen, gaps=self.header.arrivals == "open")
        out = {}
        for name, quantiles in self.header.reference.items():
            values = measured.get(name)
            if values is not None and len(values):
                reference = np.asarray(quantiles)
                if name == "gap_s":
                    values, reference = _unit_mean(values), _unit_mean(reference)
                out[name] = ks_distance(values, reference)
        return out


def distributions(requests: Sequence[WorkloadRequest], *, gaps: bool) -> dict[str, NDArray[np.float64]]:
    """The samples that a distance compares: prompt_tokens, output_tokens and, where arrivals are kept, gap_s."""
    out = {
        "prompt_tokens": np.array([r.prompt_tokens for r in requests], dtype=np.float64),
        "output_tokens": np.array([r.output_tokens for r in requests], dtype=np.float64),
    }
    if gaps and len(requests) > 1:
        out["gap_s"] = np.diff(np.array([r.arrival_s for r in requests], dtype=np.float64))
    return out


def ks_distance(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Largest gap between two empirical distribution functions, ties included.

    Source: two-sample Kolmogorov-Smirnov statistic, Smirnov 1939.
    """
    points = np.unique(np.concatenate([first, second]))
    cdf_first = np.searchsorted(np.sort(first), points, side="right") / len(first)
    cdf_second = np.searchsorted(np.sort(second), points, side="right") / len(second)
    return float(np.abs(cdf_first - cdf_second).max())


def _unit_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    mean = float(values.mean())
    # 9 digits: scaling must not split values that were equal
    return np.round(values / mean, 9) if mean > 0 else values


def shipped_workloads() -> tuple[str, ...]:
    """Names of the ready workloads, which stand in `config/workloads/`."""
    folder = files("inferoptim.records") / "workloads"
    return tuple(
        sorted(
            entry.name.removesuffix(".jsonl") for entry in folder.iterdir() if entry.name.endswith(".jsonl")
        )
    )


def load_workload(name_or_path: str | Path) -> Workload:
    """A ready workload by name, or a file.

    Raises:
        ConfigError: neither a ready workload nor a file.
        DataError: not a workload file, or broken; the line is named.
    """
    text_name = str(name_or_path)
    if text_name in shipped_workloads():
        resource = files("inferoptim.records") / "workloads" / f"{text_name}.jsonl"
        return parse_workload(resource.read_text(encoding="utf-8"), text_name)
    path = Path(name_or_path)
    if not path.is_file():
        raise ConfigError(
            f"no workload {text_name!r}: give a file that `audit --save-workload` wrote, or one of "
            + ", ".join(shipped_workloads())
        )
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot read it ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text, so not a workload file") from error
    return parse_workload(text, text_name)


def parse_workload(text: str, where: str) -> Workload:
    """A workload from the text of its file.

    Raises:
        DataError: not a workload file, another version, or a broken line; `where` and the line are named.
    """
    lines = text.splitlines()
    first = _object(lines[0] if lines else "", f"{where} line 1")
    if first.get("format") != FORMAT:
        raise DataError(f"{where} line 1: not a workload file; `audit TRACE --save-workload FILE` writes one")
    if first.get("version") != VERSION:
        raise DataError(f"{where}: version {first.get('version')} of the format; this build reads {VERSION}")
    try:
        header = WorkloadHeader.model_validate(first)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise DataError(f"{where} line 1: {field}: {problem['msg']}") from error
    if any(not 1 <= tokens <= MAX_TOKENS for tokens in header.segment_tokens):
        raise DataError(f"{where} line 1: segment_tokens must be at least 1")
    requests = tuple(
        _request(_object(line, f"{where} line {number}"), header, f"{where} line {number}")
        for number, line in enumerate(lines[1:], 2)
        if line.strip()
    )
    if len(requests) != header.num_requests:
        raise DataError(
            f"{where}: {header.num_requests} requests announced, {len(requests)} found (cut off?)"
        )
    arrivals = [r.arrival_s for r in requests]
    if arrivals != sorted(arrivals):
        raise DataError(f"{where}: requests are not in order of arrival_s")
    return Workload(header, requests)


def save_workload(path: Path, workload: Workload) -> None:
    """Write the file aside and rename it into place.

    Raises:
        CapacityError: the disk is full. ConfigError: the folder cannot be written.
    """
    write_atomic(path, format_workload(workload))


def format_workload(workload: Workload) -> str:
    """The text of the file."""
    header = workload.header.model_dump(mode="json", exclude_defaults=False)
    lines = [json.dumps(header, ensure_ascii=False)]
    lines += [_line(request, workload.header.arrivals) for request in workload.requests]
    return "\n".join(lines) + "\n"


def _line(request: WorkloadRequest, arrivals: str) -> str:
    fields: dict[str, Any] = {}
    if arrivals == "open":
        fields["arrival_s"] = round(request.arrival_s, 6)
    fields["prompt_tokens"] = request.prompt_tokens
    fields["output_tokens"] = request.output_tokens
    if request.segments:
        fields["segments"] = list(request.segments)
    return json.dumps(fields)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON; this is not a workload file, or it is cut off") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON object is expected")
    return value


def _request(fields: Mapping[str, Any], header: WorkloadHeader, where: str) -> WorkloadRequest:
    unknown = fields.keys() - {"arrival_s", "prompt_tokens", "output_tokens", "segments"}
    if unknown:
        raise DataError(f"{where}: unknown field {min(unknown)!r}")
    lengths = []
    for name in ("prompt_tokens", "output_tokens"):
        value = fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_TOKENS:
            raise DataError(f"{where}: {name} must be a whole number of at least 1, not {value!r}")
        lengths.append(value)
    arrival = fields.get("arrival_s", 0.0 if header.arrivals == "closed" else None)
    if isinstance(arrival, bool) or not isinstance(arrival, int | float) or not 0 <= arrival < float("inf"):
        raise DataError(f"{where}: arrival_s must be seconds since the first request, not {arrival!r}")
    segments = fields.get("segments", [])
    known = range(len(header.segment_tokens))
    if not isinstance(segments, list) or any(type(s) is not int or s not in known for s in segments):
        raise DataError(f"{where}: segments must name entries of the header's segment_tokens")
    if sum(header.segment_tokens[s] for s in segments) > lengths[0]:
        raise DataError(f"{where}: its segments are longer than its prompt_tokens")
    return WorkloadRequest(lengths[0], lengths[1], float(arrival), tuple(segments))
