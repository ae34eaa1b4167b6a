"""How long sequences may be, how many blocks there are, and the runner of a decoder: what a step loop is put together from."""

from __future__ import annotations

from typing import Any

import torch

from inferoptim.config import EngineConfig
from inferoptim.engine.kv_cache import allocate_kv_cache, num_blocks_within
from inferoptim.engine.loading import default_kv_budget
from inferoptim.engine.runner import DecoderLike, GrammarSource, Runner
from inferoptim.errors import CapacityError, ConfigError
from inferoptim.models.spec import ModelSpec


def model_len(config: EngineConfig, spec: ModelSpec) -> int:
    """Tokens of the longest sequence.

    Raises:
        ConfigError: more than the model was trained for.
    """
    asked, most = config.max_model_len, spec.max_position
    if asked is not None and asked > most:
        raise ConfigError(
            f"max_model_len={asked} is above what {config.model} was trained for ({most} tokens)"
        )
    return asked or most


def count_blocks(
    config: EngineConfig,
    device: torch.device,
    spec: ModelSpec,
    *,
    token_bytes: int,
    max_model_len: int,
    lookahead: int,
) -> int:
    """Blocks for the budget; no more than every row at full length could use.

    Args:
        token_bytes: KV of one token, the draft model's included.
        lookahead: tokens proposed beyond a sequence's last.
    """
    budget = config.kv_budget_bytes or default_kv_budget(config, device, spec)
    blocks = num_blocks_within(budget, config.block_size, token_bytes, max_model_len)
    return min(blocks, config.max_num_seqs * -(-(max_model_len + lookahead) // config.block_size))


def make_runner(
    decoder: DecoderLike,
    config: EngineConfig,
    *,
    num_blocks: int,
    max_model_len: int,
    lookahead: int,
    eos_token_ids: tuple[int, ...],
    grammars: GrammarSource | None,
) -> Runner:
    """The runner for this decoder with a KV-cache of its own; on a GPU, with its steps captured.

    Raises:
        CapacityError: the GPU's memory ran out.
    """
    kv = allocate_kv_cache(
        decoder.spec,
        num_blocks,
        config.block_size,
        model_dtype=decoder.dtype,
        device=decoder.device,
        kv_quantization=config.kv_quantization,
    )
    fields: dict[str, Any] = {
        "max_num_seqs": config.max_num_seqs,
        "max_model_len": max_model_len,
        "max_draft": lookahead,
        "contiguous": not config.paged_kv,
        "seed": config.seed,
        "eos_token_ids": eos_token_ids,
        "grammars": grammars,
    }
    if decoder.device.type == "cpu" or config.kernels == "torch":
        return Runner(decoder, kv, **fields)
    from inferoptim.engine.cuda_runner import CudaRunner
    from inferoptim.models.cuda import CudaDecoder

    assert isinstance(decoder, CudaDecoder), "load_target and load_draft give no other on a GPU"
    try:
        runner = CudaRunner(decoder, kv, graphs=config.compiled_step, **fields)
        runner.capture()
    except torch.OutOfMemoryError as error:
        raise CapacityError(
            "the GPU's memory ran out while steps were captured: lower gpu_memory_utilization, kv_budget_bytes or "
            f"max_num_seqs, or see with nvidia-smi who else uses the card ({error})"
        ) from error
    return runner
