"""Executes step plans on the model: builds the tensors, runs the decoder, samples, verifies drafts.

The runner owns the persistent batch: row `slot` of every array below belongs to one running sequence from its
admission to its release. All index arithmetic over a step is vectorised; per-sequence Python remains only for rows
that sample with more than an argmax.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from inferoptim.engine.grammar import GrammarState
from inferoptim.engine.request import TokenLogprobs
from inferoptim.engine.sampler import RowContext, logprobs_of, request_seed, sample
from inferoptim.engine.step import Admission, ScheduledSequence, SequenceResult, StepPlan, StepResult
from inferoptim.models.batch import Batch, KVCache
from inferoptim.models.spec import ModelSpec

_BURST_S = 0.018  # decode steps of one plan: what a token may wait for those after it
MAX_BURST = 8


class DecoderLike(Protocol):
    """What the runner needs of a model: torch operators, the fused native step and the CUDA path all have it."""

    spec: ModelSpec
    device: torch.device
    dtype: torch.dtype
    weight_bytes: int

    def forward(self, batch: Batch, kv: KVCache) -> torch.Tensor: ...


class GrammarSource(Protocol):
    """Where the state of a grammar comes from: `EngineCore`."""

    def start_grammar(self, grammar: str, token_ids: Sequence[int]) -> GrammarState: ...


@dataclass(frozen=True, slots=True)
class Launched:
    """A step that the device was given."""

    plan: StepPlan
    handle: Any  # what the runner needs to collect it
    started_s: float


@runtime_checkable
class AheadRunner(Protocol):
    """A runner that gives the device a step and reads its outcome later."""

    run_ahead: bool  # whether a second step may be launched before the first is collected

    @property
    def burst_steps(self) -> int:
        """Decode steps worth one plan at the speed seen lately."""
        ...

    def launch(self, plan: StepPlan) -> Launched: ...

    def collect(self, launched: Launched) -> StepResult: ...


@dataclass(frozen=True, slots=True)
class StepIndices:
    """What `Batch` holds, still on the host; int32."""

    token_ids: np.ndarray  # [T]
    positions: np.ndarray  # [T]
    slot_mapping: np.ndarray  # [T]
    query_start: np.ndarray  # [S + 1]
    context_lens: np.ndarray  # [S]
    block_tables: np.ndarray  # [S, M]
    logit_rows: np.ndarray  # [R]
    max_query_len: int
    max_context_len: int


class Runner:
    """One model, one KV-cache, `max_num_seqs` rows."""

    def __init__(
        self,
        decoder: DecoderLike,
        kv: KVCache,
        *,
        max_num_seqs: int,
        max_model_len: int,
        max_draft: int = 0,
        contiguous: bool = False,
        seed: int = 0,
        eos_token_ids: tuple[int, ...] = (),
        grammars: GrammarSource | None = None,
    ) -> None:
        self._decoder = decoder
        self._grammars = grammars
        self._states: dict[int, GrammarState] = {}  # by row, of the sequences that follow a grammar
        self._kv = kv
        self._contiguous = contiguous
        self._seed = seed
        self._eos_token_ids = eos_token_ids
        max_blocks = -(-(max_model_len + max_draft) // kv.block_size)
        self._token_ids = np.zeros((max_num_seqs, max_model_len + max_draft + 1), dtype=np.int32)
        self._block_tables = np.zeros((max_num_seqs, max_blocks), dtype=np.int32)
        self._num_blocks = np.zeros(max_num_seqs, dtype=np.int32)
        self._counting = np.arange(max_num_seqs + 1, dtype=np.int32)  # read only
        self._rows: list[Admission | None] = [None] * max_num_seqs
        self._seeds = [0] * max_num_seqs
        self._plain = np.ones(max_num_seqs, dtype=bool)  # argmax of the raw logits, nothing else asked
        self._forward_greedy = getattr(decoder, "forward_greedy", None)
        self._decode_greedy = getattr(decoder, "decode_greedy", None)
        self._seconds_per_step = 0.0  # of plans that only decode, lately

    @property
    def burst_steps(self) -> int:
        """Decode steps worth one plan at the speed seen lately: each plan costs the host some tenths of a millisecond."""
        if self._decode_greedy is None or not self._seconds_per_step:
            return 1
        return int(min(max(_BURST_S / self._seconds_per_step, 1), MAX_BURST))

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step. Mutates the rows and the KV-cache; the plan is read only."""
        started = time.perf_counter()
        self._apply(plan)
        sequences = plan.sequences
        slots = np.fromiter((s.slot for s in sequences), np.int32, len(sequences))
        want_all = [self._wants_prompt_logprobs(s) for s in sequences]
        batch, row_counts = self._build_batch(sequences, slots, want_all, plan.num_steps)
        if plan.num_steps > 1:
            results = self._decode_many(batch, sequences, plan.num_steps)
        elif self._plain[slots].all() and self._forward_greedy is not None:
            tokens = self._forward_greedy(batch, self._kv).tolist()
            results = self._verify(sequences, row_counts, tokens)
        else:
            logits_RV = self._decoder.forward(batch, self._kv)
            if self._plain[slots].all():
                results = self._verify(sequences, row_counts, logits_RV.argmax(dim=-1).tolist())
            else:
                results = self._sample_rows(sequences, row_counts, want_all, logits_RV)
        elapsed = time.perf_counter() - started
        if plan.num_tokens == len(sequences) * plan.num_steps:
            before, now = self._seconds_per_step, elapsed / plan.num_steps
            self._seconds_per_step = 0.8 * before + 0.2 * now if before else now
        return StepResult(plan.step_id, results, elapsed)

    def _decode_many(
        self, batch: Batch, sequences: tuple[ScheduledSequence, ...], steps: int
    ) -> tuple[SequenceResult, ...]:
        """Every sequence gains `steps` tokens, each chosen from the one before, without the host in between."""
        assert self._decode_greedy is not None, "burst_steps allowed it"
        results = []
        tokens_SN = self._decode_greedy(batch, self._kv, steps).T.tolist()
        for s, tokens in zip(sequences, tokens_SN, strict=True):
            self._token_ids[s.slot, s.start + 1 : s.start + 1 + steps] = tokens
            results.append(SequenceResult(s.slot, tuple(tokens)))
        return tuple(results)

    def _apply(self, plan: StepPlan) -> None:
        for slot in plan.released:
            self._rows[slot] = None
            self._states.pop(slot, None)
        for admission in plan.admitted:
            slot = admission.slot
            self._rows[slot] = admission
            # half the time of an assignment, which goes through an array of its own
            struct.pack_into(f"{len(admission.token_ids)}i", self._token_ids[slot], 0, *admission.token_ids)
            self._num_blocks[slot] = 0
            self._block_tables[slot] = 0
            self._seeds[slot] = request_seed(admission.sampling, admission.request_id, self._seed)
            self._plain[slot] = admission.sampling.plain
            if self._grammars is not None and admission.sampling.grammar is not None:
                generated = admission.token_ids[admission.num_prompt :]
                self._states[slot] = self._grammars.start_grammar(admission.sampling.grammar, generated)
        for slot, blocks in plan.new_blocks:
            n = self._num_blocks[slot]
            self._block_tables[slot, n : n + len(blocks)] = blocks
            self._num_blocks[slot] = n + len(blocks)
        if plan.draft_tokens:  # proposals stand behind each row's known tokens, where the batch reads them
            known = {s.slot: s.start + s.num_tokens - s.num_draft for s in plan.sequences}
            for slot, drafts in plan.draft_tokens:
                self._token_ids[slot, known[slot] : known[slot] + len(drafts)] = drafts

    def _indices(
        self,
        sequences: tuple[ScheduledSequence, ...],
        slots: np.ndarray,
        want_all: list[bool],
        num_steps: int = 1,
    ) -> tuple[StepIndices, list[int]]:
        """Indices of the (first) step, and how many rows of logits each sequence wants."""
        if all(s.num_tokens == 1 and s.samples for s in sequences) and not any(want_all):
            return self._decode_indices(sequences, slots, num_steps), [1] * len(sequences)
        if len(sequences) == 1:
            return self._indices_of_one(sequences[0], want_all[0], num_steps)
        starts = np.fromiter((s.start for s in sequences), np.int32, len(sequences))
        counts = np.fromiter((s.num_tokens for s in sequences), np.int32, len(sequences))
        query_start = np.zeros(len(sequences) + 1, dtype=np.int32)
        np.cumsum(counts, out=query_start[1:])
        total = int(query_start[-1])
        positions = np.arange(total, dtype=np.int32) + np.repeat(starts - query_start[:-1], counts)
        rows = np.repeat(slots.astype(np.intp), counts)
        block_size = self._kv.block_size
        blocks = positions // block_size
        # one index into all rows of a table: a third of the time of an index a dimension
        owned = self._block_tables.ravel().take(rows * self._block_tables.shape[1] + blocks)
        slot_mapping = (owned - blocks) * block_size + positions
        context_lens = starts + counts
        max_context = int(context_lens.max())
        row_counts = [_wanted_rows(s, everything) for s, everything in zip(sequences, want_all, strict=True)]
        wanted = np.asarray(row_counts, dtype=np.int32)
        before = np.cumsum(wanted) - wanted
        logit_rows = np.arange(int(wanted.sum()), dtype=np.int32) + np.repeat(
            query_start[1:] - wanted - before, wanted
        )
        indices = StepIndices(
            token_ids=self._token_ids.ravel().take(rows * self._token_ids.shape[1] + positions),
            positions=positions,
            slot_mapping=slot_mapping,
            query_start=query_start,
            context_lens=context_lens,
            block_tables=self._block_tables[slots, : -(-(max_context + num_steps - 1) // block_size)],
            logit_rows=logit_rows.astype(np.int32),
            max_query_len=int(counts.max()),
            max_context_len=max_context,
        )
        return indices, row_counts

    def _indices_of_one(
        self, s: ScheduledSequence, want_all: bool, num_steps: int
    ) -> tuple[StepIndices, list[int]]:
        """The same for one sequence, a prompt or proposals to verify, in a third of the operations."""
        n, end, block_size = s.num_tokens, s.start + s.num_tokens, self._kv.block_size
        table, wanted = self._block_tables[s.slot], _wanted_rows(s, want_all)
        positions = np.arange(s.start, end, dtype=np.int32)
        indices = StepIndices(
            token_ids=self._token_ids[s.slot, s.start : end].copy(),
            positions=positions,
            slot_mapping=table[positions // block_size] * block_size + positions % block_size,
            query_start=np.array((0, n), dtype=np.int32),
            context_lens=np.array((end,), dtype=np.int32),
            block_tables=table[None, : -(-(end + num_steps - 1) // block_size)].copy(),
            logit_rows=np.arange(n - wanted, n, dtype=np.int32),
            max_query_len=n,
            max_context_len=end,
        )
        return indices, [wanted]

    def _decode_indices(
        self, sequences: tuple[ScheduledSequence, ...], slots: np.ndarray, num_steps: int
    ) -> StepIndices:
        """The same where every sequence has one token and wants its logits: what most steps are, in fewer operations."""
        starts = np.array([s.start for s in sequences], dtype=np.int32)
        block_size, max_context = self._kv.block_size, int(starts.max()) + 1
        return StepIndices(
            token_ids=self._token_ids[slots, starts],
            positions=starts,
            slot_mapping=self._block_tables[slots, starts // block_size] * block_size + starts % block_size,
            query_start=self._counting[: len(sequences) + 1],
            context_lens=starts + 1,
            block_tables=self._block_tables[slots, : -(-(max_context + num_steps - 1) // block_size)],
            logit_rows=self._counting[: len(sequences)],
            max_query_len=1,
            max_context_len=max_context,
        )

    def _build_batch(
        self,
        sequences: tuple[ScheduledSequence, ...],
        slots: np.ndarray,
        want_all: list[bool],
        num_steps: int,
    ) -> tuple[Batch, list[int]]:
        """Tensors of the step, and how many rows of logits each sequence wants."""
        indices, row_counts = self._indices(sequences, slots, want_all, num_steps)
        device = self._decoder.device

        def tensor(array: np.ndarray) -> torch.Tensor:
            host = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int32))
            return host if device.type == "cpu" else host.to(device, non_blocking=True)

        batch = Batch(
            token_ids_T=tensor(indices.token_ids),
            positions_T=tensor(indices.positions),
            slot_mapping_T=tensor(indices.slot_mapping),
            query_start=tensor(indices.query_start),
            context_lens_S=tensor(indices.context_lens),
            block_tables_SM=tensor(indices.block_tables),
            logit_rows_R=tensor(indices.logit_rows),
            max_query_len=indices.max_query_len,
            max_context_len=indices.max_context_len,
            contiguous=self._contiguous,
        )
        return batch, row_counts

    def _verify(
        self, sequences: tuple[ScheduledSequence, ...], row_counts: list[int], tokens: list[int]
    ) -> tuple[SequenceResult, ...]:
        """Accept each sequence's longest run of drafts that equal the sampled tokens, plus one token."""
        results = []
        first = 0
        for s, n in zip(sequences, row_counts, strict=True):
            accepted = self._accept(s, tokens[first : first + n]) if s.samples else ()
            first += n
            results.append(SequenceResult(s.slot, accepted))
        return tuple(results)

    def _accept(self, s: ScheduledSequence, sampled: list[int]) -> tuple[int, ...]:
        """`sampled` has num_draft + 1 tokens: one for each known-so-far prefix. Appends what is kept to the row."""
        known = s.start + s.num_tokens - s.num_draft
        kept = 1
        while kept <= s.num_draft and sampled[kept - 1] == self._token_ids[s.slot, known + kept - 1]:
            kept += 1
        self._token_ids[s.slot, known : known + kept] = sampled[:kept]
        return tuple(sampled[:kept])

    def _sample_rows(
        self,
        sequences: tuple[ScheduledSequence, ...],
        row_counts: list[int],
        want_all: list[bool],
        logits_RV: torch.Tensor,
    ) -> tuple[SequenceResult, ...]:
        results = []
        ends = np.cumsum(row_counts)
        contexts: list[RowContext] = []
        sampled_rows: list[int] = []
        for s, end in zip(sequences, ends.tolist(), strict=True):
            if s.samples:
                admission = self._rows[s.slot]
                assert admission is not None, f"row {s.slot} is scheduled but holds no sequence"
                contexts += self._contexts(s, admission)
                sampled_rows += range(end - s.num_draft - 1, end)
        chosen = sample(
            logits_RV if len(sampled_rows) == len(logits_RV) else logits_RV[sampled_rows], contexts
        )
        first = taken = 0
        for s, n, everything in zip(sequences, row_counts, want_all, strict=True):
            logits = logits_RV[first : first + n]
            first += n
            admission = self._rows[s.slot]
            assert admission is not None, f"row {s.slot} is scheduled but holds no sequence"
            prompt_logprobs = self._prompt_logprobs(s, admission, logits) if everything else None
            if not s.samples:
                results.append(SequenceResult(s.slot, (), None, prompt_logprobs))
                continue
            logits = logits[n - s.num_draft - 1 :]
            accepted = self._accept(s, chosen[taken : taken + s.num_draft + 1])
            taken += s.num_draft + 1
            if s.slot in self._states:
                self._states[s.slot].advance(accepted)
            logprobs: tuple[TokenLogprobs, ...] | None = None
            if admission.sampling.logprobs is not None:
                logprobs = tuple(
                    logprobs_of(logits[: len(accepted)], list(accepted), admission.sampling.logprobs)
                )
            results.append(SequenceResult(s.slot, accepted, logprobs, prompt_logprobs))
        return tuple(results)

    def _contexts(self, s: ScheduledSequence, admission: Admission) -> list[RowContext]:
        known = s.start + s.num_tokens - s.num_draft
        sampling = admission.sampling
        stops = (
            sampling.stop_token_ids
            if sampling.ignore_eos
            else (*sampling.stop_token_ids, *self._eos_token_ids)
        )
        state = self._states.get(s.slot)
        allowed: list[np.ndarray] | None = None
        if state is not None:
            allowed = state.allowed_along(self._token_ids[s.slot, known : known + s.num_draft].tolist())
        return [
            RowContext(
                sampling=sampling,
                seed=self._seeds[s.slot],
                token_ids=self._token_ids[s.slot, : known + offset],
                num_prompt=admission.num_prompt,
                banned=stops if known + offset - admission.num_prompt < sampling.min_tokens else (),
                allowed=allowed[offset] if allowed is not None else None,
            )
            for offset in range(s.num_draft + 1)
        ]

    def _wants_prompt_logprobs(self, s: ScheduledSequence) -> bool:
        admission = self._rows[s.slot]
        assert admission is not None, f"row {s.slot} is scheduled but holds no sequence"
        return admission.sampling.prompt_logprobs is not None and s.start < admission.num_prompt

    def _prompt_logprobs(
        self, s: ScheduledSequence, admission: Admission, logits: torch.Tensor
    ) -> tuple[TokenLogprobs, ...]:
        """Logits at position p speak of prompt token p + 1; the last prompt token's speak of the output."""
        end = min(s.start + s.num_tokens, admission.num_prompt - 1)
        if end <= s.start:
            return ()
        targets = self._token_ids[s.slot, s.start + 1 : end + 1].tolist()
        assert admission.sampling.prompt_logprobs is not None
        return tuple(logprobs_of(logits[: end - s.start], targets, admission.sampling.prompt_logprobs))


def _wanted_rows(s: ScheduledSequence, want_all: bool) -> int:
    """How many rows of logits a sequence wants."""
    return s.num_tokens if want_all else s.num_draft + 1 if s.samples else 0
