"""From a trace to a small replayable workload: rows drawn at random, or the most typical stretch of the trace."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inferoptim.audit.arrivals import Arrivals
from inferoptim.audit.lengths import LengthCounts
from inferoptim.audit.reservoir import Reservoir
from inferoptim.audit.rows import Batch, Ints
from inferoptim.errors import ConfigError, DataError
from inferoptim.records.workload_file import (
    REFERENCE_POINTS,
    Workload,
    WorkloadHeader,
    WorkloadRequest,
    WorkloadSource,
    ks_distance,
)

CANDIDATES = 16  # stretches kept, from which the most typical is taken
DRAWS = 64
ROWS_KEPT = 1 << 14  # rows kept, from which the workload's are spread evenly


@dataclass(frozen=True)
class SampleOptions:
    """What to make.

    Raises:
        ConfigError: fewer than one request, or an unknown method.
    """

    name: str
    requests: int = 256
    method: str = "auto"  # rows, window, or window where the trace has prefix blocks and rows otherwise
    seed: int = 0
    licence: str | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise ConfigError(f"--requests must be at least 1, not {self.requests}")
        if self.method not in ("auto", "rows", "window"):
            raise ConfigError(f"--sample {self.method!r}: rows, window or auto")


@dataclass(frozen=True)
class _Row:
    prompt: int
    output: int
    arrival: float
    blocks: Ints | None


class Sampler:
    """Sees every batch once; keeps a bounded number of rows."""

    def __init__(self, options: SampleOptions) -> None:
        self._options = options
        self._rows = Reservoir(max(ROWS_KEPT, options.requests), options.seed)
        self._rng = np.random.default_rng([options.seed, 1])
        self._windows: list[tuple[float, list[_Row]]] = []
        self._current: list[_Row] = []
        self._open = self._wanted = False  # a stretch is being read; it will be kept
        self._key, self._taken = 1.0, 0
        self._timed = False
        self._blocks = False
        self.unusable = 0

    def add(self, batch: Batch) -> None:
        """Offer a batch whose lengths are known; rows without a prompt or an output cannot be replayed."""
        usable = (batch.prompt_tokens >= 1) & (batch.output_tokens >= 1)
        self.unusable += int((~usable).sum())
        batch = batch.select(usable)
        if not len(batch):
            return
        self._rows.add(np.column_stack([batch.prompt_tokens, batch.output_tokens]))
        self._timed |= batch.arrival_s is not None
        self._blocks |= batch.blocks is not None
        if self._options.method == "rows" or (self._options.method == "auto" and batch.blocks is None):
            return
        size, at = self._options.requests, 0
        while at < len(batch):
            if not self._open:
                # stretches that would not be kept are passed over without building their rows
                self._open, self._taken, self._key = True, 0, float(self._rng.random())
                self._wanted = len(self._windows) < CANDIDATES or self._key < self._windows[-1][0]
            take = min(size - self._taken, len(batch) - at)
            if self._wanted:
                self._current += [_row(batch, i) for i in range(at, at + take)]
            self._taken += take
            at += take
            if self._taken == size:
                if self._wanted:
                    self._windows.append((self._key, self._current))
                    self._windows = sorted(self._windows, key=lambda w: w[0])[:CANDIDATES]
                self._current, self._open = [], False

    def workload(
        self,
        arrivals: Arrivals | None,
        prompt: LengthCounts,
        output: LengthCounts,
        source: WorkloadSource,
        block_tokens: int,
    ) -> Workload:
        """The workload file's content; `block_tokens`: of the trace's prefix blocks, 0 where it has none.

        Raises:
            DataError: no row can be replayed.
        """
        options = self._options
        window = options.method == "window" or (options.method == "auto" and self._blocks)
        timed = self._timed and arrivals is not None and len(arrivals.gaps.rows) > 0
        reference = {"prompt_tokens": prompt.reference(), "output_tokens": output.reference()}
        if timed and arrivals is not None:
            # means of equal parts rather than quantiles: gaps are compared after division by their mean, which a heavy
            # tail dominates
            reference["gap_s"] = tuple(
                float(f"{v:.6g}") for v in spread_gaps(arrivals.gaps.rows, REFERENCE_POINTS)
            )
        segments: tuple[int, ...] = ()
        if window:
            requests, segments = self._typical(reference, timed, block_tokens)
        else:
            gaps = arrivals.gaps.rows if timed and arrivals is not None else None
            requests = self._drawn(gaps)
        header = WorkloadHeader(
            name=options.name,
            description=options.description,
            seed=options.seed,
            arrivals="open" if timed else "closed",
            segment_tokens=segments,
            source=source.model_copy(update={"method": "window" if window else "rows"}),
            reference=reference,
            num_requests=len(requests),
        )
        made = Workload(header, tuple(requests))
        ks = {name: round(value, 4) for name, value in made.distance().items()}
        return Workload(header.model_copy(update={"ks": ks}), made.requests)

    def _drawn(self, gaps: NDArray[np.float64] | None) -> list[WorkloadRequest]:
        """Length pairs and gaps, each spread evenly over what the trace holds, in random order."""
        pairs = self._rows.rows
        if not len(pairs):
            raise DataError("no request of this trace has both a prompt and an output: nothing to replay")
        rng = np.random.default_rng([self._options.seed, 2])
        count = min(self._options.requests, len(pairs))
        # a heavy tail moves the mean of a few hundred rows: of some draws, the one whose mean lengths are nearest is taken
        target = np.maximum(pairs.mean(axis=0), 1e-9)
        draws = [spread_pairs(pairs, count, rng) for _ in range(DRAWS)]
        pairs = min(draws, key=lambda draw: float(np.abs(draw.mean(axis=0) / target - 1).max()))
        pairs = pairs[rng.permutation(count)]
        times = np.zeros(count)
        if gaps is not None and count > 1:
            times[1:] = np.cumsum(rng.permutation(spread_gaps(gaps, count - 1)))
        return [
            WorkloadRequest(int(p), int(o), round(float(t), 6))
            for (p, o), t in zip(pairs.tolist(), times, strict=True)
        ]

    def _typical(
        self, reference: dict[str, tuple[float, ...]], timed: bool, block_tokens: int
    ) -> tuple[list[WorkloadRequest], tuple[int, ...]]:
        """The stretch whose lengths are nearest to the whole trace's, as it came."""
        windows = [rows for _, rows in self._windows]
        if not windows and self._current:
            windows = [self._current]
        if not windows:
            raise DataError("no request of this trace has both a prompt and an output: nothing to replay")

        def distance(rows: list[_Row]) -> float:
            return max(
                ks_distance(
                    np.array([getattr(r, name) for r in rows], float), np.array(reference[f"{name}_tokens"])
                )
                for name in ("prompt", "output")
            )

        rows = min(windows, key=distance)
        if timed:
            rows = sorted(rows, key=lambda r: r.arrival)
        lists, segments = shared_segments([r.blocks for r in rows], [r.prompt for r in rows], block_tokens)
        start = rows[0].arrival
        return [
            WorkloadRequest(r.prompt, r.output, round(r.arrival - start, 6) if timed else 0.0, ids)
            for r, ids in zip(rows, lists, strict=True)
        ], segments


