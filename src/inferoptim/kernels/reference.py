"""The oracle: every operator of the decoder in plain torch, computed in float32, written to be read.

Nothing here is fast. Every other op set (stock operators, native CPU, Triton) is tested against these functions, and
the definitions of the quantised formats live here.

Legend: T tokens of the step · S sequences · B blocks · P tokens in a block · Hq query heads · Hkv KV heads · D head
size · N output features · K input features · G groups of K · I intermediate size.
"""

from __future__ import annotations

import torch

INT8_MAX = 127.0
FP8_E4M3_MAX = 448.0  # largest finite float8_e4m3fn


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension; result in x's type.

    Source: Root Mean Square Layer Normalization (arXiv:1910.07467) eq. 4.
    """
    wide = x.float()
    normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normal * weight.float()).to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Residual sum, then its norm: ``(rms_norm(x + residual), x + residual)``, the sum rounded to x's type first."""
    total = (x.float() + residual.float()).to(x.dtype)
    return rms_norm(total, weight, eps), total


def rope(x_THD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each head: pair (i, i + D/2) turns by its angle ("half-split" layout of Hugging Face checkpoints).

    Args:
        x_THD: [T, heads, D].
        cos, sin: float32 [T, D / 2].
    """
    first, second = x_THD.float().chunk(2, dim=-1)
    c, s = cos[:, None, :], sin[:, None, :]
    return torch.cat((first * c - second * s, second * c + first * s), dim=-1).to(x_THD.dtype)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` of [..., 2 I] laid out as gate, then up; returns [..., I]."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


def quantize_kv(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric quantisation of each vector of the last dimension.

    ``scale = max|x| / qmax`` with qmax = 127 (int8) or 448 (float8_e4m3fn); a vector of zeros has scale 0.

    Returns:
        (q of `dtype` and x's shape, float32 scale of x's shape without the last dimension).
    """
    wide = x.float()
    qmax = INT8_MAX if dtype == torch.int8 else FP8_E4M3_MAX
    scale = wide.abs().amax(-1) / qmax
    ratio = wide / torch.where(scale == 0, 1.0, scale)[..., None]
    q = ratio.round().clamp(-qmax, qmax) if dtype == torch.int8 else ratio.clamp(-qmax, qmax)
    return q.to(dtype), scale


def raw(x: torch.Tensor) -> torch.Tensor:
    """The bytes of a float8 tensor, which torch cannot copy by index on every device; others as they are."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


def write_kv(
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping_T: torch.Tensor,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    """Store a step's keys and values in their slots, in place; quantised per (token, head) where scales are given.

    Args:
        k_THD, v_THD: [T, Hkv, D], keys already rotated.
        k_cache, v_cache: [B, P, Hkv, D]; written.
        slot_mapping_T: int32 [T], block * P + offset.
        k_scale, v_scale: float32 [B, P, Hkv] or None; written.
    """
    slots = slot_mapping_T.long()
    for x, cache, scale in ((k_THD, k_cache, k_scale), (v_THD, v_cache, v_scale)):
        flat = cache.view(-1, *cache.shape[2:])
        if scale is None:
            flat[slots] = x.to(cache.dtype)
        else:
            q, scale.view(-1, scale.shape[-1])[slots] = quantize_kv(x, cache.dtype)
            raw(flat)[slots] = raw(q)


def paged_attention(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    query_start: torch.Tensor,
    context_lens_S: torch.Tensor,
    block_tables_SM: torch.Tensor,
    *,
    window: int | None = None,
    softmax_scale: float | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of each sequence's queries over its own cached tokens; any mix of query lengths.

    The queries of a sequence are its last tokens: query i of n stands at position ``context_len - n + i``. It sees
    the tokens up to itself and, with a window, only the `window` latest of them (itself included).

    Args:
        q_THD: [T, Hq, D], rotated.
        k_cache, v_cache: [B, P, Hkv, D]; Hq is a multiple of Hkv, query head h reads KV head h // (Hq / Hkv).
        query_start: int32 [S + 1].
        context_lens_S: int32 [S], this step's tokens included.
        block_tables_SM: int32 [S, M].
        k_scale, v_scale: float32 [B, P, Hkv] of a quantised cache.

    Returns:
        [T, Hq, D] in q's type.
    """
    out = torch.empty_like(q_THD)
    block_size, num_kv_heads, head_dim = k_cache.shape[1:]
    group = q_THD.shape[1] // num_kv_heads
    softmax_scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    starts = query_start.tolist()
    for s, context in enumerate(context_lens_S.tolist()):
        first, last = starts[s], starts[s + 1]
        positions = torch.arange(context, device=q_THD.device)
        blocks = block_tables_SM[s].long()[positions // block_size]
        offsets = positions % block_size
        k, v = (  # [context, Hkv, D]
            raw(cache)[blocks, offsets].view(cache.dtype).float() for cache in (k_cache, v_cache)
        )
        if k_scale is not None and v_scale is not None:
            k = k * k_scale[blocks, offsets][..., None]
            v = v * v_scale[blocks, offsets][..., None]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        at = torch.arange(context - (last - first), context, device=q_THD.device)[:, None]
        visible = positions[None, :] <= at
        if window is not None:
            visible &= positions[None, :] > at - window
        scores = torch.einsum("qhd,khd->hqk", q_THD[first:last].float(), k) * softmax_scale
        weights = torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1)
        out[first:last] = torch.einsum("hqk,khd->qhd", weights, v).to(out.dtype)
    return out


def quantize_weight_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8, one scale per output channel: ``scale = max|row| / 127``; a row of zeros has scale 0.

    Returns:
        (q int8 [N, K], scale float32 [N]).
    """
    return quantize_kv(weight, torch.int8)  # the same rule, a weight row for a cached vector


def quantize_activations_int8(
    x: torch.Tensor, group_size: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dynamic symmetric int8 of each token, or of each group of `group_size` input channels of each token.

    Args:
        x: [T, K].

    Returns:
        (q int8 [T, K], scale float32 [T, G]) with G = 1, or K / group_size.
    """
    groups = 1 if group_size is None else x.shape[-1] // group_size
    q, scale = quantize_kv(x.unflatten(-1, (groups, -1)), torch.int8)
    return q.flatten(-2), scale


def int8_linear(
    x: torch.Tensor,
    q_NK: torch.Tensor,
    scale_N: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    group_size: int | None = None,
) -> torch.Tensor:
    """W8A8: activations quantised per token (or per token and group), exact integer products, scaled in float32.

    Args:
        x: [T, K]; result [T, N] in its type.
        group_size: divides K; None = one scale per token.
    """
    xq, x_scale = quantize_activations_int8(x, group_size)
    groups = x_scale.shape[-1]
    # int8 products summed over K <= 2^53 / 127^2 terms are exact in float64
    parts = torch.einsum(
        "tgk,ngk->tgn", xq.unflatten(-1, (groups, -1)).double(), q_NK.unflatten(-1, (groups, -1)).double()
    )
    y = (parts.float() * x_scale[..., None]).sum(1) * scale_N
    return (y if bias is None else y + bias.float()).to(x.dtype)


def int8_weight_only_linear(
    x: torch.Tensor, q_NK: torch.Tensor, scale_N: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """W8A16: activations as they are, weights dequantised; result [T, N] in x's type."""
    y = (x.float() @ q_NK.float().T) * scale_N
    return (y if bias is None else y + bias.float()).to(x.dtype)


def dequantize_groups(
    q_NK: torch.Tensor, scale_NG: torch.Tensor, minimum_NG: torch.Tensor | None, zero: int
) -> torch.Tensor:
    """``scale * (q - zero) + minimum``, one scale and minimum for each group of K / G input channels; float32 [N, K].

    Source: ggml's block formats Q4_0 (zero 8, no minimum), Q4_1 (zero 0) and Q8_0 (zero 128 of the unsigned byte).
    """
    n, groups = scale_NG.shape
    q_NGk = (q_NK.float() - zero).reshape(n, groups, -1)
    values = q_NGk * scale_NG.float()[..., None]
    if minimum_NG is not None:
        values = values + minimum_NG.float()[..., None]
    return values.reshape(n, -1)


def grouped_linear(
    x: torch.Tensor,
    q_NK: torch.Tensor,
    scale_NG: torch.Tensor,
    minimum_NG: torch.Tensor | None,
    zero: int,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weights in groups, activations quantised to int8 by token and the same groups; exact integer sums of a group.

    Args:
        x: [T, K]; result [T, N] in its type.
        q_NK: unsigned.
    """
    n, groups = scale_NG.shape
    xq, x_scale = quantize_activations_int8(x, x.shape[-1] // groups)
    xq_TGk = xq.reshape(len(x), groups, -1).double()
    sums_TG = xq_TGk.sum(-1)
    parts = torch.einsum("tgk,ngk->tgn", xq_TGk, q_NK.reshape(n, groups, -1).double())
    parts = (parts - zero * sums_TG[..., None]).float() * scale_NG.float().T
    if minimum_NG is not None:
        parts = parts + sums_TG[..., None].float() * minimum_NG.float().T
    y: torch.Tensor = (parts * x_scale[..., None]).sum(1)
    return (y if bias is None else y + bias.float()).to(x.dtype)


def adjust_logits(
    logits_V: torch.Tensor,
    prompt: torch.Tensor,
    output: torch.Tensor,
    *,
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
    added: dict[int, float] | None = None,
) -> torch.Tensor:
    """Penalties and bias, as the OpenAI API and vLLM define them; float32 [V].

    Repetition divides positive and multiplies negative logits of tokens of prompt or output; presence and frequency
    subtract, for tokens of the output only; then what is `added` to single tokens (-inf bars one).

    Args:
        prompt, output: token ids.
    """
    x = logits_V.float().clone()
    counts = torch.bincount(output.long(), minlength=x.numel()).to(x.device)
    seen = counts > 0
    seen[prompt.long()] = True
    x = torch.where(seen, torch.where(x > 0, x / repetition, x * repetition), x)
    x = torch.where(counts > 0, x - (presence + frequency * counts), x)
    for token, value in (added or {}).items():
        x[token] += value
    return x


def keep_likeliest(
    probs_V: torch.Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> torch.Tensor:
    """Which tokens remain, bool [V]: the `top_k` likeliest (0 = all); of those, renormalised, the fewest whose mass

    reaches `top_p`; of those, the ones not under `min_p` times the largest. Among equals the lowest ids remain.
    """
    values, ids = torch.sort(probs_V.double(), descending=True, stable=True)
    values = values[: top_k or None]
    before = (values / values.sum()).cumsum(0) - values / values.sum()
    kept = ((before < top_p) | (top_p >= 1)) & (values >= min_p * values[0])
    mask = torch.zeros_like(probs_V, dtype=torch.bool)
    mask[ids[: values.numel()][kept]] = True
    return mask


def draw(probs_V: torch.Tensor, kept_V: torch.Tensor, u: float) -> int:
    """The token at which the mass of the kept tokens, added up in order of ids, passes the share u of all of it."""
    mass = torch.where(kept_V, probs_V.double(), 0.0)
    below = mass.cumsum(0)
    found = torch.nonzero((below > u * below[-1]) & (mass > 0))
    return int(found[0]) if found.numel() else int(torch.nonzero(mass)[-1])
