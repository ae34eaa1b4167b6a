"""What a GPU's steps will launch, gone through without a GPU while the weights are read: so that kernels are compiled by then.

A forked process builds the decoder on tensors of the device "meta", runs one step of every kind and size that the runner
captures, and compiles what those would launch. Nothing of it reaches the engine but files in Triton's cache. When any
of it fails, or is not done in time, kernels are compiled at their first launch as ever. It and what it started end with
the process that forked it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import signal
import sys
import threading
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import triton

from inferoptim import kernels
from inferoptim.config import MAX_DEVICE_RULES, EngineConfig
from inferoptim.engine.cuda_graphs import ladder
from inferoptim.engine.cuda_runner import MAX_BURST, VARLEN_SEQUENCES, VARLEN_TOKENS, varlen_logit_rows
from inferoptim.engine.gpu_memory import logit_rows
from inferoptim.engine.kv_cache import allocate_kv_cache
from inferoptim.kernels.cuda import compile as cuda_compiler
from inferoptim.kernels.triton.precompile import (
    Job,
    cache_folder,
    collecting,
    compile_side_by_side,
    know_compiler,
)
from inferoptim.kernels.triton.sampling import SamplingRows
from inferoptim.models.batch import Batch, KVCache
from inferoptim.models.cuda import CudaDecoder, DecodeStep, RowState
from inferoptim.models.decoder import Decoder, DecoderWeights, LayerWeights
from inferoptim.models.load import read_spec
from inferoptim.models.spec import ModelSpec
from inferoptim.models.stored_formats import Formats, stored_formats
from inferoptim.models.tiles import Tiles
from inferoptim.quant.formats import DenseWeight, Fp8Weight, Int8Weight, Linear

_log = logging.getLogger(__name__)
_META = torch.device("meta")
_KERNELS = Path(kernels.__file__).parent
_MOST_S = 90.0
_MOST_WORKERS = 24
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


class Preparation:
    """What kernels need before their first launch, found and made beside the reading of weights.

    Args:
        folder, dtype: of the model that is about to be loaded.
        device: a CUDA device, whose context need not exist yet.
    """

    def __init__(self, folder: Path, config: EngineConfig, dtype: torch.dtype, device: torch.device) -> None:
        capability = torch.cuda.get_device_capability(device)
        self._rehearsal = rehearse(folder, config, dtype, capability)

        def ask() -> None:
            know_compiler(capability)
            cuda_compiler.unsupported(device, dtype)

        self._asking = threading.Thread(target=ask, name="compilers", daemon=True)
        self._asking.start()

    def wait(self) -> None:
        """Until all of it is there, or it is plain that it will not be."""
        if self._rehearsal is not None:
            self._rehearsal.wait()
        self._asking.join()


class Rehearsal:
    """A rehearsal on its way in another process."""

    def __init__(self, pid: int) -> None:
        self._over = threading.Event()
        self._pid = pid
        threading.Thread(target=self._reap, name="rehearsal", daemon=True).start()

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            _, status = os.waitpid(self._pid, 0)
            if status:
                _log.debug(
                    "compiling kernels ahead failed (status %d): they are compiled as they are met", status
                )
        self._over.set()

    def wait(self) -> None:
        """Until the kernels are compiled, or it is plain that they will not be."""
        if not self._over.wait(_MOST_S):
            _log.warning("compiling kernels ahead takes over %.0f s: going on without", _MOST_S)
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)


def rehearse(
    folder: Path, config: EngineConfig, dtype: torch.dtype, capability: tuple[int, int]
) -> Rehearsal | None:
    """Begin; None where processes cannot be forked, and where the same rehearsal has filled the cache before.

    Args:
        folder, dtype: of the model that is about to be loaded.
        capability: of the device.
    """
    done = cache_folder() / f"inferoptim-{_name(folder, config, dtype, capability)}"
    if not hasattr(os, "fork") or done.exists():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads do not follow, and none is needed
        parent, pid = os.getpid(), os.fork()
    if pid:
        return Rehearsal(pid)
    status = 1
    try:
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        _end_with(parent)
        torch.set_num_threads(1)  # the threads that a pool thinks it has are the parent's
        asking = threading.Thread(target=know_compiler, args=(capability,))
        asking.start()
        with collecting(capability) as jobs:
            launch_everything(read_spec(folder), config, dtype, stored_formats(folder, config.quantization))
            asking.join()  # and so those forked for a job need not ask
            good = compile_side_by_side(
                [_ending(job) for job in jobs], min(os.cpu_count() or 1, _MOST_WORKERS)
            )
        if good:
            done.parent.mkdir(parents=True, exist_ok=True)
            done.touch()
        status = 0
    finally:
        os._exit(status)


def _ending(job: Job) -> Job:
    """The job in a process that ends with this one."""
    parent = os.getpid()

    def run() -> None:
        _end_with(parent)
        job.run()

    return job._replace(run=run)


def _end_with(parent: int) -> None:
    """Have this process killed when its parent ends, however that ends (Linux; elsewhere it finishes its work)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:  # it was quicker
            os._exit(1)


def _name(folder: Path, config: EngineConfig, dtype: torch.dtype, capability: tuple[int, int]) -> str:
    """Of a rehearsal: the same for two that would compile the same kernels."""
    sources = [path for ending in ("*.py", "*.cu", "*.cuh") for path in sorted(_KERNELS.rglob(ending))]
    asked = config.model_dump(mode="json", exclude={"model", "kv_budget_bytes", "seed"})
    parts = [(folder / "config.json").read_bytes(), json.dumps(asked, sort_keys=True).encode()]
    parts += [repr(stored_formats(folder, config.quantization)).encode()]
    parts += [str((dtype, capability, torch.__version__, triton.__version__, sys.version)).encode()]
    parts += [path.read_bytes() for path in sources]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@torch.inference_mode()