def spread_pairs(pairs: Ints, count: int, rng: np.random.Generator) -> Ints:
    """`count` of the rows of `pairs` [n, 2], spread evenly: strips of the first column, evenly by the second inside each.

    A plain random draw of 256 rows is about 0.06 away from its trace (KS); spread evenly it is a third of that.
    """
    strips = np.array_split(np.argsort(pairs[:, 0], kind="stable"), max(round(count**0.5), 1))
    order = np.concatenate([strip[np.argsort(pairs[strip, 1], kind="stable")] for strip in strips])
    edges = np.linspace(0, len(order), count + 1)
    picked = np.floor(edges[:-1] + rng.random(count) * np.diff(edges)).astype(np.int64)
    return np.asarray(pairs[order[np.minimum(picked, len(order) - 1)]])


def spread_gaps(gaps: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """`count` gaps that keep the mean exactly: the means of as many equal parts of the sorted gaps."""
    if len(gaps) < count:
        gaps = np.tile(gaps, -(-count // len(gaps)))
    return np.array([part.mean() for part in np.array_split(np.sort(gaps), count)])


def _row(batch: Batch, i: int) -> _Row:
    return _Row(
        int(batch.prompt_tokens[i]),
        int(batch.output_tokens[i]),
        0.0 if batch.arrival_s is None else float(batch.arrival_s[i]),
        None if batch.blocks is None else batch.blocks[i],
    )


def shared_segments(
    blocks: list[Ints | None], prompts: list[int], block_tokens: int
) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """Leading blocks that several requests share, as segments; runs that always go together become one segment.

    Args:
        blocks: ids of each request's leading blocks; equal id = equal prefix up to there.
        prompts: prompt lengths.
        block_tokens: tokens of one block.

    Returns:
        (segment ids of each request, tokens of each segment). Only whole blocks are shared.
    """
    whole = [
        [] if b is None else b[: p // block_tokens].tolist() for b, p in zip(blocks, prompts, strict=True)
    ]
    uses = Counter(block for ids in whole for block in set(ids))
    next_of: dict[int, set[int]] = {}
    chains = []
    for ids in whole:
        chain: list[int] = []
        for block in ids:
            if uses[block] < 2 or block in chain:
                break
            chain.append(block)
        chains.append(chain)
        for a, b in zip(chain, [*chain[1:], -1][: len(chain)], strict=True):
            next_of.setdefault(a, set()).add(b)
    # a block begins a segment where it begins a prompt or where prompts part before it
    heads = {chain[0] for chain in chains if chain}
    heads |= {b for followers in next_of.values() if len(followers) > 1 for b in followers if b != -1}
    numbers: dict[int, int] = {}
    tokens: list[int] = []
    lists = []
    for chain in chains:
        ids = []
        for position, block in enumerate(chain):
            if block in heads:
                length = 1
                while position + length < len(chain) and chain[position + length] not in heads:
                    length += 1
                if block not in numbers:
                    numbers[block] = len(tokens)
                    tokens.append(length * block_tokens)
                ids.append(numbers[block])
        lists.append(tuple(ids))
    return lists, tuple(tokens)
