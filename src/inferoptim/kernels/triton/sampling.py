"""Greedy choice on the device, and the state that lets the next step start without the host.

Legend: R rows of logits · V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferoptim.kernels.triton.launch import next_power_of_2, options

SHARE = 4096  # tokens of the vocabulary that one program looks at


@triton.jit
def _argmax_shares(
    logits_ptr, best_ptr, best_at_ptr, V, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x = tl.load(logits_ptr + row * V + n, mask=n < V, other=float("-inf")).to(tl.float32)
    best = tl.max(x)
    at = tl.min(tl.where(x == best, n, 2147483647))
    tl.store(best_ptr + row * tl.num_programs(1) + tl.program_id(1), best)
    tl.store(best_at_ptr + row * tl.num_programs(1) + tl.program_id(1), at)


@triton.jit
def _best_share(best_ptr, best_at_ptr, row, shares, BLOCK: tl.constexpr):
    """The token of the best share; the lowest id among equals, as shares are in order of ids."""
    s = tl.arange(0, BLOCK)
    best = tl.load(best_ptr + row * shares + s, mask=s < shares, other=float("-inf"))
    at = tl.load(best_at_ptr + row * shares + s, mask=s < shares, other=2147483647)
    return tl.min(tl.where(best == tl.max(best), at, 2147483647))


@triton.jit
def _choose(best_ptr, best_at_ptr, out_ptr, shares, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    tl.store(out_ptr + row, _best_share(best_ptr, best_at_ptr, row, shares, BLOCK))


@triton.jit
def _advance(
    best_ptr, best_at_ptr, rows_ptr, tokens_ptr, positions_ptr, done_ptr, out_ptr, shares, vocab,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = _best_share(best_ptr, best_at_ptr, i, shares, BLOCK)
    token = tl.minimum(token, vocab - 1)  # logits that are all NaN choose nothing
    row = tl.load(rows_ptr + i).to(tl.int64)
    if row >= 0:
        done = tl.load(done_ptr + i)
        tl.store(out_ptr + done.to(tl.int64) * tl.num_programs(0) + i, token)
        tl.store(done_ptr + i, done + 1)
        tl.store(tokens_ptr + row, token)
        tl.store(positions_ptr + row, tl.load(positions_ptr + row) + 1)


def _warps(block: int) -> int:
    return max(1, min(16, block // 256))


def argmax_shares(logits_RV: torch.Tensor, best: torch.Tensor, best_at: torch.Tensor) -> int:
    """The likeliest token of each share of each row.

    Returns:
        n, the number of shares: `best[: R * n]` and `best_at[: R * n]` are written, row by row.
    """
    rows, vocab = logits_RV.shape
    shares = -(-vocab // SHARE)
    _argmax_shares[(rows, shares)](
        logits_RV, best, best_at, vocab, BLOCK=SHARE, num_warps=8, **options(logits_RV.device)
    )
    return shares


def choose(best: torch.Tensor, best_at: torch.Tensor, shares: int, out_R: torch.Tensor) -> None:
    """The likeliest token of each row, the lowest id among equals."""
    block = next_power_of_2(shares)
    _choose[(out_R.shape[0],)](
        best, best_at, out_R, shares, BLOCK=block, num_warps=_warps(block), **options(best.device)
    )


def advance(
    best: torch.Tensor,
    best_at: torch.Tensor,
    shares: int,
    vocab: int,
    *,
    rows: torch.Tensor,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    done: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """End a decode step on the device: choose, hand the token to the next step, move every row on by one position.

    Args:
        rows: int32 [R]: rows of the batch, -1 = none.
        tokens, positions: int32 [rows of the batch]; updated.
        done: int32 [R]: steps done since the host last set it to 0; updated.
        out: int32 [steps, R] of this batch size: row `done` is written.
    """
    block = next_power_of_2(shares)
    _advance[(rows.shape[0],)](
        best, best_at, rows, tokens, positions, done, out, shares, vocab, BLOCK=block, num_warps=_warps(block),
        **options(best.device),
    )  # fmt: skip
