"""Times single steps of a model's first layers under given engine settings: kernels as they follow each other, no scheduler.

What a setting of the kernels is worth shows in a few milliseconds here, where a run of the engine would need seconds. The layers
are the model's own (so are their formats), as many as no cache of the machine holds.

Legend: S sequences · T tokens of the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from inferoptim.config import EngineConfig
from inferoptim.engine.kv_cache import allocate_kv_cache
from inferoptim.engine.loading import choose_device, choose_dtype
from inferoptim.kernels import cpu
from inferoptim.models.batch import Batch, KVCache
from inferoptim.models.decoder import Decoder
from inferoptim.models.fused import FusedDecoder, unsupported
from inferoptim.models.hub import resolve_model
from inferoptim.models.load import load_decoder, read_spec

_ENOUGH_BYTES = 256 << 20  # of layers' elements, a byte each: more than a cache holds
_LEAST_S, _LEAST_STEPS = 0.02, 3  # of one timing on a CPU; the fastest of its steps counts
_REPLAYS = 12  # of a captured step in one timing on a GPU; at most `cuda_runner.MAX_BURST`
_TABLE_ALIGN = (
    16  # block tables are as wide as a multiple of it, as the runner's are: kernels are compiled for that
)
_SPARE = 32  # tokens of room behind the context, for steps that move on


class Situation(NamedTuple):
    """One step: `sequences` times `new` tokens, each sequence `context` tokens long with them."""

    sequences: int
    new: int
    context: int

    def describe(self) -> str:
        if self.new == 1:
            return f"decode {self.sequences} at {self.context}"
        return f"prompt {self.new}"


class StepBench(Protocol):
    """A model under one set of settings."""

    def time(self, situation: Situation) -> float:
        """Seconds of one step; the first call for a situation also prepares it."""


class Steps:
    """Makes benches of one model.

    Args:
        folder: of the model.
        engine: EngineConfig fields that hold for every bench.
    """

    def __init__(self, folder: Path, engine: Mapping[str, Any]) -> None:
        self._engine = dict(engine)
        config = self._config({})
        files = resolve_model(str(folder), verify=False)
        self.device = choose_device(config)
        spec = read_spec(files.folder)
        layers = -(-_ENOUGH_BYTES * spec.num_layers // spec.body_parameters)
        self._decoder: Decoder = load_decoder(
            files.folder,
            device=self.device,
            dtype=choose_dtype(config, files.folder, self.device),
            quantization=config.quantization,
            max_layers=layers if layers < spec.num_layers else None,
        )

    def _config(self, settings: Mapping[str, Any]) -> EngineConfig:
        return EngineConfig.create(**{**self._engine, **settings})

    def why_not(self) -> str | None:
        """What keeps this model's steps from being timed here, in a few words; None when nothing does."""
        config = self._config({})
        if config.kernels == "torch" or not config.compiled_step:
            return "the configuration leaves out the kernels that have settings"
        if self.device.type == "cuda":
            from inferoptim.models.cuda import unsupported as unsupported_on_gpu

            return unsupported_on_gpu(self._decoder)
        return unsupported(self._decoder) or cpu.why_not()

    def bench(self, settings: Mapping[str, Any]) -> StepBench:
        """The model under these settings."""
        kind = _GpuBench if self.device.type == "cuda" else _CpuBench
        return kind(self._decoder, self._config(settings))


