"""From logits to tokens: greedy, temperature, top-k, top-p, min-p, penalties, logit bias, seeds, logprobs.

A token is drawn by inverting the distribution at one uniform number that depends only on (seed, position). Hence a
request's output does not depend on its batch, survives a preemption, and is the same with speculation on or off:
each verified position is sampled as it would have been without a draft, and a draft token is accepted when it is what
was drawn. For a draft that proposes a single token (a point-mass proposal q) this *is* rejection sampling: the token
is accepted with probability min(1, p/q) = p, and on rejection the replacement follows (p - q)+, renormalised.
Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", algorithm 1.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from inferoptim.config import SamplingParams
from inferoptim.engine.request import TokenLogprobs

_DRAWN_AT_ONCE = 1 << 24  # probabilities of one batch of draws, so that float64 copies stay under a GiB


def request_seed(sampling: SamplingParams, request_id: str, engine_seed: int) -> int:
    """The 64-bit seed of a request: its own, or one derived from the engine's seed and the request's id."""
    if sampling.seed is not None:
        return sampling.seed & (2**64 - 1)
    digest = hashlib.blake2b(f"{engine_seed}/{request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniform(seed: int, position: int) -> float:
    """A uniform number in [0, 1) that depends on nothing else. Source: Philox-4x64, Salmon et al. 2011."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, position])).random())


@dataclass(frozen=True, slots=True)
class RowContext:
    """What the sampler must know of one row of logits."""

    sampling: SamplingParams
    seed: int
    token_ids: np.ndarray  # every token before the one to choose, prompt first
    num_prompt: int
    banned: tuple[int, ...] = ()  # ids that may not be chosen here (end-of-sequence below min_tokens)
    allowed: np.ndarray | None = None  # bool [V]: what a grammar lets come next

    @property
    def changes_logits(self) -> bool:
        """True when something is done to the logits before the choice."""
        s = self.sampling
        return bool(self.banned or self.allowed is not None or s.logit_bias or s.penalises)


def _has_filter(s: SamplingParams) -> bool:
    return bool(s.top_k or s.top_p < 1.0 or s.min_p)


