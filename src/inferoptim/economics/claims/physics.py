"""Claims about bytes and FLOPs: sections 2.2, 2.3, 3 and 4.1."""

from __future__ import annotations

from inferoptim.economics.claims.model import Evidence, Finding, Verdict, claim
from inferoptim.economics.roofline import Shape, decode_step_floor_s, find_shape, kv_bytes_per_token
from inferoptim.hardware.peaks import device_peaks
from inferoptim.units import GIB

HOLDS, CONDITIONS, WRONG = Verdict.HOLDS, Verdict.CONDITIONS, Verdict.WRONG


def _kv(shape: Shape, element_bytes: float = 2.0) -> float:
    return kv_bytes_per_token(shape.layers, shape.kv_heads, shape.head_dim, element_bytes)


@claim(14, "2.2", 'Llama-2-70B has "4 000+ tensors"', "P")
def tensors_of_70b(_: Evidence) -> Finding:
    """Per layer: q, k, v, o, gate, up, down and two norms; plus embedding, last norm and head."""
    count = find_shape("Llama-2-70B").layers * 9 + 3
    return Finding(HOLDS if count > 4000 else WRONG, f"80 × 9 + 3 = {count}", figures={"tensors": count})


@claim(15, "2.2", '70–80 % "GPU occupancy"', "G")
def occupancy(evidence: Evidence) -> Finding:
    """Occupancy counts resident warps; what matters is the share of FLOPs or of bandwidth."""
    found = [
        f"{name} {value}" for name, key in (("MFU", "mfu"), ("MBU", "mbu")) if (value := evidence.best(key))
    ]
    return Finding(
        Verdict.NOT_MEASURED,
        "Occupancy is not efficiency: report MFU (prefill) and MBU (decode)",
        "; ".join(found) or None,
    )


@claim(16, "2.2", "Decode FLOPs fall ≈ 32× against prefill", "P")
def decode_flops(_: Evidence) -> Finding:
    """2 N FLOPs a token in both; a prefill step carries the whole prompt, a decode step one token."""
    shape = find_shape("Llama-2-70B")
    per_token, prompt = 2 * shape.read_per_step, 2048
    return Finding(
        WRONG,
        f"FLOPs per token are equal (≈ 2 N = {per_token / 1e9:.0f} GFLOP); FLOPs per step fall by the prompt length "
        f"({prompt}× at {prompt} tokens): 32× only for a prompt of 32",
        figures={"flops_per_token": per_token, "per_step_ratio": prompt},
    )


@claim(17, "2.2", "Each decode step reads and writes the whole KV-cache", "C, G")
def decode_traffic(_: Evidence) -> Finding:
    """Bytes read and written by one step of Llama-2-7B FP16 at batch 1 and 4 096 tokens of context."""
    shape = find_shape("Llama-2-7B")
    weights, kv, write = shape.read_per_step * 2, _kv(shape) * 4096, _kv(shape)
    return Finding(
        WRONG,
        f"It reads all weights ({weights / 1e9:.1f} GB) and all KV ({kv / 1e9:.1f} GB at 4 096 tokens, 7B FP16), and writes one "
        f"token ({write / 1e6:.2f} MB); at batch 1 weights dominate",
        figures={"weights": weights, "kv_read": kv, "kv_written": write},
    )


@claim(18, "2.2", "HBM ≈ 3–4 TB/s on H100", "G")
def h100_bandwidth(evidence: Evidence) -> Finding:
    """The datasheet; a measurement where a run has one from an H100."""
    peak = device_peaks("H100 SXM").bandwidth_bytes_per_s / 1e12
    return Finding(
        CONDITIONS if 3 <= peak <= 4 else WRONG,
        f"{peak:.2f} by datasheet; measured on an H100 SXM before this project: 3.02 copy, 2.75 matrix-vector read",
        evidence.memory_read("H100"),
        figures={"datasheet_tb_per_s": peak},
    )


@claim(19, "2.2", "Decode ≤ 70 % of total time at 2 k–4 k tokens", "C, G")
def decode_share(evidence: Evidence) -> Finding:
    """Roofline of 2 048 in + 2 048 out at batch 1 on an H100: prefill by FLOPs, decode by bytes."""
    shape, card = find_shape("Llama-2-7B"), device_peaks("H100 SXM")
    assert card.bf16_flops_per_s is not None
    prefill = 2 * shape.body * 2048 / card.bf16_flops_per_s
    steps = (
        decode_step_floor_s(shape.read_per_step * 2, _kv(shape) * (2048 + k), card.bandwidth_bytes_per_s)
        for k in range(2047)
    )
    decode = sum(steps)
    share = decode / (decode + prefill)
    return Finding(
        HOLDS if share <= 0.70 else WRONG,
        f"Depends on shape and batch; roofline for 7B 2048/2048 at batch 1 is ≈ {share:.1%}",
        evidence.decode_share(),
        figures={"share": share},
    )


