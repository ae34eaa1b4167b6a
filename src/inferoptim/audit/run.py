"""The audit: one pass over the trace, then one record. No torch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from inferoptim.audit.arrivals import Arrivals
from inferoptim.audit.blocks import BlockSums, correlation, proportion, ratio
from inferoptim.audit.in_flight import InFlight
from inferoptim.audit.lengths import LengthCounts
from inferoptim.audit.levers import Facts, lever_records
from inferoptim.audit.lookup import tokens_per_step
from inferoptim.audit.open_trace import Reader, open_trace
from inferoptim.audit.options import ReadOptions
from inferoptim.audit.phases import Machine, MeanLengths, roofline
from inferoptim.audit.prefix import PrefixReuse
from inferoptim.audit.rows import BadRow, Batch
from inferoptim.audit.sample import SampleOptions, Sampler
from inferoptim.audit.text_cost import tokenizer_record
from inferoptim.audit.text_pass import TextPass
from inferoptim.audit.token_counter import TokenCounter
from inferoptim.audit.turns import Turns
from inferoptim.errors import DataError
from inferoptim.records.audit_record import (
    AuditRecord,
    LengthsRecord,
    Note,
    OutcomesRecord,
    RooflineRecord,
    TextRecord,
    TraceRecord,
    UnreadableRow,
)
from inferoptim.records.workload_file import Workload, WorkloadSource

SHOWN_ROWS = 20  # unreadable rows shown with their line
STATIC_BATCH = 8
LOOKUP_SAMPLE = 200  # answers on which prompt lookup is tried

Progress = Callable[[int, int, int], None]  # bytes read, bytes in all, requests so far


@dataclass(frozen=True)
class AuditOptions:
    """What the caller decides."""

    read: ReadOptions = field(default_factory=ReadOptions)
    strict: bool = False
    redact: bool = True
    tokenizers: tuple[TokenCounter, ...] = ()  # the first counts the trace's texts
    parallel: dict[str, list[str]] = field(
        default_factory=dict
    )  # sentences by language; {} = do not time tokenizers
    parallel_source: str = ""
    machine: Machine | None = None
    stated: dict[str, float] = field(default_factory=dict)  # ttft_s, tpot_s where the trace has no durations
    sample: SampleOptions | None = None
    price_per_million: float | None = None
    currency: str = "EUR"
    seed: int = 0


class _Pass:
    """Everything that sees each batch once."""

    def __init__(self, options: AuditOptions) -> None:
        self.options = options
        self.prompt, self.output, self.total = LengthCounts(), LengthCounts(), LengthCounts()
        self.moments = BlockSums("p", "o", "pp", "oo", "po")
        self.prompts = BlockSums("p")
        self.arrivals = Arrivals(seed=options.seed)
        self.in_flight = InFlight(options.stated)
        self.turns = Turns()
        self.texts = TextPass(
            options.read, next(iter(options.tokenizers), None), options.redact, options.seed
        )
        self.prefix: PrefixReuse | None = None
        self.sampler = None if options.sample is None else Sampler(options.sample)
        self.requests = self.failed = self.truncated = self.stated_status = self.stated_finish = 0
        self.ttft = BlockSums("ttft")
        self.bad: list[UnreadableRow] = []
        self.bad_count = 0
        self.reasons: Counter[str] = Counter()

    def add(self, batch: Batch, block_tokens: int | None, file: str) -> None:
        """Take in one batch.

        Raises:
            DataError: a row could not be read and the audit is strict.
        """
        for row in batch.bad:
            self._refuse(row, file)
        if not len(batch):
            return
        self.texts.add(batch)
        self.requests += len(batch)
        p, o = batch.prompt_tokens, batch.output_tokens
        self.prompt.add(p)
        self.output.add(o)
        known = np.ones(len(batch), dtype=bool) if min(p.min(), o.min()) >= 0 else (p >= 0) & (o >= 0)
        if known.any():
            a, b = (p, o) if known.all() else (p[known], o[known])
            self.total.add(a + b)
            x, y = a.astype(np.float64), b.astype(np.float64)
            self.moments.add(p=x, o=y, pp=x * x, oo=y * y, po=x * y)
        if (p >= 0).any():
            self.prompts.add(p=p[p >= 0].astype(np.float64))
        if batch.arrival_s is not None:
            timed = ~np.isnan(batch.arrival_s)
            arrival = batch.arrival_s[timed]
            self.arrivals.add(arrival)
            duration = None if batch.duration_s is None else batch.duration_s[timed]
            self.in_flight.add(arrival, duration, p[timed], o[timed])
        if batch.blocks is not None:
            self._reuse(batch, block_tokens)
        self.turns.add(batch)
        if batch.failed is not None:
            self.stated_status += len(batch)
            self.failed += int(batch.failed.sum())
        if batch.truncated is not None:
            self.stated_finish += len(batch)
            self.truncated += int(batch.truncated.sum())
        if batch.ttft_s is not None:
            seen = batch.ttft_s[~np.isnan(batch.ttft_s)]
            if len(seen):
                self.ttft.add(ttft=seen)
        if self.sampler is not None:
            self.sampler.add(batch)

    def _refuse(self, row: BadRow, file: str) -> None:
        if self.options.strict:
            raise DataError(f"{file} line {row.line}: {row.reason} (--strict refuses the trace)")
        self.bad_count += 1
        self.reasons[row.reason] += 1
        if len(self.bad) < SHOWN_ROWS:
            self.bad.append(UnreadableRow(file=file, line=row.line, reason=row.reason))

    def _reuse(self, batch: Batch, block_tokens: int | None) -> None:
        blocks, lengths = batch.blocks, batch.prompt_tokens
        assert blocks is not None
        if self.prefix is None:
            if block_tokens is not None:
                self.prefix = PrefixReuse(block_tokens, "block_ids")
            else:
                basis = "tokens" if self.options.tokenizers else "characters"
                self.prefix = PrefixReuse(self.texts.block_size, basis)
        if self.prefix.basis == "characters":
            lengths = np.array([len(t.prompt) if t else 0 for t in batch.texts or ()], dtype=np.int64)
        self.prefix.add(blocks, np.maximum(lengths, 0))


def audit_trace(
    paths: Sequence[Path], options: AuditOptions, progress: Progress | None = None
) -> tuple[AuditRecord, Workload | None]:
    """Read the files one after the other as one trace.

    Ctrl-C stops the reading; what was read until then is described and labelled partial.

    Returns:
        The record, and the workload if `options.sample` asks for one.

    Raises:
        ConfigError: columns that cannot be told, contradicting options. DataError: empty, broken, or not one readable
            row; with `strict`, the first unreadable row.
    """
    started = time.perf_counter()
    state = _Pass(options)
    readers = [open_trace(path, options.read) for path in paths]
    size = sum(reader.source.size for reader in readers)
    partial = _read(readers, state, size, progress)
    if not state.requests:
        first = f"; {state.bad[0].file} line {state.bad[0].line}: {state.bad[0].reason}" if state.bad else ""
        raise DataError(f"{paths[0]}: not one row could be read ({state.bad_count} refused){first}")
    return _describe(readers, state, size, partial, started)


def _read(readers: Sequence[Reader], state: _Pass, size: int, progress: Progress | None) -> str | None:
    """Run all batches through the pass; says why the trace is incomplete, or None."""
    before = 0
    partial: str | None = None
    try:
        for reader in readers:
            name = reader.source.path.name
            for batch in reader.batches():
                state.add(batch, reader.mapped.block_tokens, name)
                if progress is not None:
                    progress(before + batch.bytes_read, size, state.requests)
            before += reader.source.size
            partial = reader.source.cut_off or partial
    except KeyboardInterrupt:
        if not state.requests:
            raise
        partial = "interrupted"
    return partial


def _describe(
    readers: Sequence[Reader], state: _Pass, size: int, partial: str | None, started: float
) -> tuple[AuditRecord, Workload | None]:
    options = state.options
    lengths = _lengths(state)
    calendar = bool(readers[0].times.absolute)
    arrivals = state.arrivals.describe(calendar=calendar, zone=options.read.timezone)
    concurrency = state.in_flight.describe(arrivals.rate_per_s if arrivals else None)
    prefix = state.prefix.describe() if state.prefix else None
    floors = _floors(state, lengths, concurrency.observed_mean if concurrency else None)
    text, lookup = _text(state, floors, prefix.reusable.value if prefix else None)
    trace = TraceRecord(
        files=tuple(r.source.path.name for r in readers),
        format=" + ".join(dict.fromkeys(r.mapped.name for r in readers)),
        sha256=readers[0].source.sha256 if len(readers) == 1 else "+".join(r.source.sha256 for r in readers),
        size_bytes=size,
        columns=dict(readers[0].mapped.columns),
        requests=state.requests,
        unreadable=state.bad_count,
        unreadable_reasons=dict(state.reasons.most_common(20)),
        unreadable_examples=tuple(state.bad),
        redacted=options.redact,
        partial=partial,
    )
    workload = None
    if state.sampler is not None:
        source = WorkloadSource(
            kind="trace",
            description=", ".join(trace.files) + (f" ({partial})" if partial else ""),
            format=trace.format,
            sha256=trace.sha256,
            rows=state.requests,
            licence=options.sample.licence if options.sample else None,
        )
        timed = state.arrivals if arrivals is not None and arrivals.span_s > 0 else None
        block_tokens = state.prefix.block_tokens if state.prefix and state.prefix.basis != "characters" else 0
        workload = state.sampler.workload(timed, state.prompt, state.output, source, block_tokens)
    record = AuditRecord(
        trace=trace,
        lengths=lengths,
        arrivals=arrivals,
        concurrency=concurrency,
        turns=state.turns.describe(),
        outcomes=OutcomesRecord(
            failed=proportion(state.failed, state.stated_status) if state.stated_status else None,
            truncated=proportion(state.truncated, state.stated_finish) if state.stated_finish else None,
            zero_output=state.output.zeros,
        ),
        languages=state.texts.languages(),
        prefix=prefix,
        roofline=floors,
        levers=lever_records(Facts(lengths, arrivals, concurrency, prefix, floors, lookup)),
        text=text,
        notes=_notes(readers, state, arrivals is not None),
        elapsed_s=time.perf_counter() - started,
    )
    return record, workload


def _lengths(state: _Pass) -> LengthsRecord:
    moments = state.moments
    return LengthsRecord(
        prompt=state.prompt.describe(state.prompts.interval(ratio("p", "n"), "prompt"))
        if state.prompt.total
        else None,
        output=state.output.describe(moments.interval(ratio("o", "n"), "output"))
        if state.output.total
        else None,
        total=state.total.describe(moments.interval(lambda s: (s["p"] + s["o"]) / s["n"], "total"))
        if state.total.total
        else None,
        prompt_per_output=moments.interval(ratio("p", "o"), "ratio") if state.total.total else None,
        correlation=moments.interval(correlation("p", "o", "pp", "oo", "po"), "correlation")
        if state.total.total > 2
        else None,
        longest_of_8=state.output.expected_maximum(STATIC_BATCH) if state.output.total else None,
    )


def _floors(state: _Pass, lengths: LengthsRecord, observed: float | None) -> RooflineRecord | None:
    machine, moments = state.options.machine, state.moments
    if machine is None or lengths.prompt is None or lengths.output is None:
        return None
    n, out = moments.total("n"), moments.total("o")
    if not out:
        return None
    means = MeanLengths(
        prompt=moments.total("p") / n,
        prompt_squared=moments.total("pp") / n,
        output=out / n,
        context=(moments.total("po") + moments.total("oo") / 2) / out,
        prompt_p99=lengths.prompt.p99.value,
    )
    return roofline(machine, means, observed)


def _text(
    state: _Pass, floors: RooflineRecord | None, reusable: float | None
) -> tuple[TextRecord | None, float | None]:
    """Tokenisation cost and diet, and answer tokens per step of prompt lookup."""
    options = state.options
    if not options.tokenizers:
        return None, None
    counter = options.tokenizers[0]
    seen = state.ttft.total("n")
    ttft = state.ttft.total("ttft") / seen if seen else None
    basis = "measured" if ttft else "floor" if floors else None
    if ttft is None and floors is not None:
        ttft = floors.points[0].prefill_s
    sample = state.texts.sample
    own = state.texts.by_language() if sample else {}
    diet = (
        state.texts.diet.findings(
            counter,
            [turn.prompt for turn in sample],
            state.prompts.total("p"),
            options.price_per_million,
            reusable,
        )
        if sample
        else ()
    )
    answers = [turn for turn in sample if turn.output][:LOOKUP_SAMPLE]
    lookup = None
    if answers:
        prompts, outputs = counter.ids([t.prompt for t in answers]), counter.ids([t.output for t in answers])
        rates = [
            (len(o), len(o) / tokens_per_step(p.tolist(), o.tolist()))
            for p, o in zip(prompts, outputs, strict=True)
        ]
        steps = sum(steps for tokens, steps in rates if tokens)
        lookup = sum(tokens for tokens, _ in rates) / steps if steps else None
    record = TextRecord(
        tokenizers=tuple(tokenizer_record(t, options.parallel, own, ttft) for t in options.tokenizers)
        if options.parallel
        else (),
        parallel_source=options.parallel_source,
        ttft_s=ttft,
        ttft_basis=basis,
        diet=diet,
        diet_sampled=len(sample),
        price_per_million=options.price_per_million,
        currency=options.currency,
    )
    return record, lookup


def _notes(readers: Sequence[Reader], state: _Pass, timed: bool) -> tuple[Note, ...]:
    notes = []
    arrivals = state.arrivals
    if any(r.times.naive for r in readers):
        mixed = any(r.times.aware for r in readers)
        zone = state.options.read.timezone or "UTC"
        notes.append(Note(key="zones_mixed" if mixed else "zone_assumed", values={"zone": zone}))
    if timed and arrivals.rows and arrivals.repeated > 0.05 * arrivals.rows:
        notes.append(Note(key="coarse_times", values={"share": arrivals.repeated / arrivals.rows}))
    if arrivals.out_of_order:
        notes.append(Note(key="out_of_order", values={"rows": arrivals.out_of_order}))
    if arrivals.late:
        notes.append(Note(key="late", values={"rows": arrivals.late}))
    if state.requests == 1:
        notes.append(Note(key="one_row"))
    elif state.requests < 300:
        notes.append(Note(key="few_rows", values={"rows": state.requests}))
    if state.prompt.zeros:
        notes.append(Note(key="empty_prompts", values={"rows": state.prompt.zeros}))
    if state.output.zeros:
        notes.append(Note(key="empty_outputs", values={"rows": state.output.zeros}))
    if state.sampler is not None and state.sampler.unusable:
        notes.append(Note(key="not_replayable", values={"rows": state.sampler.unusable}))
    if state.texts.seen:
        notes.append(Note(key="no_template"))
    return tuple(notes)
