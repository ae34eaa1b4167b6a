"""What a model says of a text that is already written: logits of every position, and how two models differ on it.

Legend: T tokens · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from inferoptim.engine.kv_cache import allocate_kv_cache
from inferoptim.engine.runner import DecoderLike
from inferoptim.models.batch import Batch

Array = NDArray[np.float64]
_ROWS = 32


class Scorer:
    """Runs whole sequences through a decoder, in steps of one or several, on a cache of its own.

    Args:
        decoder: any; on a GPU or CPU.
        max_tokens: of a step: the longest sequence, or several together.
        kv_quantization: of the cache, as in `EngineConfig`.
        block_size: tokens in one of its blocks.
    """

    def __init__(
        self,
        decoder: DecoderLike,
        max_tokens: int,
        kv_quantization: str = "none",
        block_size: int = 16,
    ) -> None:
        self._decoder = decoder
        self._block_size = block_size
        self._kv = allocate_kv_cache(
            decoder.spec,
            -(-max_tokens // block_size),
            block_size,
            model_dtype=decoder.dtype,
            device=decoder.device,
            kv_quantization=kv_quantization,
        )

    @torch.inference_mode()
    def logits(self, *sequences: Sequence[int]) -> torch.Tensor:
        """Float32 logits [T, V] of the sequences, one behind the other; a row for the token after each of theirs."""
        device = self._decoder.device
        lengths = [len(ids) for ids in sequences]
        blocks = [-(-n // self._block_size) for n in lengths]
        firsts = [sum(blocks[:i]) for i in range(len(blocks))]

        def integers(values: Sequence[Any]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        batch = Batch(
            token_ids_T=integers([token for ids in sequences for token in ids]),
            positions_T=integers([at for n in lengths for at in range(n)]),
            slot_mapping_T=integers(
                [
                    first * self._block_size + at
                    for first, n in zip(firsts, lengths, strict=True)
                    for at in range(n)
                ]
            ),
            query_start=integers([sum(lengths[:i]) for i in range(len(lengths) + 1)]),
            context_lens_S=integers(lengths),
            block_tables_SM=integers(
                [
                    [first + min(i, n - 1) for i in range(max(blocks))]
                    for first, n in zip(firsts, blocks, strict=True)
                ]
            ),
            logit_rows_R=torch.arange(sum(lengths), dtype=torch.int32, device=device),
            max_query_len=max(lengths),
            max_context_len=max(lengths),
            contiguous=True,
        )
        return self._decoder.forward(batch, self._kv).float()


@dataclass(frozen=True, slots=True)
class TokenDivergence:
    """Two models on one text, a value for each predicted token (all but the first)."""

    nll_reference: Array  # nats
    nll: Array  # nats
    kl: Array  # KL(reference || other), nats
    top1_equal: Array  # 1 where both put the same token first
    top5_overlap: Array  # share of the reference's five likeliest tokens that are among the other's five

    @property
    def num_tokens(self) -> int:
        return len(self.nll)


def divergence(
    reference_TV: torch.Tensor, other_TV: torch.Tensor, token_ids: Sequence[int]
) -> TokenDivergence:
    """Compare two models' logits of the same text.

    Args:
        reference_TV, other_TV: float32 [T, V], as `Scorer.logits` gives.
    """
    targets_T = torch.tensor(token_ids[1:], dtype=torch.int64)
    length = len(targets_T)
    parts = [  # some rows at a time: a whole text's distributions, several copies of them, would be what fills the memory
        _divergence(reference_TV[a:b], other_TV[a:b], targets_T[a:b])
        for a, b in ((a, min(a + _ROWS, length)) for a in range(0, length, _ROWS))
    ]
    return TokenDivergence(*(np.concatenate(several) for several in zip(*parts, strict=True)))


def _divergence(
    reference_TV: torch.Tensor, other_TV: torch.Tensor, targets_T: torch.Tensor
) -> tuple[Array, ...]:
    """The fields of `TokenDivergence`, in order, for some rows."""
    targets = targets_T[:, None]
    p = F.log_softmax(reference_TV.float().cpu(), dim=-1)
    q = F.log_softmax(other_TV.float().cpu(), dim=-1)
    top_p, top_q = p.topk(5, dim=-1).indices, q.topk(5, dim=-1).indices

    def array(x: torch.Tensor) -> Array:
        return x.double().numpy()

    return (
        array(-p.gather(1, targets)[:, 0]),
        array(-q.gather(1, targets)[:, 0]),
        array((p.exp() * (p - q)).sum(-1).clamp_min(0)),
        array(p.argmax(-1) == q.argmax(-1)),
        array((top_p[:, :, None] == top_q[:, None, :]).any(-1).double().mean(-1)),
    )
