"""The choice of tokens: greedy, drawn, with penalties and bias; and the state that a step hands to the next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from inferoptim.kernels import reference
from inferoptim.kernels.triton import sampling
from inferoptim.kernels.triton.selfcheck.inputs import Comparison, Inputs

_FILTERS: tuple[tuple[int, float, float], ...] = (  # top_k, top_p, min_p
    (0, 1.0, 0.0), (1, 1.0, 0.0), (7, 1.0, 0.0), (0, 0.9, 0.0), (0, 0.3, 0.0), (0, 1.0, 0.05), (20, 0.8, 0.0),
    (5, 0.999, 0.2), (0, 1e-6, 0.0), (40, 0.95, 0.01),
)  # fmt: skip


def greedy_rows(i: Inputs, rows: int, vocab: int) -> sampling.SamplingRows:
    """Every row greedy, with nothing else asked."""
    held = sampling.SamplingRows.allocate(rows, vocab, 4, i.device)
    held.fields[:, sampling.TOP_K] = vocab
    return held


def choices(i: Inputs) -> Iterator[Comparison]:
    for rows, vocab in ((3, 70),) if i.small else ((1, 50), (5, 4096), (33, 32000), (4, 128256)):
        yield from _greedy(i, rows, vocab)
    for rows, vocab in ((10, 70),) if i.small else ((40, 50), (40, 1000), (20, 32000), (10, 128256)):
        for tied in (False, True):
            yield from _drawn(i, rows, vocab, tied)
    for vocab in (70,) if i.small else (50, 32000):
        yield from _adjusted(i, vocab)


def _scratch(
    i: Inputs, rows: int, vocab: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    shares = rows * (-(-vocab // sampling.SHARE))
    return (
        i.poison(rows, vocab, dtype=torch.float32),
        i.poison(shares, dtype=torch.float32),
        i.poison(shares, dtype=torch.int32),
        i.poison(rows, sampling.NEAR, dtype=torch.float32),
    )


def _advance(
    i: Inputs,
    logits: torch.Tensor,
    held: sampling.SamplingRows,
    scratch: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    shares: int,
    *,
    slots: torch.Tensor,
    positions: torch.Tensor,
    done: list[int],
    steps: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(tokens of the batch, steps done, what was given out) after one step; 9 and -5 where nothing was written."""
    probs, best, best_at, near = scratch
    tokens = i.ints([9] * positions.shape[0])
    counter, out = i.ints(done), i.ints([[-5] * logits.shape[0]] * steps)
    sampling.advance(
        best, best_at, shares, held, probs, near, slots=slots, tokens=tokens, positions=positions, done=counter, out=out
    )  # fmt: skip
    return tokens, counter, out


