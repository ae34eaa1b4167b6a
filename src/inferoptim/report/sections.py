"""Key and value sections of the report: protocol, environment, and the economics hook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inferoptim.report.facts import Facts
from inferoptim.report.language import Language, clean, finite

Pair = tuple[str, str]


def protocol_rows(facts: Facts, language: Language) -> list[Pair]:
    """How many runs and requests stand behind the figures, counted in the records."""
    warmups = sum(r.warmup for r in facts.run.folder.runs)
    measured = [r for r in facts.run.folder.runs if not r.warmup]
    rows: list[Pair] = [
        (language(f"protocol.{name}"), clean(facts.run.folder.plan[name]))
        for name in ("design", "seed")
        if facts.run.folder.plan.get(name) is not None
    ]
    schedule = facts.run.summary.protocol.get("schedule")
    if schedule in ("interleaved", "blocks"):
        rows.append((language("protocol.schedule"), language(f"schedule.{schedule}")))
    if facts.run.folder.runs:
        rows.append((language("protocol.runs"), language.integer(len(measured))))
        rows.append((language("protocol.warmups"), language.integer(warmups)))
        rows.append((language("protocol.requests"), language.integer(sum(r.num_requests for r in measured))))
        rows.append(
            (language("protocol.request_failures"), language.integer(sum(r.num_failed for r in measured)))
        )
    counts = sorted({m.runs for m in facts.run.summary.metrics})
    if counts:
        span = (
            language.integer(counts[0])
            if len(counts) == 1
            else f"{language.integer(counts[0])}–{language.integer(counts[-1])}"
        )
        rows.append((language("protocol.runs_each"), span))
    levels = sorted(
        {m.output_tokens_per_s.confidence for m in facts.run.summary.metrics if m.output_tokens_per_s}
    )
    if levels:
        rows.append((language("protocol.confidence"), language.join(language.percent(c, 0) for c in levels)))
    return rows


def environment_rows(facts: Facts, language: Language) -> list[Pair]:
    """The machine, the model and the versions, as recorded."""
    env = facts.run.folder.environment
    if env is None:
        return []
    missing = language("not_recorded")
    rows: list[Pair] = [
        (language("env.model"), clean(env.model)),
        (language("env.revision"), clean(env.model_revision) if env.model_revision else missing),
        (language("env.fingerprint"), clean(env.model_fingerprint) if env.model_fingerprint else missing),
        (language("env.cpu"), f"{clean(env.cpu)} · {language('env.cores', n=env.cores)}"),
        (language("env.memory"), language.bytes(env.memory_bytes)),
        (language("env.gpus"), ", ".join(_gpu(gpu) for gpu in env.gpus) or language("env.no_gpu")),
        (language("env.bandwidth"), _rate(env.ceilings.memory_read_bytes_per_s, 1e9, "GB/s", language)),
    ]
    for dtype, rate in sorted(env.ceilings.gemm_flops_per_s.items()):
        rows.append((language("env.gemm", dtype=clean(dtype)), _rate(rate, 1e9, "GFLOP/s", language)))
    if env.ceilings.num_threads is not None:
        rows.append((language("env.threads"), language.integer(env.ceilings.num_threads)))
    if env.kernels:
        rows.append(
            (
                language("env.kernels"),
                ", ".join(f"{clean(k)}={clean(v)}" for k, v in sorted(env.kernels.items())),
            )
        )
    git = missing
    if env.git_commit:
        git = clean(env.git_commit) + (f" ({language('env.dirty')})" if env.git_dirty else "")
    rows += [
        (language("env.git"), git),
        (language("env.os"), clean(env.os)),
        (
            language("env.versions"),
            ", ".join(f"{clean(k)} {clean(v)}" for k, v in sorted(env.versions.items())) or missing,
        ),
        (language("env.started"), clean(env.started_at) if env.started_at else missing),
        (language("env.host"), clean(env.hostname_hash)),
    ]
    return rows


def _rate(value: float | None, scale: float, unit: str, language: Language) -> str:
    known = finite(value)
    return language("not_measured") if known is None else language.unit_cell(known, (scale, unit)).value


def _gpu(gpu: Mapping[str, Any]) -> str:
    return clean(gpu.get("name", "GPU"))
