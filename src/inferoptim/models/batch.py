"""The tensors of one step, as the decoder takes them. Built by the runner; read-only for the decoder.

Legend: T tokens of the step (all sequences, back to back) · S sequences · R rows whose logits are wanted ·
M longest block table · B blocks · P tokens in a block · Hkv KV heads · D head size · L layers · V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """One varlen step: chunked prefill, decode and verification are the same thing, with other query lengths."""

    token_ids_T: torch.Tensor  # int32
    positions_T: torch.Tensor  # int32
    slot_mapping_T: torch.Tensor  # int32: flat KV slot of each token = block * P + offset
    query_start: torch.Tensor  # int32 [S + 1]: tokens of sequence s are [query_start[s], query_start[s + 1])
    context_lens_S: torch.Tensor  # int32: tokens in the cache once this step's are written
    block_tables_SM: torch.Tensor  # int32; entries past a sequence's blocks are 0 and never read
    logit_rows_R: torch.Tensor  # int32 indices into T
    max_query_len: int
    max_context_len: int
    contiguous: bool = (
        False  # every block table is an ascending run: a sequence's cache is one slice (paged_kv off)
    )


@dataclass(frozen=True, slots=True)
class KVLayer:
    """One layer's cache. The decoder writes the step's slots and reads the sequences' own blocks, nothing else."""

    k: torch.Tensor  # [B, P, Hkv, D], model dtype, int8 or float8_e4m3fn
    v: torch.Tensor  # same
    k_scale: torch.Tensor | None = None  # float32 [B, P, Hkv]: one scale per written vector, if quantised
    v_scale: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class KVCache:
    """All layers' cache. Allocated once by the engine within kv_budget_bytes."""

    layers: tuple[KVLayer, ...]
    block_size: int
    num_blocks: int