def sample(logits_RV: torch.Tensor, rows: list[RowContext]) -> list[int]:
    """Choose one token a row, all rows at once and with one wait for the device.

    Args:
        logits_RV: float32 [R, V]; not modified.
        rows: one context a row, in the same order.
    """
    changed = [i for i, row in enumerate(rows) if row.changes_logits]
    if changed:
        logits_RV = logits_RV.clone()
        for i in changed:
            logits_RV[i] = adjust(logits_RV[i], rows[i])
    tokens_R = logits_RV.argmax(dim=-1)
    most = max(1, _DRAWN_AT_ONCE // logits_RV.shape[1])
    for filtered in (False, True):  # apart: only a filtered set has to be sorted
        drawn = [
            i for i, r in enumerate(rows) if not r.sampling.greedy and _has_filter(r.sampling) == filtered
        ]
        for first in range(0, len(drawn), most):
            part = drawn[first : first + most]
            at = torch.tensor(part, device=logits_RV.device)
            tokens_R[at] = _draw(logits_RV[at], [rows[i] for i in part], filtered)
    tokens: list[int] = tokens_R.tolist()
    return tokens


def adjust(logits_V: torch.Tensor, row: RowContext) -> torch.Tensor:
    """Penalties, bias and bans applied to a copy. Penalties as vLLM and the OpenAI API define them:

    repetition divides positive and multiplies negative logits of tokens seen in prompt or output; presence and
    frequency subtract, for tokens of the output only.
    """
    s = row.sampling
    logits_V = logits_V.clone()
    if s.repetition_penalty != 1.0:
        seen = torch.from_numpy(np.unique(row.token_ids)).to(logits_V.device, torch.long)
        values = logits_V[seen]
        logits_V[seen] = torch.where(values > 0, values / s.repetition_penalty, values * s.repetition_penalty)
    if s.presence_penalty or s.frequency_penalty:
        ids, counts = np.unique(row.token_ids[row.num_prompt :], return_counts=True)
        if ids.size:
            index = torch.from_numpy(ids).to(logits_V.device, torch.long)
            penalty = s.presence_penalty + s.frequency_penalty * torch.from_numpy(counts).to(logits_V)
            logits_V[index] -= penalty
    for token_id, bias in s.logit_bias.items():
        logits_V[token_id] += bias
    if row.banned:
        logits_V[list(row.banned)] = -torch.inf
    if row.allowed is not None:
        logits_V.masked_fill_(torch.from_numpy(~row.allowed).to(logits_V.device), -torch.inf)
    return logits_V


def filtered_probabilities(logits_V: torch.Tensor, s: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Temperature, then top-k, top-p and min-p.

    Returns:
        (probabilities, token ids), both over the tokens kept, likeliest first when a filter sorts them, summing to 1.
    """
    probs = torch.softmax(logits_V.double() / s.temperature, dim=-1)
    if not _has_filter(s):
        return probs, torch.arange(probs.numel(), device=probs.device)
    keep = min(s.top_k, probs.numel()) if s.top_k else probs.numel()
    probs, ids = torch.topk(probs, keep)
    mask = torch.ones_like(probs, dtype=torch.bool)
    if s.top_p < 1.0:
        total = probs / probs.sum()
        mask &= (total.cumsum(0) - total) < s.top_p  # the smallest set whose mass reaches top_p
    if s.min_p:
        mask &= probs >= s.min_p * probs[0]
    probs, ids = probs[mask], ids[mask]
    return probs / probs.sum(), ids


def _draw(logits_RV: torch.Tensor, rows: list[RowContext], filtered: bool) -> torch.Tensor:
    """`filtered_probabilities` of every row, inverted in order of ids at its own uniform number; int64 [R]."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits_RV.device)[:, None]

    probs = torch.softmax(logits_RV.double() / column([r.sampling.temperature for r in rows]), dim=-1)
    vocab = probs.shape[1]
    if filtered:
        likeliest = torch.topk(probs, min(vocab, max(r.sampling.top_k or vocab for r in rows))).values
        rank = torch.arange(likeliest.shape[1], device=probs.device)[None, :]
        likeliest = likeliest * (rank < column([float(r.sampling.top_k or vocab) for r in rows]))
        total = likeliest / likeliest.sum(-1, keepdim=True)
        # the smallest set whose mass reaches top_p; 2: a mass that no set reaches
        below = (total.cumsum(-1) - total) < column(
            [r.sampling.top_p if r.sampling.top_p < 1 else 2.0 for r in rows]
        )
        kept = below & (likeliest >= column([r.sampling.min_p for r in rows]) * likeliest[:, :1])
        kept &= likeliest > 0
        edge = likeliest.gather(1, kept.sum(-1, keepdim=True) - 1)  # of equals at it, the lowest ids are kept
        ties = (kept & (likeliest == edge)).sum(-1, keepdim=True)
        tied = probs == edge
        probs = probs * ((probs > edge) | (tied & (tied.cumsum(-1) <= ties)))
    cumulative = probs.cumsum(-1)
    points = column([uniform(r.seed, len(r.token_ids)) for r in rows]) * cumulative[:, -1:]
    last = vocab - 1 - (probs > 0).flip(-1).int().argmax(-1, keepdim=True)
    return torch.minimum(torch.searchsorted(cumulative, points, right=True), last).squeeze(1)


def logprobs_of(logits_RV: torch.Tensor, token_ids: list[int], num_top: int) -> list[TokenLogprobs]:
    """Log-probabilities of `token_ids` (one a row) and of the `num_top` likeliest, before temperature and filters."""
    logprobs = torch.log_softmax(logits_RV.float(), dim=-1)
    chosen = (
        logprobs.gather(1, torch.tensor(token_ids, device=logprobs.device).unsqueeze(1)).squeeze(1).tolist()
    )
    if num_top:
        top_values, top_ids = torch.topk(logprobs, num_top, dim=-1)
        tops = [
            tuple(zip(i, v, strict=True)) for i, v in zip(top_ids.tolist(), top_values.tolist(), strict=True)
        ]
    else:
        tops = [()] * len(token_ids)
    return [TokenLogprobs(t, c, top) for t, c, top in zip(token_ids, chosen, tops, strict=True)]
