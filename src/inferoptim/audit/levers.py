"""Which levers can pay on this traffic: one stated rule each, with the numbers it was applied to.

A rule says where a bench is worth its time, never what a lever gains: `inferoptim bench` measures that. The sentences
stand in the report's catalogues under `audit.rule.<lever>`; the thresholds are here and are printed with them.
"""

from __future__ import annotations

from dataclasses import dataclass

from inferoptim.records.audit_record import (
    ArrivalsRecord,
    ConcurrencyRecord,
    LengthsRecord,
    LeverRecord,
    PhasePoint,
    PrefixRecord,
    RooflineRecord,
    Verdict,
)

REUSE = 0.10  # of prompt tokens
REUSE_TIME = 0.02  # of the time at the floor that the reused tokens' prefill takes
STATIC_WASTE = 0.10  # of a static batch's output slots
SLOT_WASTE = 0.20  # of a contiguous slot of the longest request
AT_ONCE = 2.0  # requests in flight, mean
DECODE_SHARE = 0.30  # of the time at the floor
WEIGHT_BYTES = 0.50  # of what decoding reads
CACHE_BYTES = 0.30  # of what decoding reads
CACHE_FULL = 0.80  # of the room for KV-cache
SPECULATIVE_BATCH = 16.0  # above this, verification competes with other requests for FLOPs
HOST_STEP_S = 0.005  # eager launches of a decoder take about this long; a faster step waits for the host
STALL_S = 0.05  # a prefill longer than this is a visible pause in streams beside it


@dataclass(frozen=True)
class Facts:
    """What the rules look at; None = not measured."""

    lengths: LengthsRecord
    arrivals: ArrivalsRecord | None
    concurrency: ConcurrencyRecord | None
    prefix: PrefixRecord | None
    roofline: RooflineRecord | None
    lookup_tokens_per_step: float | None = None

    @property
    def at_once(self) -> float | None:
        """Mean requests in flight."""
        return None if self.concurrency is None else self.concurrency.observed_mean

    @property
    def point(self) -> PhasePoint | None:
        """The floors at the chosen batch."""
        if self.roofline is None:
            return None
        return next(p for p in self.roofline.points if p.batch == self.roofline.chosen_batch)


def lever_records(facts: Facts) -> tuple[LeverRecord, ...]:
    """Every lever of the project, in the ladder's order."""
    rules = (
        _quantization,
        _kv_quantization,
        _cuda_graphs,
        _in_flight_batching,
        _paged_kv,
        _prefix_caching,
        _chunked_prefill,
        _speculative,
        _tensor_parallel,
    )
    return tuple(rule(facts) for rule in rules)


def _record(
    lever: str, pays: bool | None, figures: dict[str, float | None], *missing: str | None
) -> LeverRecord:
    verdict: Verdict = "unknown" if pays is None else "can_pay" if pays else "unlikely"
    return LeverRecord(
        lever=lever,
        verdict=verdict,
        figures={name: float(value) for name, value in figures.items() if value is not None},
        missing=tuple(m for m in missing if m) if pays is None else (),
    )


def _quantization(facts: Facts) -> LeverRecord:
    point = facts.point
    if point is None:
        return _record("quantization", None, {}, "gpu")
    pays = point.decode_share >= DECODE_SHARE and point.weights_share >= WEIGHT_BYTES
    return _record(
        "quantization",
        pays,
        {"decode_share": point.decode_share, "weights_share": point.weights_share, "batch": point.batch},
    )


def _kv_quantization(facts: Facts) -> LeverRecord:
    point, room = facts.point, facts.roofline
    if point is None or room is None:
        return _record("kv_quantization", None, {}, "gpu")
    peak = facts.concurrency.kv_tokens_peak if facts.concurrency else None
    filled = peak / room.kv_room_tokens if peak is not None and room.kv_room_tokens > 0 else None
    cache = 1 - point.weights_share
    pays = (point.decode_share >= DECODE_SHARE and cache >= CACHE_BYTES) or (filled or 0) >= CACHE_FULL
    return _record("kv_quantization", pays, {"cache_share": cache, "filled": filled, "batch": point.batch})


