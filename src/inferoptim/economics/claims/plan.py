"""Claims about tools and operations: section 7."""

from __future__ import annotations

from inferoptim.economics.claims.model import Evidence, Finding, Verdict, claim

# What the guide's pipeline names, and whose it is today. Source: TensorRT-LLM 1.0 documentation (`trtllm-serve`,
# `LLM(...)`), and vLLM's engine arguments.
OWNER = {
    "convert_checkpoint.py": None,
    "trtllm-build": None,
    "max_num_seqs": "vLLM",
    "enable_chunked_prefill": "both",
}


@claim(50, "7.1, 7.2", "TensorRT-LLM 0.8, `convert_checkpoint.py`, `trtllm-build`", "P")
def trtllm_steps(_: Evidence) -> Finding:
    """The commands and fields of the guide's pipeline that TensorRT-LLM does not have."""
    gone = [name for name, owner in OWNER.items() if owner is None]
    foreign = [name for name, owner in OWNER.items() if owner not in (None, "both", "TensorRT-LLM")]
    return Finding(
        Verdict.WRONG if gone or foreign else Verdict.HOLDS,
        f"{' and '.join(gone)}: removed upstream in 2026; today's TensorRT-LLM serves a Hugging Face checkpoint with "
        f"`trtllm-serve` / `LLM(...)`; `{foreign[0]}` is {OWNER[foreign[0]]}'s name, not its",
        figures={"removed": len(gone), "foreign": len(foreign)},
    )


def guide_alerts(tokens_per_s: float, memory_share: float) -> dict[str, bool]:
    """Which of the guide's two threshold rules of 7.3 fire at a state of a healthy server."""
    return {"LowThroughput": tokens_per_s < 1000, "GPUMemoryHigh": memory_share > 0.9}


@claim(52, "7.3", "Three alert rules", "C")
def alert_rules(_: Evidence) -> Finding:
    """The rules evaluated on an idle night and on a normal day of an engine that reserves its memory at start."""
    night, day = guide_alerts(0.0, 0.91), guide_alerts(30_000.0, 0.91)
    false_alarms = [name for name in night if night[name] or day[name]]
    return Finding(
        Verdict.WRONG if false_alarms else Verdict.HOLDS,
        "Unaggregable summary quantile; fires whenever users sleep; always fires by design (engines reserve 90 %). Right: SLO "
        "burn-rate on histogram buckets, queue without throughput, KV use with preemptions",
        figures={"false_alarms": len(false_alarms)},
    )
