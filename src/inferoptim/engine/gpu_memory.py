"""What a configuration takes of a GPU's memory, said before anything is loaded, and what is left for the KV-cache. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from inferoptim.config import EngineConfig
from inferoptim.errors import CapacityError
from inferoptim.models.spec import ModelSpec
from inferoptim.units import GIB, format_bytes

_LIBRARIES_BYTES = (
    GIB  # cuBLAS workspaces, captured graphs, loaded kernels: under this on every run that was measured
)


MOST_VERIFIED = 512  # tokens of the largest verifying step that is captured


def logit_rows(config: EngineConfig) -> int:
    """Rows of logits that a GPU keeps room for: one a sequence, and with speculation one for every proposal."""
    verified = config.max_num_seqs * (1 + config.num_speculative_tokens)
    more = min(verified, MOST_VERIFIED) if config.speculative != "none" else 0
    return max(config.max_num_seqs, more)


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes on the device."""

    weights: int
    kv_cache: int
    step: int  # activations and logits of the largest step, and what libraries hold

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.step


def needs(spec: ModelSpec, config: EngineConfig, element_bytes: int, token_bytes: int) -> Needs:
    """Bytes that the engine will take.

    Without a stated budget the KV-cache counts as one sequence of full length: the least that it must hold.

    Args:
        element_bytes: of the model's type.
        token_bytes: of one token's KV over all layers, scales included.
    """
    linear = 1 if config.quantization != "none" else element_bytes
    head = 1 if config.quantization.startswith("int8") else element_bytes
    embedding = spec.vocab_size * spec.hidden_size * element_bytes
    shared = spec.tied_embeddings and head == element_bytes
    weights = spec.body_parameters * linear + embedding + (0 if shared else spec.head_parameters * head)
    length = config.max_model_len or spec.max_position
    one = -(-length // config.block_size) * config.block_size * token_bytes
    kv_cache = min(config.kv_budget_bytes or one, one * config.max_num_seqs)
    heads = (2 * spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    width = 3 * spec.hidden_size + heads + 3 * spec.intermediate_size  # rows of the decoder's buffers
    eight_bit = spec.hidden_size + spec.num_heads * spec.head_dim + spec.intermediate_size
    tokens = max(config.max_num_batched_tokens, config.max_num_seqs)
    step = tokens * (width * element_bytes + (eight_bit if config.quantization != "none" else 0))
    # logits and probabilities of every row of logits, token counts of every sequence
    rows = logit_rows(config) * (element_bytes + 4) + config.max_num_seqs * 2
    step += rows * spec.vocab_size + _LIBRARIES_BYTES
    return Needs(weights, kv_cache, step)


def kv_budget(free_bytes: int, total_bytes: int, config: EngineConfig, still_needed_bytes: int) -> int:
    """Bytes for the KV-cache of a loaded model when the configuration states none; 0 when nothing is left.

    Args:
        free_bytes, total_bytes: of the card, the weights and the decoder's buffers already on it.
        still_needed_bytes: what will be allocated after the cache.
    """
    kept_free = round(total_bytes * (1 - config.gpu_memory_utilization))
    return max(0, free_bytes - max(kept_free, _LIBRARIES_BYTES) - still_needed_bytes)


def check_fits(
    need: Needs, free_bytes: int, config: EngineConfig, device_name: str, others_bytes: int = 0
) -> None:
    """Refuse what cannot fit.

    Args:
        others_bytes: what other processes hold of the card.

    Raises:
        CapacityError: how much is missing, and which settings would fit.
    """
    missing = need.total - free_bytes
    if missing <= 0:
        return
    ways = []
    if others_bytes >= missing:
        ways.append("the card without the other processes on it (nvidia-smi lists them)")
    if config.kv_budget_bytes is not None and need.kv_cache > missing:
        ways.append(f"kv_budget_bytes={need.kv_cache - missing}")
    if config.quantization == "none" and need.weights * 0.45 > missing:
        ways.append("quantization=fp8 or int8")
    if config.max_num_batched_tokens > 2048 and need.step - _LIBRARIES_BYTES > missing:
        ways.append("a smaller max_num_batched_tokens")
    advice = (
        "; would fit: " + ", or ".join(ways)
        if ways
        else "; no single setting would make it fit: take a smaller model"
    )
    held = f" ({format_bytes(others_bytes)} are held by other processes)" if others_bytes >= GIB // 2 else ""
    raise CapacityError(
        f"{device_name} has {format_bytes(free_bytes)} free{held} and this takes {format_bytes(need.total)} (weights "
        f"{format_bytes(need.weights)}, KV-cache {format_bytes(need.kv_cache)}, steps {format_bytes(need.step)}): "
        f"{format_bytes(missing)} are missing{advice}"
    )