def _greedy(i: Inputs, rows: int, vocab: int) -> Iterator[Comparison]:
    logits = i.normal(rows, vocab)
    logits[0, vocab // 2] = logits[0, vocab - 1] = 60.0  # a tie: the lower id
    held = greedy_rows(i, rows + 1, vocab)
    scratch = probs, best, best_at, near = _scratch(i, rows, vocab)
    members = [*range(rows)][::-1]
    members[0] = -1 if rows > 1 else 0
    slots, positions = i.ints(members), i.ints(range(rows + 1))
    shares = sampling.adjust_shares(logits, slots, positions, held, probs, best, best_at)
    out = i.poison(rows, dtype=torch.int32)
    sampling.choose(best, best_at, shares, slots, positions, i.ints([0] * rows), held, probs, near, out)
    expected = logits.float().cpu().numpy().argmax(1)
    yield f"argmax {rows}x{vocab}", out, i.ints(expected), 0.0
    tokens, done, chosen = _advance(
        i, logits, held, scratch, shares, slots=slots, positions=positions, done=[1] * rows, steps=3
    )
    wanted, at, steps = [9] * (rows + 1), list(range(rows + 1)), [1] * rows
    given = [[-5] * rows for _ in range(3)]
    for s, r in enumerate(members):
        if r >= 0:
            wanted[r], at[r], steps[s], given[1][s] = int(expected[s]), at[r] + 1, 2, int(expected[s])
    yield f"advance tokens {rows}x{vocab}", tokens, i.ints(wanted), 0.0
    yield f"advance positions {rows}x{vocab}", positions, i.ints(at), 0.0
    yield f"advance steps {rows}x{vocab}", done, i.ints(steps), 0.0
    yield f"advance out {rows}x{vocab}", chosen, i.ints(given), 0.0


def _drawn(i: Inputs, rows: int, vocab: int, tied: bool) -> Iterator[Comparison]:
    """Each drawn token's share of the mass must hold the request's number, up to the rounding of sums.

    Args:
        tied: few different logits, so that thresholds fall among equals.
    """
    logits = i.normal(rows, vocab, scale=3.0)
    if tied:
        logits = logits.round()
    held = greedy_rows(i, rows, vocab)
    fields = held.fields.cpu().numpy()
    real = fields.view(np.float32)
    seeds = [0x9E3779B97F4A7C15 * (r + 1) % 2**64 for r in range(rows)]
    positions = [3 + 7 * r for r in range(rows)]
    for r in range(rows):
        top_k, top_p, min_p = _FILTERS[r % len(_FILTERS)]
        real[r, [sampling.TEMPERATURE, sampling.TOP_P, sampling.MIN_P]] = (0.7 + 0.3 * (r % 3), top_p, min_p)
        fields[r, sampling.TOP_K] = min(top_k or vocab, vocab)
        words = np.array([seeds[r]], dtype=np.uint64).view(np.int32)
        fields[r, [sampling.SEED_LOW, sampling.SEED_HIGH]] = words
    held.fields.copy_(torch.from_numpy(fields))
    slots = i.permutation(rows)  # row s of the logits belongs to row slots[s] of the batch
    probs, best, best_at, near = _scratch(i, rows, vocab)
    at = i.ints(positions)
    shares = sampling.adjust_shares(logits, i.ints(slots), at, held, probs, best, best_at)
    yield f"adjusted logits {rows}x{vocab}", probs, logits, 1e-6
    out = i.poison(rows, dtype=torch.int32)
    sampling.choose(best, best_at, shares, i.ints(slots), at, i.ints(slots), held, probs, near, out)
    misses = []
    for s, slot in enumerate(slots):
        top_k, top_p, min_p = _FILTERS[slot % len(_FILTERS)]
        p = torch.softmax(logits[s].double() / float(real[slot, sampling.TEMPERATURE]), 0).cpu()
        kept = reference.keep_likeliest(p, top_k, top_p, min_p)
        stream = np.random.Philox(key=seeds[slot], counter=[0, 0, 0, positions[slot] + 1])
        u = float(np.random.Generator(stream).random())
        token = int(out[s])
        mass = torch.where(kept, p, 0.0)
        below = (mass.cumsum(0) / mass.sum()).tolist()
        low = below[token - 1] if token else 0.0
        misses.append(max(low - u, u - below[token], 0.0) if kept[token] else 1.0)
    name = f"drawn tokens {rows}x{vocab}{' tied' if tied else ''}"
    yield name, 1 + torch.tensor(misses), torch.ones(rows), 1e-5


def _adjusted(i: Inputs, vocab: int) -> Iterator[Comparison]:
    """Penalties, bias and barred tokens; and that the tokens given are counted."""
    rows = 3
    logits = i.normal(rows, vocab, scale=3.0)
    prompt, output = i.ints([1, 4, 4, 9, vocab - 1]), i.ints([4, 7, 7, 7, 12])
    held = greedy_rows(i, rows, vocab)
    fields = held.fields.cpu().numpy()
    real = fields.view(np.float32)
    wanted: dict[str, Any] = {"repetition": 1.3, "presence": 0.5, "frequency": 0.25}
    real[:, sampling.TEMPERATURE] = (1.0, 0.0, 1.0)
    real[:, sampling.TOP_P] = 1.0
    real[:2, [sampling.REPETITION, sampling.PRESENCE, sampling.FREQUENCY]] = list(wanted.values())
    fields[:2, sampling.PENALISED] = 1
    fields[:, sampling.RULES] = (3, 0, 2)
    rules = np.zeros((rows, 3, 4), dtype=np.int32)
    rules[:, 0, :3] = (2, 4, 5)
    rules[:, 1, :3] = np.array([1.5, -2.0, -np.inf], dtype=np.float32).view(np.int32)
    rules[:, 2, :3] = (2**31 - 1, 2**31 - 1, 20)  # the last until position 20
    held.fields.copy_(torch.from_numpy(fields))
    held.rules.copy_(torch.from_numpy(rules))
    counts = torch.bincount(output.long(), minlength=vocab)
    counts[prompt.long()] |= sampling.IN_PROMPT
    held.counts[:2] = counts.to(torch.int16)
    positions, slots = i.ints([18, 30, 40]), i.ints([0, 1, 2])
    scratch = probs, best, best_at, _ = _scratch(i, rows, vocab)
    probs[1] = 0  # a greedy row's are not written
    shares = sampling.adjust_shares(logits, slots, positions, held, probs, best, best_at)
    bias = {2: 1.5, 4: -2.0}
    barred = reference.adjust_logits(logits[0], prompt, output, **wanted, added={**bias, 5: -1e9})
    probs[0, 5] = torch.where(torch.isneginf(probs[0, 5]), -1e9, torch.nan)
    yield f"penalties, bias, a barred token {vocab}", probs[0], barred, i.limit
    nothing = i.ints([])
    biased = reference.adjust_logits(logits[2], nothing, nothing, added=bias)
    yield f"bias {vocab}", probs[2], biased, i.limit
    probs[0, 5] = -torch.inf
    tokens, _, _ = _advance(
        i, logits, held, scratch, shares, slots=slots, positions=positions, done=[0] * rows, steps=1
    )
    greedy = reference.adjust_logits(logits[1], prompt, output, **wanted)
    yield f"greedy with penalties {vocab}", greedy[tokens[1].long()], greedy.max(), 1e-5
    for row in range(2):
        after = counts.clone()
        after[tokens[row].long()] += 1
        yield f"counts {vocab}", held.counts[row], after.to(torch.int16), 0.0
    yield f"no counts {vocab}", held.counts[2].float() + 1, torch.ones(vocab, device=i.device), 0.0
