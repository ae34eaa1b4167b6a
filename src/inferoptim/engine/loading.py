"""Which device, type and op set a configuration gets, and the decoders built for it."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from inferoptim.config import DEFAULT_KV_BUDGET_BYTES, EngineConfig
from inferoptim.engine.gpu_memory import check_fits, kv_budget, logit_rows, needs
from inferoptim.engine.kv_cache import bytes_per_token
from inferoptim.engine.runner import DecoderLike
from inferoptim.errors import ConfigError, UnsupportedError
from inferoptim.models.decoder import Decoder
from inferoptim.models.hub import ModelFiles, resolve_model
from inferoptim.models.load import load_decoder, read_spec, without_groups
from inferoptim.models.spec import ModelSpec

if TYPE_CHECKING:
    from inferoptim.engine.rehearsal import Preparation

_log = logging.getLogger(__name__)
_CONTEXT_BYTES = 600 << 20  # what a process's CUDA context takes: about half a GiB on an H100
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(config: EngineConfig) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        UnsupportedError: cuda was asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise UnsupportedError(
            "device=cuda, but torch sees no NVIDIA GPU here; run `inferoptim doctor`, or use device=cpu"
        )
    kind = config.device if config.device != "auto" else ("cuda" if has_cuda else "cpu")
    if kind == "cpu" and "fp8" in (config.quantization, config.kv_quantization):
        raise UnsupportedError(
            "fp8 needs an NVIDIA GPU (SM 8.9 or later) and there is none here; on a CPU use int8"
        )
    return torch.device(kind)


def choose_dtype(config: EngineConfig, folder: Path, device: torch.device) -> torch.dtype:
    """The type asked for; auto = the checkpoint's.

    But bfloat16 for float16 on a CPU (same size, native there), and for float32 on a GPU (what its tensor cores take).
    """
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    dtype = _DTYPES.get(read_spec(folder).torch_dtype, torch.bfloat16)
    foreign = torch.float16 if device.type == "cpu" else torch.float32
    return torch.bfloat16 if dtype == foreign else dtype


def check_gpu_memory(folder: Path, config: EngineConfig, device: torch.device) -> None:
    """Refuse a configuration that cannot fit the device, before anything is loaded.

    Raises:
        CapacityError: how much is missing, and which settings would fit.
    """
    spec = read_spec(folder)
    dtype = choose_dtype(config, folder, device)
    need = needs(spec, config, dtype.itemsize, bytes_per_token(spec, dtype, config.kv_quantization))
    free, total = torch.cuda.mem_get_info(device)
    mine = torch.cuda.memory_reserved(device)
    others = max(0, total - free - mine - _CONTEXT_BYTES)
    free += mine - torch.cuda.memory_allocated(device)  # held by torch, used by nobody
    check_fits(need, free, config, torch.cuda.get_device_name(device), others)


def default_kv_budget(config: EngineConfig, device: torch.device, spec: ModelSpec) -> int:
    """Bytes for the KV-cache of the model that is loaded, when the configuration states none."""
    if device.type == "cpu":
        return DEFAULT_KV_BUDGET_BYTES
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    if config.kernels == "torch":  # activations come and go
        still = needs(spec, config, 4, 0).step
    else:  # the decoder holds its buffers already; token counts for penalties come
        still = 2 * config.max_num_seqs * spec.vocab_size
    return kv_budget(free, total, config, still)


def load_target(folder: Path, config: EngineConfig, device: torch.device) -> DecoderLike:
    """The model that answers, on the op set that the configuration asks for.

    On a CPU, `compiled_step` puts all layers of a step into one native call; without a compiler, torch operators take
    over and `kernels.cpu.why_not()` says why (kernels='native' refuses instead). On a GPU it is a matter of the runner:
    captured or not, the kernels are the same; a model that they cannot take is refused.
    """
    decoder = load_decoder(
        folder,
        device=device,
        dtype=choose_dtype(config, folder, device),
        quantization=config.quantization,
    )
    return _compile(decoder, config)


def prepare_kernels(folder: Path, config: EngineConfig, device: torch.device) -> Preparation | None:
    """Begin to compile, in other processes, the kernels that a GPU will want once its weights are read."""
    if device.type != "cuda" or config.kernels == "torch":
        return None
    from inferoptim.engine.rehearsal import Preparation

    return Preparation(folder, config, choose_dtype(config, folder, device), device)


def load_draft(
    files: ModelFiles, target: DecoderLike, config: EngineConfig, device: torch.device
) -> DecoderLike:
    """The model that proposes: another one of the same vocabulary, or 'self:N' = the target's first N layers in int8.

    Raises:
        ConfigError: self:N with an N that the target does not have.
        UnsupportedError: another vocabulary.
    """
    assert config.draft_model is not None
    name, _, layers = config.draft_model.partition(":")
    quantization = "int8" if device.type == "cpu" else config.quantization
    if name == "self":
        if not layers.isdigit() or not 1 <= int(layers) < target.spec.num_layers:
            raise ConfigError(
                f"draft_model={config.draft_model}: write self:N with 1 <= N < {target.spec.num_layers} (the target's layers)"
            )
        decoder = load_decoder(
            files.folder, device=device, dtype=target.dtype, quantization=quantization, max_layers=int(layers)
        )
    else:
        draft_files = resolve_model(config.draft_model)
        decoder = load_decoder(
            draft_files.folder, device=device, dtype=target.dtype, quantization=quantization
        )
        if decoder.spec.vocab_size != target.spec.vocab_size:
            raise UnsupportedError(
                f"draft_model={config.draft_model} has {decoder.spec.vocab_size} tokens in its vocabulary, the target "
                f"{target.spec.vocab_size}: a draft must share the target's tokenizer"
            )
    return _compile(decoder, config)


def _compile(decoder: Decoder, config: EngineConfig) -> DecoderLike:
    if config.kernels == "torch":
        return without_groups(decoder)
    if decoder.device.type == "cuda":
        from inferoptim.models.cuda import CudaDecoder

        return CudaDecoder(
            decoder,
            max_num_seqs=config.max_num_seqs,
            max_tokens=config.max_num_batched_tokens,
            max_model_len=config.max_model_len or decoder.spec.max_position,
            max_logit_rows=logit_rows(config),
            settings=config,
        )
    if not config.compiled_step:
        return without_groups(decoder)
    from inferoptim.kernels import cpu
    from inferoptim.models.fused import FusedDecoder, unsupported

    why_not = unsupported(decoder) or cpu.why_not()
    if why_not is None:
        return FusedDecoder(decoder, config.num_threads, config)
    if config.kernels == "native":
        raise UnsupportedError(f"kernels=native: {why_not}; use kernels=auto to run on torch operators")
    _announce_fallback(why_not)
    return without_groups(decoder)


@cache
def _announce_fallback(why_not: str) -> None:
    _log.warning("the native CPU step is off (%s); torch operators take over, several times slower", why_not)