@claim(23, "2.3, 3.3", "KV bytes = 2·L·H·d·sizeof", "P, C, G")
def kv_formula(evidence: Evidence) -> Finding:
    """Llama-2-70B with its 8 KV heads, and with the 64 query heads that the formula takes."""
    shape = find_shape("Llama-2-70B")
    right, claimed = _kv(shape) / 1e6, kv_bytes_per_token(shape.layers, 64, shape.head_dim) / 1e6
    return Finding(
        CONDITIONS,
        f"Only for full multi-head attention; with GQA use the number of KV heads (Llama-2-70B: {right:.2f} MB a token, not "
        f"{claimed:.2f})",
        evidence.kv_bytes(),
        figures={"gqa_mb": right, "formula_mb": claimed},
    )


@claim(24, "2.3", "Llama-2-7B FP16: +1 000 tokens ≈ 500 MB", "P, C")
def kv_thousand_tokens(_: Evidence) -> Finding:
    """Bytes of one token × 1 000."""
    token = _kv(find_shape("Llama-2-7B"))
    total = token * 1000 / 1e6
    return Finding(
        HOLDS if abs(total / 500 - 1) < 0.05 else WRONG,
        f"Right: {token:.0f} B a token = {total:.0f} MB",
        figures={"mb": total},
    )


@claim(29, "3.3", "Llama-2-7B, 4 096 tokens, batch 1 ≈ 2 GB", "P, C")
def kv_4096(_: Evidence) -> Finding:
    """Bytes of one token × 4 096."""
    total = _kv(find_shape("Llama-2-7B")) * 4096 / GIB
    return Finding(
        HOLDS if f"{total:.1f}" == "2.0" else WRONG, f"Right: {total:.1f} GiB", figures={"gib": total}
    )


@claim(30, "3.4", 'Memory "dominated by" decode or by prefill', "C, G")
def memory_by_phase(_: Evidence) -> Finding:
    """The same total length, split both ways."""
    token = _kv(find_shape("Llama-2-7B"))
    short, long = token * (100 + 3996), token * (3996 + 100)
    return Finding(
        WRONG if short == long else CONDITIONS,
        f"KV depends on total length alone (100+3996 and 3996+100 tokens: {short / 1e9:.2f} and {long / 1e9:.2f} GB); only the "
        "activation peak differs",
        figures={"short_prompt": short, "long_prompt": long},
    )


@claim(31, "4.1", "FP8 −50 % memory against FP16", "C, G")
def fp8_memory(evidence: Evidence) -> Finding:
    """Whole checkpoint, with embedding and head left in 16 bits."""
    shape = find_shape("Llama-2-7B")
    cut = 1 - (shape.body + (shape.head + shape.embedding) * 2) / (shape.stored * 2)
    return Finding(
        CONDITIONS,
        f"Right for the quantised weights; with embeddings and head in FP16 the whole of Llama-2-7B falls by {cut:.1%} "
        "(scales excluded)",
        evidence.weights_cut(),
        figures={"whole_model_cut": cut},
    )


@claim(32, "4.1", "INT8 −75 % against FP16", "C, G")
def int8_memory(evidence: Evidence) -> Finding:
    """Bits over bits."""
    against_fp16, against_fp32, int4 = 1 - 8 / 16, 1 - 8 / 32, 1 - 4 / 16
    return Finding(
        HOLDS if against_fp16 == 0.75 else WRONG,
        f"−{against_fp16:.0%}. −{against_fp32:.0%} is against FP32, or INT4 against FP16 (−{int4:.0%})",
        evidence.weights_cut(),
        figures={"against_fp16": against_fp16, "against_fp32": against_fp32},
    )


@claim(33, "4.1", 'FP8 on A100 "by emulation"', "P")
def fp8_on_a100(_: Evidence) -> Finding:
    """The card's published rates."""
    rate = device_peaks("A100 80GB SXM").fp8_flops_per_s
    return Finding(
        WRONG if rate is None else HOLDS,
        "A100 has no FP8 arithmetic; weight-only FP8 saves memory and bandwidth, not FLOPs",
        figures={} if rate is None else {"fp8_flops_per_s": rate},
    )


@claim(51, "7.2", "max batch 32, input 2 048, output 1 024", "P")
def worst_case_kv(_: Evidence) -> Finding:
    """Worst-case KV and weights of Llama-2-7B FP16 against two cards."""
    shape = find_shape("Llama-2-7B")
    kv, weights = _kv(shape) * 32 * 3072, shape.stored * 2
    fits = [name for name in ("H100 SXM", "L40S") if kv + weights <= device_peaks(name).memory_bytes]
    return Finding(
        CONDITIONS if fits == ["H100 SXM"] else HOLDS,
        f"Worst-case KV {kv / 1e9:.1f} GB + {weights / 1e9:.1f} GB weights for Llama-2-7B: fits an 80 GB card, not an L40S",
        figures={"kv": kv, "weights": weights},
    )