def _cache(decoder: Decoder, config: EngineConfig, situation: Situation) -> KVCache:
    blocks = situation.sequences * -(-(situation.context + _SPARE) // config.block_size)
    return allocate_kv_cache(
        decoder.spec,
        blocks,
        config.block_size,
        model_dtype=decoder.dtype,
        device=decoder.device,
        kv_quantization=config.kv_quantization,
    )


def _batch(decoder: Decoder, situation: Situation, block_size: int) -> Batch:
    """The step's tensors: random tokens, each sequence's blocks one after the other, the logits of its last token wanted."""
    s, new, context = situation
    device = decoder.device
    blocks = -(-(context + _SPARE) // block_size)
    tables_SM = torch.zeros(s, -(-blocks // _TABLE_ALIGN) * _TABLE_ALIGN, dtype=torch.int32)
    tables_SM[:, :blocks] = torch.arange(s * blocks).view(s, blocks)
    positions_ST = torch.arange(context - new, context).repeat(s, 1)
    slots_ST = tables_SM.gather(1, positions_ST // block_size) * block_size + positions_ST % block_size
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, decoder.spec.vocab_size, (s * new,), generator=generator)
    starts = torch.arange(s + 1, dtype=torch.int32) * new
    return Batch(
        token_ids_T=tokens.to(device, torch.int32),
        positions_T=positions_ST.flatten().to(device, torch.int32),
        slot_mapping_T=slots_ST.flatten().to(device, torch.int32),
        query_start=starts.to(device),
        context_lens_S=torch.full((s,), context, dtype=torch.int32, device=device),
        block_tables_SM=tables_SM.to(device),
        logit_rows_R=(starts[1:] - 1).to(device),
        max_query_len=new,
        max_context_len=context,
    )


class _CpuBench:
    def __init__(self, decoder: Decoder, config: EngineConfig) -> None:
        self._decoder, self._config = decoder, config
        self._fused = FusedDecoder(decoder, config.num_threads, config)
        self._ready: dict[Situation, tuple[Batch, KVCache]] = {}

    def time(self, situation: Situation) -> float:
        if situation not in self._ready:
            batch = _batch(self._decoder, situation, self._config.block_size)
            self._ready[situation] = batch, _cache(self._decoder, self._config, situation)
            self._fused.forward_greedy(*self._ready[situation])
        batch, kv = self._ready[situation]
        seconds: list[float] = []
        while sum(seconds) < _LEAST_S or len(seconds) < _LEAST_STEPS:
            begun = time.perf_counter()
            self._fused.forward_greedy(batch, kv)
            seconds.append(time.perf_counter() - begun)
        return min(seconds)


class _GpuBench:
    def __init__(self, decoder: Decoder, config: EngineConfig) -> None:
        self._source, self._config = decoder, config
        self._ready: dict[Situation, Callable[[], float]] = {}

    @torch.inference_mode()
    def time(self, situation: Situation) -> float:
        if situation not in self._ready:
            self._ready[situation] = self._prepared(situation)
            self._ready[situation]()
        return self._ready[situation]()

    def _prepared(self, situation: Situation) -> Callable[[], float]:
        """The step in a CUDA graph; what it gives replays it and returns the seconds of one replay."""
        from inferoptim.engine.cuda_batch import recorded_event

        step, reset = gpu_step(self._source, self._config, situation)
        step()  # compiles kernels and makes library handles, which a capture must not
        torch.cuda.synchronize()
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()

        def timed() -> float:
            reset()
            begin = recorded_event(timing=True)
            for _ in range(_REPLAYS):
                graph.replay()
            end = recorded_event(timing=True)
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1e3 / _REPLAYS

        return timed


def gpu_step(
    source: Decoder, config: EngineConfig, situation: Situation
) -> tuple[Callable[[], Any], Callable[[], None]]:
    """(one step on static memory, what puts that back to its beginning)."""
    from inferoptim.engine.cuda_runner import MAX_BURST
    from inferoptim.engine.cuda_sampling import SamplingTable
    from inferoptim.models.cuda import CudaDecoder, DecodeStep, RowState
    from inferoptim.models.tiles import Tiles, tile_arrays

    s, new, context = situation
    device = source.device
    decoder = CudaDecoder(
        source, max_num_seqs=s, max_tokens=s * new, max_model_len=context + _SPARE, settings=config
    )
    kv, batch = _cache(source, config, situation), _batch(source, situation, config.block_size)
    if new > 1:
        shapes = (batch.context_lens_S, batch.logit_rows_R)
        arrays = tile_arrays(
            batch.query_start.cpu().numpy(), decoder.tile_tokens, *(tensor.cpu().numpy() for tensor in shapes)
        )
        tiles = Tiles(*(torch.from_numpy(array).to(device) for array in arrays))
        return (lambda: decoder.forward_tiles(batch, kv, tiles)), (lambda: None)
    state = RowState(
        tokens=batch.token_ids_T,
        positions=batch.positions_T.clone(),
        limits=torch.full((s,), context + _SPARE, dtype=torch.int32, device=device),
        block_tables=batch.block_tables_SM,
        sampling=SamplingTable(s, source.spec.vocab_size, source.spec.eos_token_ids, device).rows,
    )
    done = torch.zeros(s, dtype=torch.int32, device=device)
    out = torch.zeros(MAX_BURST, s, dtype=torch.int32, device=device)
    step = DecodeStep(torch.arange(s, dtype=torch.int32, device=device), done, out)

    def reset() -> None:
        state.positions.copy_(batch.positions_T)
        done.zero_()

    return (lambda: decoder.decode(state, step, kv)), reset
