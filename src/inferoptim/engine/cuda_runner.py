"""The runner on an NVIDIA GPU: gives the device steps without waiting for it, and reads their outcome later.

Decode steps live on the device: each hands its tokens and positions to the next (see `CudaDecoder.decode`), so that a
plan of many steps costs the host one upload and as many graph launches. Any other step is one upload of its indices.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from inferoptim.engine.cuda_batch import (
    PinnedRing,
    StaticVarlen,
    TiledIndices,
    aligned,
    pinned,
    recorded_event,
    to_device,
)
from inferoptim.engine.cuda_graphs import GraphLadder, ladder
from inferoptim.engine.cuda_sampling import SamplingTable
from inferoptim.engine.runner import Launched, Runner
from inferoptim.engine.step import SequenceResult, StepPlan, StepResult
from inferoptim.models.batch import Batch, KVCache
from inferoptim.models.cuda import CudaDecoder, DecodeStep, RowState
from inferoptim.models.tiles import Tiles

MAX_BURST = 16  # decode steps in one plan
_BURST_S = (
    0.008  # a plan of decode steps should take the device about this long: a newcomer waits for two of them
)
_HOST_MARGIN = 1.5  # and longer, by this factor, than the host takes to book one plan and make the next
_FIRST_BURST = 4  # before the first measurement
# varlen steps of few tokens are captured, too: launching their kernels takes longer than running them
VARLEN_TOKENS = (16, 32, 64, 128, 256, 512)
VARLEN_SEQUENCES = 64
_VARLEN_LOGIT_ROWS = 128


def varlen_logit_rows(kept: int, verifies: bool) -> int:
    """Rows of logits in a captured varlen step: every token's, when such steps verify proposals.

    Args:
        kept: rows that the decoder keeps room for.
    """
    return kept if verifies else _VARLEN_LOGIT_ROWS


@dataclass(slots=True)
class _Burst:
    """Decode steps on their way."""

    slots: np.ndarray
    starts: np.ndarray
    tokens: torch.Tensor  # pinned int32 [steps * size]
    size: int
    begin: Any
    end: Any


@dataclass(slots=True)
class _Varlen:
    """One step of any shape on its way."""

    row_counts: list[int]
    want_all: list[bool]
    tokens: torch.Tensor | None  # pinned int32, when the device chooses for every row
    logits: torch.Tensor | None  # on the device, otherwise
    end: Any


class CudaRunner(Runner):
    """One model, one KV-cache, `max_num_seqs` rows.

    Args:
        decoder: owns the kernels.
        kv: its cache.
        graphs: capture steps in CUDA graphs; else every kernel is launched by the host, one step at a time.
        **fields: as for `Runner`.
    """

    def __init__(self, decoder: CudaDecoder, kv: KVCache, *, graphs: bool, **fields: Any) -> None:
        super().__init__(decoder, kv, **fields)
        self._cuda = decoder
        device = decoder.device
        rows, width = self._block_tables.shape[0], aligned(self._block_tables.shape[1], 16)
        self._num_rows = rows
        # One block of memory, so that one copy brings any prefix of it; what changes most often stands first:
        # rows that take part, steps done, limits, tokens, positions, block tables.
        part = aligned(rows)
        self._cuts = [part * i for i in range(6)] + [part * 5 + rows * width]
        self._state = torch.zeros(self._cuts[-1], dtype=torch.int32, device=device)
        parts = [self._state[a : a + rows] for a in self._cuts[:5]]
        tables = self._state[self._cuts[5] :].view(rows, width)
        self._rows_dev, self._done_dev = parts[0], parts[1]
        self._sampling = SamplingTable(rows, decoder.spec.vocab_size, self._eos_token_ids, device)
        self._on_device = np.ones(rows, dtype=bool)
        self._row_state = RowState(
            limits=parts[2], tokens=parts[3], positions=parts[4], block_tables=tables, sampling=self._sampling.rows
        )  # fmt: skip
        self._out = torch.zeros(MAX_BURST * rows, dtype=torch.int32, device=device)
        self._uploads = PinnedRing(self._cuts[-1], device)
        self._downloads = PinnedRing(MAX_BURST * rows, device)
        self._fresh = np.zeros(rows, dtype=bool)  # rows whose token and position the device has
        self._tables_changed = True
        self._limit = decoder.num_positions
        self.run_ahead = graphs
        self._seconds_per_step = 0.0
        self._host_s = 0.0  # seconds of host work for one plan
        self._collected_at = 0.0
        self._decode_graphs: GraphLadder | None = None
        self._varlen_graphs: GraphLadder | None = None
        self._static: StaticVarlen | None = None
        if graphs:
            pool = torch.cuda.graph_pool_handle()
            self._decode_graphs = GraphLadder(ladder(rows), self._decode_eager, pool)
            self._varlen_graphs = GraphLadder(list(VARLEN_TOKENS), self._varlen_static, pool)
            self._static = StaticVarlen(
                VARLEN_TOKENS,
                min(VARLEN_SEQUENCES, rows),
                width,
                decoder.tile_tokens,
                varlen_logit_rows(decoder.max_logit_rows, fields["max_draft"] > 0),
                device,
            )

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture every graph now rather than at first use, largest first: their memory is then found once."""
        for graphs, prepare in (
            (self._decode_graphs, self._prepare_decode),
            (self._varlen_graphs, self._prepare_varlen),
        ):
            for size in reversed(graphs.sizes if graphs is not None else ()):
                prepare(size)
        gc.collect()
        gc.freeze()  # what is loaded stays: the collector need not walk it again while steps make short-lived tuples

    @property
    def burst_steps(self) -> int:
        """Decode steps worth one plan at the speed seen lately."""
        if not self.run_ahead:
            return 1
        if not self._seconds_per_step:
            return _FIRST_BURST
        wanted = max(_BURST_S, _HOST_MARGIN * self._host_s)
        return int(min(max(wanted / self._seconds_per_step, 1), MAX_BURST))

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step and wait for its outcome."""
        return self.collect(self.launch(plan))

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Launched:
        """Give the device a step. Mutates the rows and, once the device gets there, the KV-cache."""
        started = time.perf_counter()
        self._apply(plan)
        if plan.new_blocks or plan.admitted:
            self._tables_changed = True
        for admission in plan.admitted:
            self._fresh[admission.slot] = False
            self._on_device[admission.slot] = admission.sampling.on_device
            self._sampling.admit(admission, self._seeds[admission.slot])
        self._sampling.upload()
        slots = np.fromiter((s.slot for s in plan.sequences), np.int32, len(plan.sequences))
        decodes = self._on_device[slots].all() and all(
            s.num_tokens == 1 and s.samples for s in plan.sequences
        )
        handle = self._launch_decode(plan, slots) if decodes else self._launch_varlen(plan, slots)
        return Launched(plan, handle, started)

    @torch.inference_mode()
    def collect(self, launched: Launched) -> StepResult:
        """Wait for a step that was launched; steps are collected in the order of their launches."""
        plan, handle = launched.plan, launched.handle
        if launched.started_s < self._collected_at:  # launched ahead: since then the host was busy, not idle
            self._host_s = 0.8 * self._host_s + 0.2 * (time.perf_counter() - self._collected_at)
        handle.end.synchronize()
        if isinstance(handle, _Burst):
            results = self._burst_results(handle, plan)
        else:
            results = self._varlen_results(handle, plan)
        # a step that was launched behind another is timed from that one's end
        started, self._collected_at = max(launched.started_s, self._collected_at), time.perf_counter()
        return StepResult(plan.step_id, results, self._collected_at - started)

    # ---- decode steps -----------------------------------------------------------------------------------------

    def _launch_decode(self, plan: StepPlan, slots: np.ndarray) -> _Burst:
        assert plan.num_steps <= MAX_BURST
        count = len(slots)
        starts = np.fromiter((s.start for s in plan.sequences), np.int32, count)
        size = count if self._decode_graphs is None else self._decode_graphs.size_for(count)
        assert size is not None, "more sequences than rows"
        self._prepare_decode(size)
        self._count_tokens(slots, starts + 1)
        self._upload_rows(slots, starts)
        begin = recorded_event(timing=True)
        for _ in range(plan.num_steps):
            if self._decode_graphs is None:
                self._decode_eager(size)
            else:
                self._decode_graphs.replay(size)
        words = plan.num_steps * size
        tokens = self._downloads.take()[:words]
        tokens.copy_(self._out[:words], non_blocking=True)
        end = recorded_event(timing=True)
        self._downloads.used_until(end)
        return _Burst(slots, starts, tokens, size, begin, end)

    def _prepare_decode(self, size: int) -> None:
        """Capture the graph of `size` unless that is done; no row takes part in what runs meanwhile."""
        if self._decode_graphs is not None and not self._decode_graphs.ready(size):
            self._rows_dev.fill_(-1)
            self._decode_graphs.capture(size)

    def _decode_eager(self, size: int) -> None:
        out = self._out[: MAX_BURST * size].view(MAX_BURST, size)
        step = DecodeStep(self._rows_dev[:size], self._done_dev[:size], out)
        self._cuda.decode(self._row_state, step, self._kv)

    def _count_tokens(self, slots: np.ndarray, known: np.ndarray) -> None:
        """Tell the device the tokens of rows with penalties that it has not itself chosen so far."""
        for slot in self._sampling.uncounted(slots):
            admission = self._rows[slot]
            assert admission is not None, f"row {slot} is scheduled but holds no sequence"
            length = int(known[slots == slot][0])
            self._sampling.count(slot, self._token_ids[slot, :length], admission.num_prompt)

    def _upload_rows(self, slots: np.ndarray, starts: np.ndarray) -> None:
        """Tell the device who takes part; tokens and positions only if it does not have them."""
        rows, cuts = self._num_rows, self._cuts
        buffer = self._uploads.take()
        host = buffer.numpy()
        host[: cuts[1]] = -1
        host[: len(slots)] = slots
        host[cuts[1] : cuts[2]] = 0  # steps done
        host[cuts[2] : cuts[2] + rows] = np.minimum(self._num_blocks * self._kv.block_size, self._limit)
        words = cuts[3]
        if not self._fresh[slots].all():
            host[cuts[3] + slots] = self._token_ids[slots, starts]
            host[cuts[4] + slots] = starts
            words = cuts[5]
            self._fresh[:] = False
            self._fresh[slots] = True
        self._state[:words].copy_(buffer[:words], non_blocking=True)
        if self._tables_changed:
            width = self._block_tables.shape[1]
            host[cuts[5] :].reshape(rows, -1)[:, :width] = self._block_tables
            self._state[cuts[5] :].copy_(buffer[cuts[5] :], non_blocking=True)
            self._tables_changed = False
        self._uploads.used_now()

    def _burst_results(self, handle: _Burst, plan: StepPlan) -> tuple[SequenceResult, ...]:
        steps, slots = plan.num_steps, handle.slots
        tokens_NK = (
            handle.tokens.numpy()[: steps * handle.size].reshape(steps, handle.size)[:, : len(slots)].T
        )
        at = handle.starts[:, None] + np.arange(1, steps + 1)
        inside = at < self._token_ids.shape[1]  # a sequence past its end may run past its row
        rows = np.broadcast_to(slots[:, None], at.shape)
        self._token_ids[rows[inside], at[inside]] = tokens_NK[inside]
        seconds = handle.begin.elapsed_time(handle.end) / 1e3 / steps
        before = self._seconds_per_step
        self._seconds_per_step = 0.8 * before + 0.2 * seconds if before else seconds
        return tuple(
            SequenceResult(slot, tuple(tokens))
            for slot, tokens in zip(slots.tolist(), tokens_NK.tolist(), strict=True)
        )

    # ---- any other step ---------------------------------------------------------------------------------------

    def _launch_varlen(self, plan: StepPlan, slots: np.ndarray) -> _Varlen:
        sequences = plan.sequences
        self._fresh[slots] = False
        want_all = [self._wants_prompt_logprobs(s) for s in sequences]
        indices, row_counts = self._indices(sequences, slots, want_all)
        # the tokens that a draft puts before a row of logits are not in the device's counts
        chooses = bool(self._on_device[slots].all()) and not any(
            s.num_draft and self._sampling.penalises(s.slot) for s in sequences
        )
        if chooses:
            known = np.fromiter((s.start + s.num_tokens for s in sequences), np.int32, len(sequences))
            samples = np.fromiter((s.samples for s in sequences), bool, len(sequences))
            self._count_tokens(slots[samples], known[samples])
        else:
            self._sampling.lose_count(slots)
        logit_slots = np.repeat(slots, row_counts) if chooses else np.full(indices.logit_rows.size, -1)
        step = TiledIndices.of(indices, logit_slots.astype(np.int32), self._cuda.tile_tokens)
        rows = indices.logit_rows.size
        graphs, static = self._varlen_graphs, self._static
        size = graphs.size_for(indices.token_ids.size) if graphs is not None else None
        if graphs is not None and static is not None and size is not None and static.holds(step, size):
            self._prepare_varlen(size)
            static.fill(step, size)
            logits, tokens = graphs.replay(size)
            logits, tokens = logits[:rows], tokens[:rows]
        else:
            logits, tokens = self._forward(*to_device(step, self._cuda.device))
        chosen = None
        if chooses:
            chosen = pinned(rows, self._cuda.device)
            chosen.copy_(tokens, non_blocking=True)
        return _Varlen(row_counts, want_all, chosen, None if chooses else logits, recorded_event())

    def _prepare_varlen(self, size: int) -> None:
        if (
            self._varlen_graphs is not None
            and self._static is not None
            and not self._varlen_graphs.ready(size)
        ):
            self._static.fill(None, size)
            self._varlen_graphs.capture(size)

    def _varlen_static(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._static is not None
        return self._forward(*self._static.views(size))

    def _forward(
        self, batch: Batch, tiles: Tiles, logit_slots: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits, the tokens that the device chooses for them)."""
        logits = self._cuda.forward_tiles(batch, self._kv, tiles)
        return logits, self._cuda.choose(logits, batch, logit_slots, self._sampling.rows)

    def _varlen_results(self, handle: _Varlen, plan: StepPlan) -> tuple[SequenceResult, ...]:
        if handle.tokens is not None:
            return self._verify(plan.sequences, handle.row_counts, handle.tokens.tolist())
        assert handle.logits is not None
        return self._sample_rows(plan.sequences, handle.row_counts, handle.want_all, handle.logits.float())
