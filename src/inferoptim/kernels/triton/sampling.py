"""The choice of a token on the device, and the state that lets the next step start without the host.

Two kernels end every step. `adjust_shares` changes the logits as the requests ask (penalties, bias, bans) and finds the
best of each share of the vocabulary; `norm_head` in gemv.py does the same for very small batches. `choose` takes the
best, or draws: it inverts the distribution over the kept tokens, in order of ids, at one number that depends on (seed,
position) alone, as `engine/sampler.py` does on the host. The kept tokens are those above one threshold, and as many of
those at it as still belong to the set, lowest ids first: so nothing is sorted, the threshold is found by bisection, among
all tokens until few are left between its ends, then among those few in registers.

Legend: R rows of logits · V vocabulary · rows: rows of the runner's persistent batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from inferoptim.kernels.triton.launch import next_power_of_2, options

SHARE = 4096  # tokens of the vocabulary that one program looks at
NUM_FIELDS = 16  # int32 words of `SamplingRows.fields`, floats by their bits; their order:
TEMPERATURE, TOP_K, TOP_P, MIN_P, REPETITION, PRESENCE, FREQUENCY, PENALISED, RULES, SEED_LOW, SEED_HIGH = (
    range(11)
)
IN_PROMPT = -32768  # the bit of `SamplingRows.counts` of a token that stands in the prompt
MAX_COUNT = 32767

AT_TEMPERATURE, _TOP_K, _TOP_P, _MIN_P = map(tl.constexpr, (TEMPERATURE, TOP_K, TOP_P, MIN_P))
_REPETITION, _PRESENCE, _FREQUENCY = map(tl.constexpr, (REPETITION, PRESENCE, FREQUENCY))
_PENALISED, _RULES, _SEED_LOW, _SEED_HIGH = map(tl.constexpr, (PENALISED, RULES, SEED_LOW, SEED_HIGH))
_FIELDS = tl.constexpr(NUM_FIELDS)
_MAX_COUNT = tl.constexpr(MAX_COUNT)
_ONE = tl.constexpr(0x3F800000)  # bits of 1.0
_NOBODY = tl.constexpr(2147483647)
_ALL_TIES = tl.constexpr(1 << 30)
_CHUNK = 8192  # tokens of the vocabulary that `choose` holds at once
NEAR = 4096  # tokens between the ends of the bisection that it gathers; a power of 2


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """How the tokens of each row of the batch are chosen. Owner: the runner; `choose` counts the tokens it gives."""

    fields: torch.Tensor  # int32 [rows, NUM_FIELDS]; TOP_K = V for all
    rules: (
        torch.Tensor
    )  # int32 [rows, 3, N]: token ids; bits of what is added to its logit; up to which position
    counts: (
        torch.Tensor
    )  # int16 [rows, V]: times in the output, and IN_PROMPT; kept only for rows with penalties

    @classmethod
    def allocate(cls, rows: int, vocab: int, rules: int, device: torch.device) -> SamplingRows:
        """Every row greedy."""
        return cls(
            fields=torch.zeros(rows, NUM_FIELDS, dtype=torch.int32, device=device),
            rules=torch.zeros(rows, 3, rules, dtype=torch.int32, device=device),
            counts=torch.zeros(rows, vocab, dtype=torch.int16, device=device),
        )


@triton.jit
def field(fields_ptr, row, FIELD: tl.constexpr):
    return tl.load(fields_ptr + row * _FIELDS + FIELD).to(tl.float32, bitcast=True)


@triton.jit
def adjusted(x, n, V, row, at, fields_ptr, rules_ptr, counts_ptr, MOST_RULES: tl.constexpr):
    """The logits x of tokens n as the request of `row` wants them, for the token at position `at`."""
    if tl.load(fields_ptr + row * _FIELDS + _PENALISED) != 0:
        seen = tl.load(counts_ptr + row * V + n, mask=n < V, other=0).to(tl.int32)
        repetition = field(fields_ptr, row, _REPETITION)
        penalised = tl.where(x > 0, x / repetition, x * repetition)
        x = tl.where(seen != 0, penalised, x)
        given = (seen & _MAX_COUNT).to(tl.float32)
        penalty = field(fields_ptr, row, _PRESENCE) + field(fields_ptr, row, _FREQUENCY) * given
        x = tl.where(given > 0, x - penalty, x)
    rule = rules_ptr + row * (3 * MOST_RULES)
    for r in range(tl.load(fields_ptr + row * _FIELDS + _RULES)):
        value = tl.load(rule + MOST_RULES + r).to(tl.float32, bitcast=True)
        applies = (n == tl.load(rule + r)) & (at < tl.load(rule + 2 * MOST_RULES + r))
        x = tl.where(applies, x + value, x)
    return x


@triton.jit
def _adjust_shares(
    logits_ptr, slots_ptr, positions_ptr, at_ptr, fields_ptr, rules_ptr, counts_ptr, probs_ptr, best_ptr, best_at_ptr,
    V, BY_ROW: tl.constexpr, MOST_RULES: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.load(slots_ptr + i).to(tl.int64)
    row = tl.maximum(slot, 0)
    where = row
    if not BY_ROW:
        where = tl.load(at_ptr + i).to(tl.int64)
    at = tl.load(positions_ptr + where) + 1
    x = tl.load(logits_ptr + i * V + n, mask=n < V, other=float("-inf")).to(tl.float32)
    x = adjusted(x, n, V, row, at, fields_ptr, rules_ptr, counts_ptr, MOST_RULES)
    if (slot >= 0) & (field(fields_ptr, row, AT_TEMPERATURE) > 0):
        tl.store(probs_ptr + i * V + n, x, mask=n < V)
    best = tl.max(x)
    best_at = tl.min(tl.where(x == best, n, _NOBODY))
    tl.store(best_ptr + i * tl.num_programs(1) + tl.program_id(1), best)
    tl.store(best_at_ptr + i * tl.num_programs(1) + tl.program_id(1), best_at)


@triton.jit
def uniform(seed_low, seed_high, position):
    """A float64 in [0, 1) that depends on nothing else; the number of `engine.sampler.uniform`.

    Source: Philox-4x64-10, Salmon et al. 2011; counter (1, 0, 0, position), key (seed, 0), first word.
    """
    m0 = tl.full((), 0xD2E7470EE14C6C93, tl.uint64)
    m1 = tl.full((), 0xCA5A826395121157, tl.uint64)
    key0 = (seed_low.to(tl.uint32, bitcast=True).to(tl.uint64)) | (
        seed_high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32
    )
    key1 = tl.full((), 0, tl.uint64)
    c0 = tl.full((), 1, tl.uint64)
    c1 = tl.full((), 0, tl.uint64)
    c2 = tl.full((), 0, tl.uint64)
    c3 = position.to(tl.uint64)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(m0, c0)
        low0 = m0 * c0
        high1 = tl.umulhi(m1, c2)
        low1 = m1 * c2
        c0 = high1 ^ c1 ^ key0
        c1 = low1
        c2 = high0 ^ c3 ^ key1
        c3 = low0
        key0 = key0 + tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
        key1 = key1 + tl.full((), 0xBB67AE8584CAA73B, tl.uint64)
    return (c0 >> 11).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16  # 2^-53


@triton.jit
def _float(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _above(probs_ptr, V, edge, CHUNK: tl.constexpr):
    """(how many, their sum): probabilities whose bits are at least `edge`."""
    count = tl.zeros((CHUNK,), tl.int32)
    mass = tl.zeros((CHUNK,), tl.float32)
    for start in range(0, V, CHUNK):
        n = start + tl.arange(0, CHUNK)
        p = tl.load(probs_ptr + n, mask=n < V, other=-1.0)
        kept = p.to(tl.int32, bitcast=True) >= edge
        count += kept.to(tl.int32)
        mass += tl.where(kept, p, 0.0)
    return tl.sum(count), tl.sum(mass)


@triton.jit
def _edge(
    probs_ptr, near_ptr, V, low, n_low, wanted,
    BY_MASS: tl.constexpr, CHUNK: tl.constexpr, NEAR: tl.constexpr,
):  # fmt: skip
    """The largest bits that enough probabilities reach: `wanted` of them, or ones whose sum is `wanted`.

    Args:
        low, n_low: bits that enough are known to reach, and how many do.

    Returns:
        (the bits, how many reach them, how many exceed them, the sum of those that exceed).
    """
    high = tl.full((), _ONE + 1, tl.int32)  # bits that too few reach
    n_high = tl.full((), 0, tl.int32)  # how many do
    m_high = tl.full((), 0.0, tl.float32)  # and their sum
    while (n_low - n_high > NEAR) & (high - low > 1):
        middle = low + (high - low) // 2
        n, m = _above(probs_ptr, V, middle, CHUNK)
        reached = m if BY_MASS else n
        if reached >= wanted:
            low = middle
            n_low = n
        else:
            high = middle
            n_high = n
            m_high = m
    if high - low > 1:
        gathered = 0
        for start in range(0, V, CHUNK):
            n = start + tl.arange(0, CHUNK // 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
            p = tl.load(probs_ptr + n, mask=n < V, other=-1.0)
            bits = p.to(tl.int32, bitcast=True)
            between = ((bits >= low) & (bits < high)).to(tl.int32)
            here = tl.sum(between, axis=1)
            before = gathered + tl.cumsum(here) - here
            at = before[:, None] + tl.cumsum(between, axis=1) - 1
            tl.store(near_ptr + at, p, mask=between > 0)
            gathered += tl.sum(here)
        tl.debug_barrier()  # every thread's part is stored before others read it
        i = tl.arange(0, NEAR)
        near = tl.load(near_ptr + i, mask=i < gathered, other=-1.0)
        bits = near.to(tl.int32, bitcast=True)
        n_over = n_high
        m_over = m_high
        while high - low > 1:
            middle = low + (high - low) // 2
            n = n_over + tl.sum((bits >= middle).to(tl.int32))
            m = m_over + tl.sum(tl.where(bits >= middle, near, 0.0))
            reached = m if BY_MASS else n
            if reached >= wanted:
                low = middle
                n_low = n
            else:
                high = middle
                n_high = n
                m_high = m
        tl.debug_barrier()  # every thread has read its part before the next search stores there
    return low, n_low, n_high, m_high


@triton.jit
def _draw(
    probs_ptr, near_ptr, V, top, temperature, top_k, top_p, min_p, u, CHUNK: tl.constexpr, NEAR: tl.constexpr
):  # fmt: skip
    """A token drawn at u from softmax(logits / temperature) over the tokens kept.

    `probs_ptr` holds logits, then probabilities as multiples of the largest, whose own is 1.
    """
    mass = tl.zeros((CHUNK,), tl.float32)
    least_bits = tl.full((CHUNK,), _ONE, tl.int32)
    for start in range(0, V, CHUNK):
        n = start + tl.arange(0, CHUNK)
        x = tl.load(probs_ptr + n, mask=n < V, other=float("-inf"))
        p = tl.exp((x - top) / temperature)
        tl.store(probs_ptr + n, p, mask=n < V)
        mass += p
        least_bits = tl.minimum(least_bits, tl.where(n < V, p.to(tl.int32, bitcast=True), _ONE))
    total = tl.sum(mass)
    tl.debug_barrier()  # every thread's part is stored before others read it
    # Bits of floats that are not negative are in their order. `edge` is the largest that enough tokens reach.
    edge = 0
    ties = _ALL_TIES  # of the tokens at the edge, how many are kept
    low = tl.maximum(tl.min(least_bits), 0)
    there = tl.full((), 0, tl.int32) + V  # tokens that reach it
    over = tl.full((), 0, tl.int32)  # tokens that exceed it
    strictly = tl.full((), 0.0, tl.float32)  # and their sum
    if top_k < V:
        low, there, over, strictly = _edge(probs_ptr, near_ptr, V, low, there, top_k, False, CHUNK, NEAR)
        edge = low
        ties = top_k - over
        total = strictly + ties * _float(edge)
    if top_p < 1.0:
        wanted = tl.maximum(top_p * total, 1e-30)
        low, there, over, strictly = _edge(probs_ptr, near_ptr, V, low, there, wanted, True, CHUNK, NEAR)
        at_edge = tl.maximum(_float(low), 1e-38)
        needed = tl.minimum(tl.maximum(tl.ceil((wanted - strictly) / at_edge), 1.0), 1e9).to(tl.int32)
        ties = tl.minimum(needed, tl.where(edge == low, ties, _ALL_TIES))
        edge = low
    least_p = min_p.to(tl.int32, bitcast=True)
    if least_p > edge:
        edge = least_p
        ties = _ALL_TIES
        there, total = _above(probs_ptr, V, edge, CHUNK)
    elif edge > 0:
        ties = tl.minimum(ties, there - over)
        total = strictly + ties * _float(edge)
    target = u * total.to(tl.float64)
    below = tl.full((), 0.0, tl.float64)
    passed = 0  # ties met so far
    token = -1
    last = 0
    start = 0
    while (start < V) & (token < 0):
        n = start + tl.arange(0, CHUNK)
        p = tl.load(probs_ptr + n, mask=n < V, other=0.0)
        bits = p.to(tl.int32, bitcast=True)
        tie = ((bits == edge) & (n < V)).to(tl.int32)
        kept = (bits > edge) | ((tie > 0) & (tl.cumsum(tie) + passed <= ties))
        p = tl.where(kept, p, 0.0)
        here = tl.sum(p).to(tl.float64)
        if below + here > target:
            within = tl.cumsum(p).to(tl.float64) + below
            token = tl.min(tl.where((within > target) & (p > 0), n, _NOBODY))
        last = tl.maximum(last, tl.max(tl.where(p > 0, n, 0)))
        passed += tl.sum(tie)
        below += here
        start += CHUNK
    return tl.where((token >= 0) & (token < V), token, last)  # rounding may leave nobody above the target


@triton.jit
def _choose(
    best_ptr, best_at_ptr, slots_ptr, positions_ptr, at_ptr, fields_ptr, counts_ptr, probs_ptr, near_ptr,
    tokens_ptr, done_ptr, out_ptr, shares, V,
    ADVANCE: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, NEAR: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.load(slots_ptr + i).to(tl.int64)
    row = tl.maximum(slot, 0)
    s = tl.arange(0, BLOCK)
    best = tl.load(best_ptr + i * shares + s, mask=s < shares, other=float("-inf"))
    best_at = tl.load(best_at_ptr + i * shares + s, mask=s < shares, other=_NOBODY)
    top = tl.max(best)
    token = tl.min(tl.where(best == top, best_at, _NOBODY))  # the lowest id among equals
    temperature = field(fields_ptr, row, AT_TEMPERATURE)
    if (slot >= 0) & (temperature > 0):
        where = row
        if not ADVANCE:
            where = tl.load(at_ptr + i).to(tl.int64)
        u = uniform(
            tl.load(fields_ptr + row * _FIELDS + _SEED_LOW),
            tl.load(fields_ptr + row * _FIELDS + _SEED_HIGH),
            tl.load(positions_ptr + where) + 1,
        )
        token = _draw(
            probs_ptr + i * V, near_ptr + i * NEAR, V, top, temperature, tl.load(fields_ptr + row * _FIELDS + _TOP_K),
            field(fields_ptr, row, _TOP_P), field(fields_ptr, row, _MIN_P), u, CHUNK, NEAR,
        )  # fmt: skip
    token = tl.minimum(token, V - 1)  # logits that are all NaN choose nothing
    if slot >= 0:
        if tl.load(fields_ptr + row * _FIELDS + _PENALISED) != 0:
            count = tl.load(counts_ptr + row * V + token)
            more = (count & _MAX_COUNT) < _MAX_COUNT
            tl.store(counts_ptr + row * V + token, count + more.to(tl.int16))
        if ADVANCE:
            done = tl.load(done_ptr + i)
            tl.store(out_ptr + done.to(tl.int64) * tl.num_programs(0) + i, token)
            tl.store(done_ptr + i, done + 1)
            tl.store(tokens_ptr + row, token)
            tl.store(positions_ptr + row, tl.load(positions_ptr + row) + 1)
    if not ADVANCE:
        tl.store(out_ptr + i, token)


def adjust_shares(
    logits_RV: torch.Tensor,
    slots_R: torch.Tensor,
    positions: torch.Tensor,
    rows: SamplingRows,
    probs_RV: torch.Tensor,
    best: torch.Tensor,
    best_at: torch.Tensor,
    at_R: torch.Tensor | None = None,
) -> int:
    """Logits as each row's request wants them, and the likeliest token of each share of each row.

    Args:
        slots_R: int32: the row of the batch; -1 = none.
        positions: int32: of each row's latest token, by row of the batch, or by `at_R` when that is given.
        probs_RV: float32; written for rows that draw.

    Returns:
        n, the number of shares: `best[: R * n]` and `best_at[: R * n]` are written, row by row.
    """
    count, vocab = logits_RV.shape
    shares = -(-vocab // SHARE)
    _adjust_shares[(count, shares)](
        logits_RV, slots_R, positions, at_R, rows.fields, rows.rules, rows.counts, probs_RV, best, best_at, vocab,
        BY_ROW=at_R is None, MOST_RULES=rows.rules.shape[2], BLOCK=SHARE, num_warps=8, **options(logits_RV.device),
    )  # fmt: skip
    return shares


def _choice(shares: int, vocab: int) -> dict[str, int]:
    chunk = min(_CHUNK, next_power_of_2(vocab))
    warps = max(1, min(16, chunk // 256))
    return {"BLOCK": next_power_of_2(shares), "CHUNK": chunk, "NEAR": min(NEAR, chunk), "num_warps": warps}


def choose(
    best: torch.Tensor,
    best_at: torch.Tensor,
    shares: int,
    slots_R: torch.Tensor,
    positions: torch.Tensor,
    at_R: torch.Tensor,
    rows: SamplingRows,
    probs_RV: torch.Tensor,
    near: torch.Tensor,
    out_R: torch.Tensor,
) -> None:
    """The token of each row of logits into `out_R` (int32), the lowest id among the likeliest of a greedy one.

    Rows that draw take theirs from `probs_RV`, which is overwritten; rows with penalties count theirs. The other
    arguments are those of `adjust_shares`.

    Args:
        near: float32 [R, NEAR]: room for the tokens near a threshold; overwritten.
    """
    vocab = probs_RV.shape[1]
    _choose[(out_R.shape[0],)](
        best, best_at, slots_R, positions, at_R, rows.fields, rows.counts, probs_RV, near, None, None, out_R,
        shares, vocab,
        ADVANCE=False, **_choice(shares, vocab), **options(best.device),
    )  # fmt: skip


def advance(
    best: torch.Tensor,
    best_at: torch.Tensor,
    shares: int,
    rows: SamplingRows,
    probs_RV: torch.Tensor,
    near: torch.Tensor,
    *,
    slots: torch.Tensor,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    done: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """End a decode step on the device: choose, hand the token to the next step, move every row on by one position.

    Args:
        best, best_at, shares, rows, probs_RV, near: as for `choose`.
        slots: int32 [R]: rows of the batch, -1 = none.
        tokens, positions: int32 [rows of the batch]; updated.
        done: int32 [R]: steps done since the host last set it to 0; updated.
        out: int32 [steps, R] of this batch size: row `done` is written.
    """
    vocab = probs_RV.shape[1]
    _choose[(slots.shape[0],)](
        best, best_at, slots, positions, None, rows.fields, rows.counts, probs_RV, near, tokens, done, out,
        shares, vocab,
        ADVANCE=True, **_choice(shares, vocab), **options(best.device),
    )  # fmt: skip