def launch_everything(spec: ModelSpec, config: EngineConfig, dtype: torch.dtype, formats: Formats) -> None:
    """One step of every size that `CudaRunner` captures, and one too large for that, on tensors without memory."""
    if len(set(formats.layers)) > 1:  # what a layer launches also depends on the one before it
        windows = spec.sliding_windows or (None,) * spec.num_layers
    else:  # one layer of each window, and one more: the last computes for the wanted rows alone
        windows = tuple(sorted({spec.window(i) for i in range(spec.num_layers)}, key=str))
        windows = (*windows, windows[-1])
        formats = replace(formats, layers=formats.layers[:1] * len(windows))
    spec = replace(spec, num_layers=len(windows), sliding_windows=windows)
    max_model_len = config.max_model_len or spec.max_position
    decoder = CudaDecoder(
        _decoder(spec, dtype, formats),
        max_num_seqs=config.max_num_seqs, max_tokens=config.max_num_batched_tokens, max_model_len=max_model_len,
        max_logit_rows=logit_rows(config), settings=config,
    )  # fmt: skip
    kv = allocate_kv_cache(
        spec, 2, config.block_size, model_dtype=dtype, device=_META, kv_quantization=config.kv_quantization
    )
    width = -(-max_model_len // config.block_size // 16) * 16 or 16
    rows = config.max_num_seqs
    rules = MAX_DEVICE_RULES + len(spec.eos_token_ids)
    sampling = SamplingRows.allocate(rows, spec.vocab_size, rules, _META)
    state = RowState(
        tokens=_int32(rows), positions=_int32(rows), limits=_int32(rows), block_tables=_int32(rows, width),
        sampling=sampling,
    )  # fmt: skip
    wanted = varlen_logit_rows(decoder.max_logit_rows, config.speculative != "none")
    shapes = [(tokens, min(VARLEN_SEQUENCES, rows), min(tokens, wanted)) for tokens in VARLEN_TOKENS]
    shapes.append((config.max_num_batched_tokens, 2, 2))
    with (  # the first has no form without memory, and for the others torch would import its symbolic algebra
        mock.patch.object(torch, "_scaled_mm", return_value=None),
        mock.patch.object(torch, "mm", return_value=None),
        mock.patch.object(torch.Tensor, "addmm_", return_value=None),
    ):
        for size in ladder(rows):
            with suppress(Exception):  # another size may be of other kernels
                step = DecodeStep(_int32(size), _int32(size), _int32(MAX_BURST, size))
                decoder.decode(state, step, kv)
        for tokens, sequences, wanted in shapes:
            with suppress(Exception):
                _varlen(decoder, kv, sampling, tokens, sequences, wanted, width)


def _varlen(
    decoder: CudaDecoder,
    kv: KVCache,
    rows: SamplingRows,
    tokens: int,
    sequences: int,
    wanted: int,
    width: int,
) -> None:
    batch = Batch(
        token_ids_T=_int32(tokens), positions_T=_int32(tokens), slot_mapping_T=_int32(tokens),
        query_start=_int32(sequences + 1), context_lens_S=_int32(sequences), block_tables_SM=_int32(sequences, width),
        logit_rows_R=_int32(wanted), max_query_len=0, max_context_len=0,
    )  # fmt: skip
    tiles = Tiles(*(_int32(sequences) for _ in range(4)))
    logits = decoder.forward_tiles(batch, kv, tiles)
    decoder.choose(logits, batch, _int32(wanted), rows)


def _int32(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int32, device=_META)


def _decoder(spec: ModelSpec, dtype: torch.dtype, formats: Formats) -> Decoder:
    """A decoder of that shape whose weights have no memory.

    But for the few that are computed with when a decoder is made: on "meta" torch would import its compiler for that.
    """

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=_META)

    def linear(kind: str, n: int, k: int, bias: bool = False) -> Linear:
        vector = tensor(n) if bias else None
        if kind == "fp8":
            return Fp8Weight(tensor(n, k, dtype=torch.float8_e4m3fn), torch.ones(n), vector)
        scale = tensor(n, dtype=torch.float32)
        if kind in ("int8", "int8-weight-only"):
            return Int8Weight(tensor(n, k, dtype=torch.int8), scale, vector, kind == "int8")
        return DenseWeight(tensor(n, k), vector)

    heads, kv, dim, hidden, inter = (
        spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.hidden_size, spec.intermediate_size,
    )  # fmt: skip
    layers = tuple(
        LayerWeights(
            input_norm=tensor(hidden),
            qkv=linear(of.qkv, (heads + 2 * kv) * dim, hidden, spec.qkv_bias),
            q_norm=tensor(dim) if spec.qk_norm else None,
            k_norm=tensor(dim) if spec.qk_norm else None,
            o=linear(of.o, hidden, heads * dim),
            post_norm=tensor(hidden),
            gate_up=linear(of.gate_up, 2 * inter, hidden),
            down=linear(of.down, hidden, inter),
            window=spec.window(index),
        )
        for index, of in enumerate(formats.layers)
    )
    output = tensor(spec.vocab_size, hidden)
    head = DenseWeight(output) if formats.head == "fp8" else linear(formats.head, spec.vocab_size, hidden)
    weights = DecoderWeights(
        embedding=output, layers=layers, final_norm=tensor(hidden), head=head,
        inv_freq=torch.ones(dim // 2),
    )  # fmt: skip
    return Decoder(spec, weights, device=_META, dtype=dtype)