def _cuda_graphs(facts: Facts) -> LeverRecord:
    point = facts.point
    if point is None:
        return _record("cuda_graphs", None, {}, "gpu")
    return _record("cuda_graphs", point.step_s < HOST_STEP_S, {"step_s": point.step_s, "batch": point.batch})


def _in_flight_batching(facts: Facts) -> LeverRecord:
    output, longest = facts.lengths.output, facts.lengths.longest_of_8
    waste = 1 - output.mean.value / longest if output and longest else None
    pays = (
        None
        if waste is None
        else waste >= STATIC_WASTE and (facts.at_once is None or facts.at_once >= AT_ONCE)
    )
    if pays and facts.at_once is None:
        pays = None
    return _record(
        "in_flight_batching",
        pays,
        {"waste": waste, "at_once": facts.at_once},
        "output" if waste is None else None,
        "durations" if facts.at_once is None else None,
    )


def _paged_kv(facts: Facts) -> LeverRecord:
    total = facts.lengths.total
    if total is None or not total.maximum:
        return _record("paged_kv", None, {}, "output")
    waste = 1 - total.mean.value / total.maximum
    return _record("paged_kv", waste >= SLOT_WASTE, {"waste": waste, "longest": total.maximum})


def _prefix_caching(facts: Facts) -> LeverRecord:
    if facts.prefix is None:
        return _record("prefix_caching", None, {}, "blocks")
    reuse, point = facts.prefix.reusable.value, facts.point
    prefill = None if point is None else 1 - point.decode_share
    time = None if prefill is None else prefill * reuse
    half = next((c.tokens for c in facts.prefix.curve if c.hit_rate >= 0.5 * reuse), None)
    return _record(
        "prefix_caching",
        reuse >= REUSE and (time is None or time >= REUSE_TIME),
        {
            "reuse": reuse,
            "prefill_share": prefill,
            "time_share": time,
            "half_tokens": half if reuse else None,
        },
    )


def _chunked_prefill(facts: Facts) -> LeverRecord:
    if facts.roofline is None or facts.at_once is None:
        return _record(
            "chunked_prefill",
            None,
            {"prefill_s": facts.roofline.p99_prefill_s if facts.roofline else None},
            "gpu" if facts.roofline is None else None,
            "durations" if facts.at_once is None else None,
        )
    prefill = facts.roofline.p99_prefill_s
    pays = prefill >= STALL_S and facts.at_once >= AT_ONCE
    return _record("chunked_prefill", pays, {"prefill_s": prefill, "at_once": facts.at_once})


def _speculative(facts: Facts) -> LeverRecord:
    point = facts.point
    if point is None:
        return _record("speculative", None, {"lookup": facts.lookup_tokens_per_step}, "gpu")
    stated = facts.roofline is not None and facts.roofline.chosen_basis == "stated" and facts.at_once is None
    pays = point.decode_share >= DECODE_SHARE and point.batch <= SPECULATIVE_BATCH
    return _record(
        "speculative",
        pays,
        {
            "decode_share": point.decode_share,
            "batch": point.batch,
            "lookup": facts.lookup_tokens_per_step,
            "stated": 1.0 if stated else None,
        },
    )


def _tensor_parallel(facts: Facts) -> LeverRecord:
    room = facts.roofline
    if room is None:
        return _record("tensor_parallel", None, {}, "gpu")
    longest = facts.lengths.total.maximum if facts.lengths.total else None
    peak = facts.concurrency.kv_tokens_peak if facts.concurrency else None
    wanted = max((v for v in (peak, longest) if v is not None), default=None)
    if wanted is None:
        return _record("tensor_parallel", None, {}, "output")
    return _record(
        "tensor_parallel",
        wanted > room.kv_room_tokens,
        {"wanted_tokens": wanted, "room_tokens": room.kv_room_tokens},
    )
