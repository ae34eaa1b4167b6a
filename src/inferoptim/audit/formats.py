"""Which columns of a trace mean what: known formats by their signature, common column names, `--map`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from inferoptim.errors import ConfigError

FIELDS = ("arrival", "prompt", "output", "duration", "ttft", "status", "finish", "session", "model", "text")
NUMERIC = ("prompt", "output", "duration", "ttft")

# Names seen in logs, lower case, without unit suffix. The first that is present wins.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "arrival": (
        "timestamp", "time", "ts", "arrival", "arrival_time", "arrived_at", "arrived", "created", "created_at",
        "start_time", "started_at", "start", "request_start", "datetime", "date", "@timestamp", "received_at", "request_time",
    ),
    "prompt": (
        "prompt_tokens", "contexttokens", "context_tokens", "input_tokens", "input_length", "request tokens", "request_tokens",
        "num_prompt_tokens", "prompt_tokens_count", "prompt_len", "prompt_length", "input_len", "n_prompt_tokens", "tokens_in",
        "num_input_tokens", "input_sequence_length", "isl", "num_prefill_tokens",
    ),
    "output": (
        "completion_tokens", "generatedtokens", "generated_tokens", "output_tokens", "output_length", "response tokens",
        "response_tokens", "num_output_tokens", "num_completion_tokens", "output_tokens_count", "output_len", "completion_len",
        "n_completion_tokens", "tokens_out", "num_generated_tokens", "output_sequence_length", "osl", "num_decode_tokens",
    ),
    "duration": ("duration", "latency", "e2e", "e2e_latency", "elapsed", "elapsed time", "total_time", "request_latency", "response_time"),
    "ttft": ("ttft", "time_to_first_token"),
    "status": ("status", "status_code", "error", "http_status"),
    "finish": ("finish_reason", "stop_reason", "finish"),
    "session": ("session_id", "session id", "session", "conversation_id", "user_id", "user", "chat_id"),
    "model": ("model", "model_name"),
    "text": ("prompt_text", "prompt", "text", "text_input", "input", "query", "question"),
}  # fmt: skip
_UNIT = re.compile(
    r"^(.*?)[ _(\[]*\b(s|sec|secs|seconds|ms|millis|milliseconds|us|ns)[)\]]?$|^(.*)_(s|ms|us|ns)$", re.I
)
SECONDS = {
    "s": 1.0, "sec": 1.0, "secs": 1.0, "seconds": 1.0, "ms": 1e-3, "millis": 1e-3, "milliseconds": 1e-3, "us": 1e-6, "ns": 1e-9,
}  # fmt: skip


@dataclass(frozen=True)
class Mapped:
    """How the columns of one trace are read."""

    name: str  # of the format, as reported
    columns: Mapping[str, str]  # our field → the trace's column
    scale: Mapping[str, float] = field(default_factory=dict)  # seconds per unit of arrival, duration, ttft
    block_tokens: int | None = None  # tokens of one prefix block, where the trace has block ids
    note: str = ""


# (name, columns that must be present, units where the names do not say)
_SIGNATURES: tuple[tuple[str, frozenset[str], Mapping[str, float]], ...] = (
    ("azure-llm-inference", frozenset({"timestamp", "contexttokens", "generatedtokens"}), {}),
    (
        "burstgpt",
        frozenset({"timestamp", "request tokens", "response tokens"}),
        {"arrival": 1.0, "duration": 1.0},
    ),
    ("mooncake", frozenset({"input_length", "output_length", "hash_ids"}), {"arrival": 1e-3}),
    ("aiperf", frozenset({"input_length", "output_length", "timestamp"}), {"arrival": 1e-3}),
    ("guidellm", frozenset({"prompt", "prompt_tokens_count", "output_tokens_count"}), {}),
    ("trtllm-bench", frozenset({"task_id", "output_tokens"}), {}),
)
MOONCAKE_BLOCK_TOKENS = 512  # Source: Mooncake FAST'25 release, traces: one hash id stands for 512 tokens


def map_columns(names: Collection[str], explicit: Mapping[str, str] | None = None) -> Mapped:
    """Find the meaning of `names`; `explicit` (from --map) wins field by field.

    Raises:
        ConfigError: --map names a column that is not there, or no length can be found.
    """
    lower = {name.strip().lower(): name for name in names}
    format_name, scale = "generic", dict[str, float]()
    for name, signature, units in _SIGNATURES:
        if signature <= lower.keys():
            format_name, scale = name, dict(units)
            break
    columns: dict[str, str] = {}
    bare = {_bare(key): key for key in reversed(list(lower))}
    for field_name in FIELDS:
        for synonym in SYNONYMS[field_name]:
            key = synonym if synonym in lower else bare.get(synonym)
            if key is not None and lower[key] not in columns.values():
                columns[field_name] = lower[key]
                break
    for field_name, column in (explicit or {}).items():
        if column not in names:
            raise ConfigError(
                f"--map {field_name}={column}: no such column; there are {', '.join(sorted(names)[:12])}"
            )
        columns[field_name] = column
        scale.pop(field_name, None)
    for field_name in ("arrival", "duration", "ttft"):
        if field_name in columns and field_name not in scale:
            unit = unit_of(columns[field_name])
            if unit is not None:
                scale[field_name] = unit
    if "hash_ids" in lower:
        return Mapped(format_name, columns, scale, MOONCAKE_BLOCK_TOKENS)
    return Mapped(format_name, columns, scale)


def require_lengths(mapped: Mapped, names: Collection[str], where: str) -> Mapped:
    """Refuse a table whose lengths cannot be told.

    Raises:
        ConfigError: with the columns there are, and the option that names them.
    """
    columns = mapped.columns
    if "text" not in columns and not {"prompt", "output"} <= columns.keys():
        missing = "prompt" if "prompt" not in columns else "output"
        shown = "".join(c if c.isprintable() else "?" for c in ", ".join(sorted(names)[:12]))
        raise ConfigError(
            f"{where}: cannot tell which column holds the {missing} lengths; name it with --map {missing}=COLUMN "
            f"(columns: {shown})"
        )
    return mapped


def parse_map(pairs: Collection[str]) -> dict[str, str]:
    """`field=column` pairs of --map; several may stand in one option, between commas.

    Raises:
        ConfigError: another form, or an unknown field.
    """
    out: dict[str, str] = {}
    for pair in (part for text in pairs for part in text.split(",")):
        name, equals, column = pair.partition("=")
        name = name.strip()
        if not equals or name not in FIELDS:
            raise ConfigError(
                f"--map {pair!r}: write it as FIELD=COLUMN with FIELD one of {', '.join(FIELDS)}"
            )
        out[name] = column.strip()
    return out


def unit_of(column: str) -> float | None:
    """Seconds per unit, from a column's name: 'latency_ms' → 0.001; None where it does not say."""
    match = _UNIT.match(column.strip())
    if match is None:
        return None
    return SECONDS[(match[2] or match[4]).lower()]


def _bare(name: str) -> str:
    match = _UNIT.match(name)
    return (match[1] if match[1] is not None else match[3]).rstrip(" _([") if match else name


def with_time_unit(mapped: Mapped, unit: str | None) -> Mapped:
    """Set the unit of arrival times (--time-unit)."""
    return mapped if unit is None else replace(mapped, scale={**mapped.scale, "arrival": SECONDS[unit]})
