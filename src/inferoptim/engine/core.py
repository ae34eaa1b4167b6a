"""The step loop: propose → schedule → execute → update. Token ids in, token ids out; text is output.py's concern.

Not thread-safe: one thread owns an `EngineCore`. `LLM` drives it from the caller's thread, `AsyncLLM` from its own.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import time
from collections import deque
from collections.abc import Sequence as SequenceOf
from typing import Any

import numpy as np
import torch

from inferoptim import __version__
from inferoptim.config import EngineConfig
from inferoptim.engine.assembly import count_blocks, make_runner, model_len
from inferoptim.engine.blocks import BlockAllocator
from inferoptim.engine.grammar import GrammarCompiler, GrammarState
from inferoptim.engine.kv_cache import bytes_per_token
from inferoptim.engine.loading import (
    check_gpu_memory,
    choose_device,
    load_draft,
    load_target,
    prepare_kernels,
)
from inferoptim.engine.opening import Opening
from inferoptim.engine.planning import SchedulerConfig
from inferoptim.engine.proposers import DraftModelProposer, PromptLookupProposer, Proposer
from inferoptim.engine.request import FinishReason, Request, Sequence, TokenOutput
from inferoptim.engine.resident import return_freed_memory
from inferoptim.engine.runner import AheadRunner, DecoderLike, Launched, Runner
from inferoptim.engine.scheduler import Scheduler
from inferoptim.engine.scoring import Scorer
from inferoptim.engine.speculative import Speculator
from inferoptim.engine.step import StepPlan, StepResult
from inferoptim.errors import CapacityError, RequestError, UnsupportedError
from inferoptim.hardware.gpu_meter import cuda_uuids
from inferoptim.models.hub import ModelFiles

_log = logging.getLogger(__name__)


def _all_below(token_ids: tuple[int, ...], vocab: int) -> bool:
    """Whether every id is one of 0…vocab - 1; on a long prompt half the time of an array made by NumPy."""
    try:
        packed = struct.pack(f"{len(token_ids)}I", *token_ids)
    except struct.error:  # negative, or too large, or no number
        return False
    return not packed or int(np.frombuffer(packed, np.uint32).max()) < vocab


class EngineCore:
    """One model, one KV-cache, one scheduler.

    Args:
        config: levers and memory; see `EngineConfig`.
        opening: of the configuration's model, where it began before torch was imported.

    Raises:
        ConfigError, UnsupportedError, DataError: the model cannot be found, read or run here.
        CapacityError: the KV budget does not hold one sequence of max_model_len tokens, or memory is short.
    """

    def __init__(self, config: EngineConfig, opening: Opening | None = None) -> None:
        started = time.perf_counter()
        self.config = config
        opening = opening or Opening(config.model)
        self.device = choose_device(config)
        if self.device.type == "cpu" and config.num_threads:
            torch.set_num_threads(config.num_threads)
        draft: DecoderLike | None = None
        try:
            folder = opening.folder or opening.files().folder
            with opening.in_use():
                kernels = prepare_kernels(folder, config, self.device)  # before there is a CUDA context
                if self.device.type == "cuda":
                    check_gpu_memory(folder, config, self.device)
                self._decoder: DecoderLike = load_target(folder, config, self.device)
            self.files: ModelFiles = opening.files()
            if config.speculative == "draft":
                draft = load_draft(self.files, self._decoder, config, self.device)
        except torch.OutOfMemoryError as error:
            raise CapacityError(
                f"the GPU's memory ran out while {config.model} was loaded: quantise it, take a smaller one, or see with "
                f"nvidia-smi who else uses the card ({error})"
            ) from error
        self.spec = self._decoder.spec
        self.max_model_len = model_len(config, self.spec)
        self._token_bytes = bytes_per_token(self.spec, self._decoder.dtype, config.kv_quantization)
        draft_token_bytes = bytes_per_token(draft.spec, draft.dtype, config.kv_quantization) if draft else 0
        self._lookahead = config.num_speculative_tokens if config.speculative != "none" else 0
        self._num_blocks = count_blocks(
            config,
            self.device,
            self.spec,
            token_bytes=self._token_bytes + draft_token_bytes,
            max_model_len=self.max_model_len,
            lookahead=self._lookahead,
        )
        scheduler_config = SchedulerConfig(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            block_size=config.block_size,
            in_flight_batching=config.in_flight_batching,
            paged_kv=config.paged_kv,
            prefix_caching=config.prefix_caching,
            chunked_prefill=config.chunked_prefill,
        )
        self._grammar_compiler: GrammarCompiler | None = None
        if kernels is not None:
            kernels.wait()
        self._runner = self._make_runner(self._decoder, grammars=self)
        self._ahead: AheadRunner | None = self._runner if isinstance(self._runner, AheadRunner) else None
        blocks = BlockAllocator(self._num_blocks, config.block_size)
        self._scheduler = Scheduler(scheduler_config, blocks, samples_on_device=self._ahead is not None)
        proposer: Proposer | None = None
        if draft is not None:
            proposer = DraftModelProposer(self._make_runner(draft), config.block_size)
        elif config.speculative == "prompt-lookup":
            proposer = PromptLookupProposer()
        self._speculator = Speculator(proposer, config.num_speculative_tokens) if proposer else None
        self._running: dict[str, Sequence] = {}
        self._reported: dict[
            str, int
        ] = {}  # tokens of each sequence that step() has already given out, or the prompt's
        self._scored: dict[
            str, int
        ] = {}  # prompt log-probabilities of each sequence that step() has given out
        self._rows: dict[int, str] = {}  # request by row of the batch
        self._launched: deque[Launched] = (
            deque()
        )  # steps that a GPU was given and whose outcome is not yet read
        self._none_ahead = False  # the latest plan made ahead could not be launched
        self._step_s = 0.0
        self._latest: StepPlan | None = None
        return_freed_memory()
        self.load_s = time.perf_counter() - started

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: one more than the highest token id."""
        return self.spec.vocab_size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a sequence unless it ignores them."""
        return self.spec.eos_token_ids

    # -- requests ---------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestError: an empty prompt, a grammar that cannot be used, a token id outside the vocabulary, or a prompt longer than the context.
            CapacityError: it could never fit the KV-cache.
        """
        vocab = self.spec.vocab_size
        others = (*request.sampling.stop_token_ids, *request.sampling.logit_bias)
        for named in (request.prompt_token_ids, others):
            if not _all_below(named, vocab):
                wrong = next(t for t in named if not _all_below((t,), vocab))
                raise RequestError(
                    f"request {request.request_id}: token id {wrong} is outside the vocabulary (0…{vocab - 1})"
                )
        if request.sampling.grammar is not None:
            self._compiler().check(request.sampling.grammar)
        self._running[request.request_id] = self._scheduler.add(request)
        self._reported[request.request_id] = len(request.prompt_token_ids)

    def start_grammar(self, grammar: str, token_ids: SequenceOf[int]) -> GrammarState:
        """The state of a grammar after `token_ids` of output; for the runner, at a sequence's admission."""
        return self._compiler().start(grammar, token_ids)

    def prepare_grammars(self) -> None:
        """Read the vocabulary for grammars now, so that the first structured request does not hold up the others."""
        with contextlib.suppress(
            UnsupportedError
        ):  # without llguidance, an end of sequence or a tokenizer it knows, each is refused when it comes
            self._compiler()

    def _compiler(self) -> GrammarCompiler:
        if self._grammar_compiler is None:
            self._grammar_compiler = GrammarCompiler(
                self.files.folder, self.spec.vocab_size, self.spec.eos_token_ids
            )
        return self._grammar_compiler

    def abort(self, request_id: str) -> None:
        """Forget a request, whatever its state; unknown or finished ids are ignored."""
        if self._scheduler.abort(request_id) is not None:
            self._leave(request_id)

    def finish(self, request_id: str) -> None:
        """End a request whose text met a stop string."""
        sequence = self._running.get(request_id)
        if sequence is not None:
            self._scheduler.finish(sequence, FinishReason.STOP)
            self._leave(request_id)

    # -- the loop ---------------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """True while a request waits or runs."""
        return self._scheduler.has_work

    def step(self) -> list[TokenOutput]:
        """Run one step; the outputs of the sequences that gained tokens or ended. [] when there is nothing to do."""
        self._latest = None
        if self._speculator is not None and not self._launched:  # else the last token is not known yet
            self._propose(self._speculator)
        alone, began = not self._launched, time.perf_counter()
        try:
            ran = self._run()
        except torch.OutOfMemoryError as error:
            return self._go_on_smaller(error)
        if ran is None:
            return []
        plan, result = ran
        self._latest = plan
        self._step_s += result.step_s
        for admission in plan.admitted:
            self._rows[admission.slot] = admission.request_id
        self._scheduler.update(plan, result, time.perf_counter())
        outputs = self._outputs(result)
        if self._speculator is not None:
            accepted = {r.slot: len(r.token_ids) - 1 for r in result.sequences if r.token_ids}
            # what the host does around a step costs as much as the step's own time where nothing is launched meanwhile
            alone = alone and not self._launched
            step_s = time.perf_counter() - began if alone else result.step_s
            self._speculator.observe(plan, step_s, accepted)
        return outputs

    def _run(self) -> tuple[StepPlan, StepResult] | None:
        """The next plan and its outcome; None when there is nothing to do."""
        if self._ahead is not None:
            launched = self._launch(self._ahead)
            return None if launched is None else (launched.plan, self._ahead.collect(launched))
        most_steps = self._most_steps(self._runner.burst_steps)
        due = self._scheduler.schedule(time.perf_counter(), most_steps, within_end=True)
        return None if due is None else (due, self._runner.execute(due))

    def _most_steps(self, planned: int) -> int:
        return planned if self._speculator is None else self._speculator.most_steps(planned)

    def _propose(self, speculator: Speculator) -> None:
        running = [s for s in self._running.values() if s.slot >= 0]
        try:
            proposals = speculator.propose(running)
        except torch.OutOfMemoryError:  # drafts are a luxury
            _log.warning("out of GPU memory for drafts: this step does without")
            for sequence in running:
                speculator.forget(sequence.request.request_id)
            torch.cuda.empty_cache()
            return
        for request_id, tokens in proposals.items():
            self._scheduler.set_drafts(request_id, tokens)

    def _go_on_smaller(self, error: torch.OutOfMemoryError) -> list[TokenOutput]:
        """The device had no memory for a step: everybody is preempted, and less runs at once until it goes well again.

        A step that cannot be made any smaller ends its request with an error.
        """
        torch.cuda.empty_cache()
        failed = self._scheduler.cancel()
        for admission in failed.admitted:
            self._rows[admission.slot] = admission.request_id
        if self._launched:  # it was made ahead: the one before it still comes in
            self._none_ahead = True
            return []
        first = self._rows[failed.sequences[0].slot]
        what = (
            f"out of GPU memory in a step of {failed.num_tokens} tokens of {len(failed.sequences)} sequences"
        )
        if self._scheduler.retreat(failed):
            _log.warning("%s: preempted, going on with half as many (%s)", what, error)
            return []
        _log.warning("%s, the smallest there is: request %s ends (%s)", what, first, error)
        sequence = self._running[first]
        self._scheduler.finish(sequence, FinishReason.ERROR)
        self._leave(first)
        return [TokenOutput(first, (), FinishReason.ERROR, sequence.num_cached)]

    def _launch(self, runner: AheadRunner) -> Launched | None:
        """The oldest step on the device, with the one after it launched behind it whenever that can be known now.

        So the device has work while the host reads, books and hands out what the older step gave.
        """
        speculator = self._speculator
        most_steps = self._most_steps(runner.burst_steps)
        if not self._launched:
            plan = self._scheduler.schedule(time.perf_counter(), most_steps)
            if plan is None:
                return None
            self._launched.append(runner.launch(plan))
        may = not self._none_ahead and (
            speculator is None or speculator.may_run_ahead(self._scheduler.num_running)
        )
        if runner.run_ahead and may:
            ahead = self._scheduler.schedule_ahead(time.perf_counter(), most_steps)
            if ahead is not None:
                self._launched.append(runner.launch(ahead))
        self._none_ahead = False
        return self._launched.popleft()

    def _outputs(self, result: StepResult) -> list[TokenOutput]:
        outputs = []
        assert self._latest is not None, "outputs of no plan"
        for work, r in zip(self._latest.sequences, result.sequences, strict=True):
            request_id = self._rows[r.slot]
            sequence = self._running.get(request_id)
            if sequence is None or not (r.token_ids or r.prompt_logprobs):
                continue  # aborted during the step, or a chunk of a prompt
            prompt_logprobs = r.prompt_logprobs
            if prompt_logprobs:  # a sequence that was preempted computes its prompt again
                scored = self._scored.get(request_id, 0)
                prompt_logprobs = prompt_logprobs[max(0, scored - work.start) :]
                self._scored[request_id] = scored + len(prompt_logprobs)
            # the scheduler drops verified tokens past a stop, so its list says what was gained
            tokens = tuple(sequence.token_ids[self._reported[request_id] :])
            self._reported[request_id] += len(tokens)
            logprobs = r.logprobs[: len(tokens)] if r.logprobs else None
            outputs.append(
                TokenOutput(
                    request_id,
                    tokens,
                    sequence.finish_reason,
                    sequence.num_cached,
                    logprobs,
                    prompt_logprobs,
                )
            )
            if sequence.finish_reason is not None:
                self._leave(request_id)
        return outputs

    def _leave(self, request_id: str) -> None:
        self._running.pop(request_id, None)
        self._reported.pop(request_id, None)
        self._scored.pop(request_id, None)
        if self._speculator is not None:
            self._speculator.forget(request_id)

    # -- what the bench, the server and the quality gate ask -----------------------------------------------------------

    def counters(self) -> dict[str, float]:
        """Monotonic counters since load: the scheduler's, and the seconds spent executing steps."""
        return {**self._scheduler.counters(), "step_s": self._step_s}

    def step_work(self) -> list[tuple[str, int, int]]:
        """What the latest step computed: (request id, position of the first token, tokens) of each sequence."""
        if self._latest is None:
            return []
        steps = self._latest.num_steps
        return [(self._rows[s.slot], s.start, s.num_tokens * steps) for s in self._latest.sequences]

    def kv_usage(self) -> dict[str, int]:
        """Tokens whose KV is live, tokens' worth of memory that sequences hold, and the sequences themselves."""
        return {
            "kv_used_tokens": self._scheduler.kv_used_tokens,
            "kv_reserved_tokens": self._scheduler.kv_reserved_tokens,
            "kv_capacity_tokens": self._num_blocks * self.config.block_size,
            "running": self._scheduler.num_running,
            "waiting": self._scheduler.num_waiting,
        }

    def reset_prefix_cache(self) -> None:
        """Forget cached prefixes. Only while no request is in the engine."""
        self._scheduler.reset_prefix_cache()

    def check(self) -> None:
        """Integrity of the block accounting; raises AssertionError on a leak or a double owner."""
        self._scheduler.check()

    def info(self) -> dict[str, Any]:
        """What runs here, for records: versions, memory, kernels."""
        return {
            "version": __version__,
            "model": self.config.model,
            "model_revision": self.files.revision,
            "model_fingerprint": self.files.fingerprint,
            "device": str(self.device),
            "gpu_uuids": cuda_uuids(self.device.index) if self.device.type == "cuda" else [],
            "dtype": str(self._decoder.dtype).removeprefix("torch."),
            "decoder": type(self._decoder).__name__,
            "num_threads": getattr(self._decoder, "num_threads", None) or torch.get_num_threads(),
            "load_s": self.load_s,
            "weight_bytes": self._decoder.weight_bytes,
            "weight_read_bytes": getattr(
                self._decoder, "read_bytes", None
            ),  # by a step; None: not known of this decoder
            "max_model_len": self.max_model_len,
            "kv_bytes_per_token": self._token_bytes,
            "kv_capacity_tokens": self._num_blocks * self.config.block_size,
            "kv_capacity_bytes": self._num_blocks * self.config.block_size * self._token_bytes,
        }

    @torch.inference_mode()
    def logits(self, token_ids: SequenceOf[int]) -> np.ndarray:
        """Float32 logits [n, V] of one sequence, through the same weights and KV format as generation.

        Computed in one step over a scratch cache, so it neither uses nor fills the prefix cache.
        """
        n = len(token_ids)
        if not 1 <= n <= self.max_model_len:
            raise RequestError(f"logits: {n} tokens asked, the context holds 1…{self.max_model_len}")
        scorer = Scorer(self._decoder, n, self.config.kv_quantization, self.config.block_size)
        logits: np.ndarray = scorer.logits(token_ids).cpu().numpy()
        return logits

    def _make_runner(self, decoder: DecoderLike, grammars: EngineCore | None = None) -> Runner:
        return make_runner(
            decoder,
            self.config,
            num_blocks=self._num_blocks,
            max_model_len=self.max_model_len,
            lookahead=self._lookahead,
            eos_token_ids=self.spec.eos_token_ids,
            grammars=grammars,
        )
