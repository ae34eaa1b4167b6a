"""Claims about what levers gain, and the published speed-up of section 5.2."""

from __future__ import annotations

from inferoptim.economics.claims.model import Evidence, Finding, Verdict, claim
from inferoptim.economics.lint import Row, compare_rows, lint_row
from inferoptim.economics.roofline import find_shape
from inferoptim.hardware.peaks import device_peaks

HOLDS, CONDITIONS, WRONG = Verdict.HOLDS, Verdict.CONDITIONS, Verdict.WRONG


def guide_5_2() -> tuple[Row, Row]:
    """The two rows of the guide's table 5.2."""
    shape, card = find_shape("TinyLlama-1.1B"), device_peaks("RTX 4070")
    return (
        Row(shape, "fp16", card, 200, 100, 0.6279, 864.4, memory_bytes=2.60e9, label="PyTorch"),
        Row(shape, "fp16", card, 200, 100, 0.2603, 2723.2, memory_bytes=2.61e9, label="TensorRT-LLM"),
    )


@claim(20, "2.2", "Hybrid batching gains 1.4–1.8×", "C, G")
def chunked_prefill(evidence: Evidence) -> Finding:
    """Only a measurement can say: chunked prefill on and off under load."""
    measured = evidence.lever("chunked_prefill")
    return Finding(Verdict.NOT_MEASURED, "No source: measure chunked prefill on and off under load", measured)


@claim(35, "4.1", "No measurable perplexity loss", "C, G")
def quality(evidence: Evidence) -> Finding:
    """The quality gate's figures of the quantised configurations of a run, if there is one."""
    found = []
    for record in (evidence.summary or {}).get("quality", ()):
        if record["kind"] != "distribution" or "perplexity_ratio" not in record["values"]:
            continue  # lossless levers are held to identical tokens and logits: perplexity says nothing of them
        values = ", ".join(
            f"{name} {v['value']:.4g} [{v['low']:.4g}, {v['high']:.4g}]"
            for name, v in record["values"].items()
        )
        found.append(f"{record['config_id']}: {'passed' if record['passed'] else 'FAILED'}, {values}")
    return Finding(
        Verdict.NOT_MEASURED,
        "Perplexity alone is not enough; report KL, token agreement and task score with intervals",
        evidence.cite("; ".join(found)) if found else None,
    )


@claim(38, "4.3", "Paging frees 60–80 % of memory", "C, G")
def paging(evidence: Evidence) -> Finding:
    """Slots of a maximum length against blocks of 16, for a stated mean length: the cut is set by the lengths."""
    longest, block = 4096, 16
    cuts = {mean: 1 - (mean + block / 2) / longest for mean in (1024, 2048, 3500)}
    return Finding(
        CONDITIONS,
        "The PagedAttention paper reports 60–80 % *waste* in earlier systems, < 4 % with paging; it depends on the length "
        "distribution: against slots of 4 096 tokens, "
        + ", ".join(f"mean {m} frees {c:.0%}" for m, c in cuts.items()),
        evidence.lever("paged_kv"),
        figures={f"freed_at_mean_{mean}": cut for mean, cut in cuts.items()},
    )


def expected_speedup(acceptance: float, draft_tokens: int, draft_cost: float) -> float:
    """Speed-up of speculative decoding when compute is free (batch 1).

    Source: Leviathan, Kalman, Matias 2023, theorem 3.8: (1 - α^(γ+1)) / ((1 - α)(γ c + 1)).

    >>> round(expected_speedup(0.8, 5, 0.05), 2)
    2.95
    """
    return (1 - acceptance ** (draft_tokens + 1)) / ((1 - acceptance) * (draft_tokens * draft_cost + 1))


@claim(39, "4.4", "Speculative decoding: 2–3×, output identical", "C, G")
def speculative(evidence: Evidence) -> Finding:
    """A good and a bad draft by the published formula."""
    good, bad = expected_speedup(0.8, 5, 0.05), expected_speedup(0.5, 5, 0.25)
    return Finding(
        CONDITIONS,
        f"Depends on acceptance and batch (formula: {good:.1f}× at 80 % acceptance with a draft of 5 % cost, {bad:.2f}× at 50 % "
        "with one of 25 %), can be below 1 at high load. Same *distribution*; token-identical under greedy decoding up to "
        "floating-point ties",
        evidence.lever("speculative"),
        figures={"good_draft": good, "bad_draft": bad},
    )


@claim(40, "5.2", "627.9 ms and 260.3 ms for 100 + 200 tokens, FP16 1.1 B, RTX 4070", "P")
def impossible_latency(_: Evidence) -> Finding:
    """The physical lint on both rows."""
    verdicts = [lint_row(row) for row in guide_5_2()]
    broken = [check for verdict in verdicts for check in verdict.broken]
    fastest = next((check for check in verdicts[1].checks if check.name == "latency: memory bandwidth"), None)
    limit = fastest.limit if fastest and fastest.limit else 0.0
    return Finding(
        WRONG if broken else HOLDS,
        f"Impossible: {fastest.text if fastest else ''}",
        figures={"floor_s": limit, "rows_broken": len({id(v) for v in verdicts if v.broken})},
    )


@claim(41, "5.2", "864.4 → 2 723.2 tok/s", "P")
def different_work(_: Evidence) -> Finding:
    """Throughput × latency is the work of one call."""
    check = compare_rows(guide_5_2())
    assert check is not None
    return Finding(
        HOLDS if check.kept else WRONG,
        check.text[0].upper() + check.text[1:],
        figures={"low": check.limit or 0, "high": check.published or 0},
    )


@claim(42, "5.2", "2.41×, 3.15×", "P")
def divisions(evidence: Evidence) -> Finding:
    """The two divisions."""
    latency, rate = 627.9 / 260.3, 2723.2 / 864.4
    right = f"{latency:.2f} {rate:.2f}" == "2.41 3.15"
    return Finding(
        CONDITIONS if right else WRONG,
        f"The divisions are right ({latency:.2f}, {rate:.2f}); the inputs are not measurements of equal work",
        evidence.speedups(),
        figures={"latency": latency, "throughput": rate},
    )


@claim(44, "5.4", "Gains grow with size: 2–3× < 2B, 3–5× 7–13B, 5–10× > 30B", "G")
def gains_by_size(evidence: Evidence) -> Finding:
    """Room left above the bandwidth floor: (time measured on an H100 before this project) / floor at its read ceiling."""
    read = 2.75e12  # bytes/s, matrix-vector read measured on that card
    rooms = {}
    for name, seconds in (("TinyLlama-1.1B", 0.435), ("Llama-3.1-8B", 1.33)):  # vLLM, bf16, 1 × (100+200)
        rooms[name] = find_shape(name).read_per_step * 2 / read * 200 / seconds
    small, large = rooms["TinyLlama-1.1B"], rooms["Llama-3.1-8B"]
    return Finding(
        CONDITIONS if small > large else WRONG,
        "Often the reverse for a single stream: larger models sit nearer the bandwidth floor (vLLM on an H100, measured before "
        f"this project: 1.1B at {small:.0%} of the floor, 8B at {large:.0%})",
        evidence.speedups(),
        figures={"small": small, "large": large},
    )
