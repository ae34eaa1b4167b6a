"""The stock operators: the decoder's op set out of torch's own kernels. Runs on any device, needs no compiler.

Each function computes what its namesake in reference.py defines, in the input's own type where torch has a kernel.
Chosen where several stock operators do the same, for one row and for 32 (int8 on AVX-512 VNNI): `torch._int_mm` beat
`F.linear` on bfloat16 and float32, and `_weight_int8pack_mm` beat both for weight-only int8 in bfloat16; in float32 it is
slower than dequantising, so it is used for bfloat16 alone.

Legend: T tokens of the step · S sequences · B blocks · P tokens in a block · Hq query heads · Hkv KV heads · D head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from inferoptim.kernels.reference import dequantize_groups, quantize_activations_int8, quantize_kv, raw

NAME = "torch"


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last dimension."""
    return F.rms_norm(x, weight.shape, weight, eps)


def rope(x_THD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each head, half-split layout; `cos` and `sin` are float32 [T, D / 2]."""
    first, second = x_THD.chunk(2, dim=-1)
    c, s = cos[:, None, :], sin[:, None, :]
    return torch.cat((first * c - second * s, second * c + first * s), dim=-1).to(x_THD.dtype)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` of [..., 2 I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def dense_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``x @ weight.T + bias``."""
    return F.linear(x, weight, bias)


def int8_linear(
    x: torch.Tensor, q_NK: torch.Tensor, scale_N: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """W8A8, activations quantised per token; exact integer products."""
    xq, x_scale = quantize_activations_int8(x)
    y = torch._int_mm(xq, q_NK.t()).float() * x_scale * scale_N
    return (y if bias is None else y + bias.float()).to(x.dtype)


def fp8_linear(
    x: torch.Tensor, q_NK: torch.Tensor, scale_N: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """W8A8 in float8_e4m3fn, activations quantised per token; products of 8-bit floats, summed in float32."""
    xq, x_scale = quantize_kv(x, torch.float8_e4m3fn)
    y = F.linear(xq.float(), q_NK.float()) * x_scale[..., None] * scale_N
    return (y if bias is None else y + bias.float()).to(x.dtype)


def int8_weight_only_linear(
    x: torch.Tensor, q_NK: torch.Tensor, scale_N: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """W8A16: weights dequantised inside the product."""
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        y = torch._weight_int8pack_mm(x.contiguous(), q_NK, scale_N.to(x.dtype))
    else:
        y = (F.linear(x, q_NK.to(x.dtype)).float() * scale_N).to(x.dtype)
    return y if bias is None else y + bias


def grouped_linear(
    x: torch.Tensor,
    q_NK: torch.Tensor,
    scale_NG: torch.Tensor,
    minimum_NG: torch.Tensor | None,
    zero: int,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Weights in groups, dequantised for the product; activations as they are."""
    return F.linear(x, dequantize_groups(q_NK, scale_NG, minimum_NG, zero).to(x.dtype), bias)


def write_kv(
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping_T: torch.Tensor,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    """Store a step's keys and values in their slots (int64 [T] here: what index_copy_ takes), in place."""
    for x, cache, scale in ((k_THD, k_cache, k_scale), (v_THD, v_cache, v_scale)):
        flat = cache.view(-1, *cache.shape[2:])
        if scale is None:
            flat.index_copy_(0, slot_mapping_T, x.to(cache.dtype))
        else:
            q, q_scale = quantize_kv(x, cache.dtype)
            raw(flat).index_copy_(0, slot_mapping_T, raw(q))
            scale.view(-1, scale.shape[-1]).index_copy_(0, slot_mapping_T, q_scale)


def paged_attention(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    query_start: torch.Tensor,
    context_lens_S: torch.Tensor,
    block_tables_SM: torch.Tensor,
    *,
    window: int | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    contiguous: bool = False,
) -> torch.Tensor:
    """Causal attention of each sequence's queries over its own cached tokens; see reference.py.

    Paged caches cost a gather; with `contiguous` a sequence's cache is one slice and is read in place.
    """
    num_sequences = context_lens_S.numel()
    if not contiguous and num_sequences > 1 and q_THD.shape[0] == num_sequences:
        return _decode_gathered(
            q_THD,
            k_cache,
            v_cache,
            context_lens_S,
            block_tables_SM,
            window=window,
            k_scale=k_scale,
            v_scale=v_scale,
        )
    out = torch.empty_like(q_THD)
    starts = query_start.tolist()
    for s, context in enumerate(context_lens_S.tolist()):
        q_NHD = q_THD[starts[s] : starts[s + 1]]
        k = _tokens(k_cache, k_scale, block_tables_SM[s], context, contiguous, q_THD.dtype)
        v = _tokens(v_cache, v_scale, block_tables_SM[s], context, contiguous, q_THD.dtype)
        out[starts[s] : starts[s + 1]] = _attend(q_NHD, k, v, window)
    return out


def _attend(
    q_NHD: torch.Tensor, k_CHD: torch.Tensor, v_CHD: torch.Tensor, window: int | None
) -> torch.Tensor:
    """One sequence: its last N tokens are the queries, all C are visible up to causality and window."""
    n, context = q_NHD.shape[0], k_CHD.shape[0]
    mask = None
    causal = n > 1 and n == context and (window is None or window >= context)
    if not causal and (n > 1 or (window is not None and window < context)):
        at = torch.arange(context - n, context, device=q_NHD.device)[:, None]
        positions = torch.arange(context, device=q_NHD.device)[None, :]
        mask = positions <= at
        if window is not None:
            mask &= positions > at - window
    out = F.scaled_dot_product_attention(
        q_NHD.transpose(0, 1)[None],
        k_CHD.transpose(0, 1)[None],
        v_CHD.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=causal,
        enable_gqa=q_NHD.shape[1] != k_CHD.shape[1],
    )
    return out[0].transpose(0, 1)


def _tokens(
    cache: torch.Tensor,
    scale: torch.Tensor | None,
    blocks_M: torch.Tensor,
    context: int,
    contiguous: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The first `context` tokens of a sequence, [context, Hkv, D], dequantised."""
    block_size = cache.shape[1]
    if contiguous:
        first = int(blocks_M[0]) * block_size
        x = cache.view(-1, *cache.shape[2:])[first : first + context]
        factors = None if scale is None else scale.view(-1, scale.shape[-1])[first : first + context]
    else:
        blocks = blocks_M[: -(-context // block_size)]
        x = raw(cache).index_select(0, blocks).view(cache.dtype).flatten(0, 1)[:context]
        factors = None if scale is None else scale.index_select(0, blocks).flatten(0, 1)[:context]
    return x if factors is None else (x.float() * factors[..., None]).to(dtype)


def _decode_gathered(
    q_SHD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    context_lens_S: torch.Tensor,
    block_tables_SM: torch.Tensor,
    *,
    window: int | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
) -> torch.Tensor:
    """One query a sequence: all caches gathered into one padded batch, a single attention call."""
    num_sequences, longest = q_SHD.shape[0], block_tables_SM.shape[1] * k_cache.shape[1]
    positions = torch.arange(longest, device=q_SHD.device)[None, :]
    visible = positions < context_lens_S[:, None]
    if window is not None:
        visible &= positions >= context_lens_S[:, None] - window
    blocks = block_tables_SM.flatten()

    def gather(cache: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        x = raw(cache).index_select(0, blocks).view(cache.dtype)
        x = x.view(num_sequences, longest, *cache.shape[2:])
        if scale is not None:
            x = (x.float() * scale.index_select(0, blocks).view(*x.shape[:3])[..., None]).to(q_SHD.dtype)
        # what lies past a sequence's end belongs to nobody and may be anything: 0 * NaN would be NaN
        return x.masked_fill_(~visible[..., None, None], 0).transpose(1, 2)

    out = F.scaled_dot_product_attention(
        q_SHD[:, :, None],
        gather(k_cache, k_scale),
        gather(v_cache, v_scale),
        attn_mask=visible[:, None, None, :],
        enable_gqa=q_SHD.shape[1] != k_cache.shape[2],
    )
    return out[:, :, 0]
