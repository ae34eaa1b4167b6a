"""The native CPU step of every instruction set that this processor can run, against kernels/reference.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from inferoptim.hardware.cpu import cpu_facts
from inferoptim.kernels import cpu, reference
from inferoptim.kernels.cpu.build import ISAS
from inferoptim.models.batch import Batch, KVCache, KVLayer
from inferoptim.models.decoder import Decoder, DecoderWeights, LayerWeights
from inferoptim.models.fused import FusedDecoder
from inferoptim.models.rotary import cos_sin, inverse_frequencies
from inferoptim.models.spec import ModelSpec
from inferoptim.quant.formats import DenseWeight, GroupedWeight, Int8Weight, Linear
from inferoptim.quant.groups import from_integers, quantize_groups
from inferoptim.quant.int8 import quantize_linear

RUNNABLE = [isa.name for isa in ISAS if isa.needs <= set(cpu_facts().isa)]


@pytest.fixture(params=RUNNABLE)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("INFEROPTIM_ISA", request.param)
    cpu._state.cache_clear()
    assert cpu.isa() == request.param, cpu.why_not()
    yield request.param
    monkeypatch.undo()
    cpu._state.cache_clear()


@dataclass(frozen=True)
class Shape:
    """A model and a batch, small and awkward."""

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int = 80
    intermediate: int = 104
    vocab: int = 77
    layers: int = 2
    window: int | None = None
    qk_norm: bool = False
    bias: bool = False
    block_size: int = 4
    # (tokens in the cache before the step, tokens of the step) of each sequence
    sequences: tuple[tuple[int, int], ...] = ((0, 5), (9, 1), (70, 1), (3, 17))
    dtype: torch.dtype = torch.float32
    quantization: str = "none"
    kv: torch.dtype | None = None
    threads: int = 2


SHAPES = {
    "fp32, groups of 5, heads of 16": Shape(5, 1, 16, bias=True, block_size=3),
    "fp32, heads of 48, window": Shape(3, 3, 48, window=6, block_size=1, threads=3),
    "fp32, heads of 128, norms, one thread": Shape(4, 2, 128, qk_norm=True, threads=1, layers=1),
    "bf16": Shape(6, 2, 64, dtype=torch.bfloat16, hidden=96, sequences=((0, 40), (130, 1), (64, 1), (5, 3))),
    "bf16, many rows, window": Shape(
        6, 2, 64, dtype=torch.bfloat16, hidden=96, window=90, sequences=((0, 150), (100, 1), (64, 70))
    ),
    "bf16, odd heads, int8 KV": Shape(3, 1, 80, dtype=torch.bfloat16, kv=torch.int8, block_size=16),
    "int8": Shape(6, 2, 32, quantization="int8", hidden=192, intermediate=384),
    "int8, ragged inputs, int8 KV": Shape(
        2, 1, 64, quantization="int8", hidden=100, intermediate=72, kv=torch.int8
    ),
    "int8 in bf16, int8 KV, many rows": Shape(
        3,
        1,
        64,
        dtype=torch.bfloat16,
        quantization="int8",
        kv=torch.int8,
        sequences=((0, 150), (80, 1), (7, 30)),
    ),
    "4 bits": Shape(6, 2, 32, quantization="int4", hidden=192, intermediate=416, bias=True),
    "4 bits in bf16, symmetric groups of 64, int8 KV, many rows": Shape(
        3,
        1,
        64,
        dtype=torch.bfloat16,
        quantization="int4-64",
        hidden=128,
        intermediate=192,
        kv=torch.int8,
        sequences=((0, 150), (80, 1), (7, 30)),
    ),
    "8 bits in groups, ragged outputs": Shape(
        2, 1, 48, quantization="int8-groups", hidden=160, intermediate=64, layers=3, threads=3
    ),
    "weight-only": Shape(4, 4, 16, quantization="int8-weight-only", bias=True),
    "fp32, many rows, window": Shape(4, 1, 32, window=50, sequences=((20, 130), (0, 9)), block_size=8),
}


def spec_of(shape: Shape) -> ModelSpec:
    return ModelSpec(
        architecture="LlamaForCausalLM",
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_layers=shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position=512,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        qk_norm=shape.qk_norm,
        qkv_bias=shape.bias,
        sliding_windows=(shape.window,) * shape.layers if shape.window else (),
    )


def random_decoder(shape: Shape) -> Decoder:
    generator = torch.Generator().manual_seed(hash((shape.heads, shape.head_dim, shape.quantization)) % 1000)
    spec = spec_of(shape)

    def random(*size: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(size, generator=generator) * scale).to(shape.dtype)

    def linear(n: int, k: int, bias: bool = False) -> Linear:
        dense = DenseWeight(random(n, k, scale=k**-0.5), random(n) if bias else None)
        if shape.quantization == "none":
            return dense
        if shape.quantization == "int4-64":
            integers = torch.randint(-8, 8, (n, k), generator=generator, dtype=torch.int8)
            scales = torch.rand(n, k // 64, generator=generator) * k**-0.5 / 4
            return replace(checked(from_integers(integers, scales, None, 4)), bias=dense.bias)
        if shape.quantization in ("int4", "int8-groups"):
            return checked(quantize_groups(dense, 4 if shape.quantization == "int4" else 8))
        return quantize_linear(dense, dynamic_activations=shape.quantization == "int8")

    def checked(weight: GroupedWeight | None) -> GroupedWeight:
        assert weight is not None
        return weight

    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layers = tuple(
        LayerWeights(
            input_norm=1 + random(shape.hidden, scale=0.1),
            qkv=linear(q + 2 * kv, shape.hidden, shape.bias),
            q_norm=1 + random(shape.head_dim, scale=0.1) if shape.qk_norm else None,
            k_norm=1 + random(shape.head_dim, scale=0.1) if shape.qk_norm else None,
            o=linear(shape.hidden, q),
            post_norm=1 + random(shape.hidden, scale=0.1),
            gate_up=linear(2 * shape.intermediate, shape.hidden),
            down=linear(shape.hidden, shape.intermediate),
            window=shape.window,
        )
        for _ in range(shape.layers)
    )
    weights = DecoderWeights(
        embedding=random(shape.vocab, shape.hidden),
        layers=layers,
        final_norm=1 + random(shape.hidden, scale=0.1),
        head=linear(shape.vocab, shape.hidden),
        inv_freq=inverse_frequencies(spec),
    )
    return Decoder(spec, weights, device=torch.device("cpu"), dtype=shape.dtype)


def empty_cache(shape: Shape, num_blocks: int) -> KVCache:
    size = (num_blocks, shape.block_size, shape.kv_heads, shape.head_dim)
    dtype = shape.kv or shape.dtype

    def layer() -> KVLayer:
        # what nobody has written may be anything
        filled = torch.full(size, 99, dtype=dtype)
        scale = torch.full(size[:3], 9.0) if shape.kv else None
        return KVLayer(filled, filled.clone(), scale, None if scale is None else scale.clone())

    return KVCache(tuple(layer() for _ in range(shape.layers)), shape.block_size, num_blocks)


def step(
    tokens: list[list[int]],
    starts: list[int],
    tables: list[list[int]],
    block_size: int,
    everything: bool = True,
) -> Batch:
    """Sequence s computes tokens[s] at positions starts[s]…"""
    counts = [len(t) for t in tokens]
    query_start = [0]
    for n in counts:
        query_start.append(query_start[-1] + n)
    positions = [start + i for start, n in zip(starts, counts, strict=True) for i in range(n)]
    owner = [s for s, n in enumerate(counts) for _ in range(n)]
    slots = [
        tables[s][p // block_size] * block_size + p % block_size
        for s, p in zip(owner, positions, strict=True)
    ]
    context = [start + n for start, n in zip(starts, counts, strict=True)]
    rows = range(query_start[-1]) if everything else [end - 1 for end in query_start[1:]]

    def tensor(values: object) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    width = max(len(t) for t in tables)
    return Batch(
        token_ids_T=tensor([t for some in tokens for t in some]),
        positions_T=tensor(positions),
        slot_mapping_T=tensor(slots),
        query_start=tensor(query_start),
        context_lens_S=tensor(context),
        block_tables_SM=tensor([t + [0] * (width - len(t)) for t in tables]),
        logit_rows_R=tensor(list(rows)),
        max_query_len=max(counts),
        max_context_len=max(context),
    )


def tables_for(shape: Shape, lengths: list[int]) -> tuple[list[list[int]], int]:
    """Scattered block tables, and how many blocks there are."""
    needed = [-(-n // shape.block_size) for n in lengths]
    order = torch.randperm(sum(needed) + 3, generator=torch.Generator().manual_seed(1)).tolist()
    tables = []
    for n in needed:
        tables.append(order[:n])
        order = order[n:]
    return tables, sum(needed) + 3


def group_size(k: int) -> int | None:
    """Input channels that share an activation scale in the native int8 products; None: all of a row."""
    return next((g for g in (64, 32, 96, 128) if k % g == 0), None)


def oracle_linear(x: torch.Tensor, w: Linear) -> torch.Tensor:
    bias = None if w.bias is None else w.bias.float()
    if isinstance(w, DenseWeight):
        y = x @ w.weight.float().T
        return y if bias is None else y + bias
    if isinstance(w, GroupedWeight):
        return reference.grouped_linear(x, w.q, w.scale, w.minimum, w.zero, bias)
    assert isinstance(w, Int8Weight)
    if w.dynamic_activations:
        return reference.int8_linear(x, w.q, w.scale, bias, group_size=group_size(w.shape[1]))
    return reference.int8_weight_only_linear(x, w.q, w.scale, bias)


def oracle(decoder: Decoder, batch: Batch, kv: KVCache) -> torch.Tensor:
    """The decoder out of reference.py alone, activations in float32 as in the native step."""
    spec, weights = decoder.spec, decoder.weights
    cos, sin = cos_sin(batch.positions_T, weights.inv_freq)
    x = weights.embedding.float()[batch.token_ids_T.long()]
    q_dim, kv_dim = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    for layer, cache in zip(weights.layers, kv.layers, strict=True):
        normal = reference.rms_norm(x, layer.input_norm, spec.rms_norm_eps)
        parts = oracle_linear(normal, layer.qkv).split([q_dim, kv_dim, kv_dim], dim=1)
        q, k, v = (part.unflatten(1, (-1, spec.head_dim)) for part in parts)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = reference.rms_norm(q, layer.q_norm, spec.rms_norm_eps)
            k = reference.rms_norm(k, layer.k_norm, spec.rms_norm_eps)
        q, k = reference.rope(q, cos, sin), reference.rope(k, cos, sin)
        reference.write_kv(k, v, cache.k, cache.v, batch.slot_mapping_T, cache.k_scale, cache.v_scale)
        mixed = reference.paged_attention(
            q,
            cache.k,
            cache.v,
            batch.query_start,
            batch.context_lens_S,
            batch.block_tables_SM,
            window=layer.window,
            k_scale=cache.k_scale,
            v_scale=cache.v_scale,
        )
        x = x + oracle_linear(mixed.flatten(1), layer.o)
        normal = reference.rms_norm(x, layer.post_norm, spec.rms_norm_eps)
        x = x + oracle_linear(reference.silu_mul(oracle_linear(normal, layer.gate_up)), layer.down)
    rows = x[batch.logit_rows_R.long()]
    return oracle_linear(reference.rms_norm(rows, weights.final_norm, spec.rms_norm_eps), weights.head)


def prompts_for(shape: Shape) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, shape.vocab, (a + n,), generator=generator).tolist() for a, n in shape.sequences]


@pytest.mark.parametrize("name", SHAPES)
def test_a_ragged_batch_matches_the_oracle(isa: str, name: str):
    shape = SHAPES[name]
    decoder = random_decoder(shape)
    fused = FusedDecoder(decoder, shape.threads)
    prompts = prompts_for(shape)
    tables, num_blocks = tables_for(shape, [len(p) for p in prompts])
    before = [a for a, _ in shape.sequences]
    outputs = []
    for forward in (fused.forward, lambda batch, kv: oracle(decoder, batch, kv)):
        kv = empty_cache(shape, num_blocks)
        known = [s for s, a in enumerate(before) if a]
        forward(
            step(
                [prompts[s][: before[s]] for s in known],
                [0] * len(known),
                [tables[s] for s in known],
                shape.block_size,
            ),
            kv,
        )
        batch = step([p[a:] for p, a in zip(prompts, before, strict=True)], before, tables, shape.block_size)
        outputs.append(forward(batch, kv))
    actual, expected = outputs
    spread = expected.std().item()
    exact = (
        shape.dtype == torch.float32
        and not shape.quantization.startswith("int4")
        and shape.quantization not in ("int8", "int8-groups")
        and shape.kv is None
    )
    # a rounding that falls to the other side moves a quantised value by one step
    tolerance = 2e-5 if exact else 0.1
    assert (actual - expected).abs().max().item() < tolerance * max(spread, 1.0)
    assert torch.nn.functional.cosine_similarity(actual, expected).min() > (0.99999 if exact else 0.999)


@pytest.mark.parametrize(
    "name",
    [
        "fp32, groups of 5, heads of 16",
        "bf16",
        "bf16, many rows, window",
        "int8 in bf16, int8 KV, many rows",
        "fp32, many rows, window",
        "4 bits",
    ],
)
def test_no_chunk_no_neighbour_and_no_thread_changes_a_bit(isa: str, name: str):
    """What makes chunked prefill, batching and speculation lossless in every type."""
    shape = SHAPES[name]
    decoder = random_decoder(shape)
    prompts = prompts_for(replace(shape, sequences=((0, 150), (0, 70), (0, 3))))
    tables, num_blocks = tables_for(shape, [len(p) for p in prompts])
    fused = FusedDecoder(decoder, 2)
    whole = fused.forward(
        step(prompts, [0] * 3, tables, shape.block_size), empty_cache(shape, num_blocks)
    ).split([len(p) for p in prompts])
    alone = FusedDecoder(decoder, 5)  # more threads than cores
    kv = empty_cache(shape, num_blocks)
    rows, done = [], 0
    for n in (1, 7, 1, 2, 60, 1, 30, 48):  # a token, a verification, chunks on both sides of every threshold
        rows.append(
            alone.forward(step([prompts[0][done : done + n]], [done], [tables[0]], shape.block_size), kv)
        )
        done += n
    assert done == 150
    assert torch.equal(torch.cat(rows), whole[0])


def test_greedy_choice_is_the_lowest_id_among_equals(isa: str):
    shape = SHAPES["fp32, groups of 5, heads of 16"]
    decoder = random_decoder(shape)
    head = decoder.weights.head
    assert isinstance(head, DenseWeight)
    twins = head.weight.clone()
    twins[40:] = twins[:37]  # every row of the first 37 has a twin 40 ids later
    decoder = Decoder(
        decoder.spec,
        replace(decoder.weights, head=DenseWeight(twins, None)),
        device=decoder.device,
        dtype=decoder.dtype,
    )
    fused = FusedDecoder(decoder, 3)
    prompts = prompts_for(shape)
    tables, num_blocks = tables_for(shape, [len(p) for p in prompts])
    batch = step(prompts, [0] * len(prompts), tables, shape.block_size)
    logits = fused.forward(batch, empty_cache(shape, num_blocks))
    chosen = fused.forward_greedy(batch, empty_cache(shape, num_blocks))
    assert torch.equal(chosen, logits.argmax(dim=-1))
    assert chosen.max() < 40
