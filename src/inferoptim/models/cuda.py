"""The decoder on an NVIDIA GPU: same contract as `Decoder`, plus steps that the host neither feeds nor waits for.

Two ways through a layer. A step of a few rows is bound by reading weights: five fused kernels, chained by programmatic
dependent launch (`kernels/triton/gemv.py` for one or two rows, `kernels/cuda/linear.py` for more). Above, products run on
tensor cores (cuBLAS, and `kernels/cuda/prompts.py` for gate and up of many rows) between fused row-wise kernels.

Legend: T tokens of the step · R rows whose logits are wanted · H hidden size · I intermediate size · D head size ·
V vocabulary · rows: rows of the runner's persistent batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from inferoptim.config import KernelSettings
from inferoptim.errors import UnsupportedError
from inferoptim.kernels.cuda import attention as cuda_attention
from inferoptim.kernels.cuda import linear, prompts
from inferoptim.kernels.triton import attention, elementwise, gemv, rope, sampling
from inferoptim.kernels.triton.elementwise import Scales
from inferoptim.kernels.triton.sampling import SamplingRows
from inferoptim.models.batch import Batch, KVCache, KVLayer
from inferoptim.models.cuda_buffers import MIN_INT_MM_ROWS, Buffers
from inferoptim.models.cuda_products import Products, activation_dtype, parts
from inferoptim.models.decoder import Decoder, LayerWeights
from inferoptim.models.tiles import Tiles, tile_arrays
from inferoptim.quant.formats import DenseWeight, Linear

_MOST_WIDTH = 65536  # one program holds a row

# From this many rows on the product itself adds to the residual: the norm after it then moves half as much.
_ADDING_ROWS = 512
_WANTED_SHARE = (
    4  # a step whose logits are wanted for one token in so many, or fewer, ends with those tokens alone
)


@dataclass(frozen=True, slots=True)
class RowState:
    """The persistent batch on the device: what a decode step reads and moves on. Owner: the runner."""

    tokens: torch.Tensor  # int32 [rows]: the latest token, whose KV is not yet written
    positions: torch.Tensor  # int32 [rows]: where it stands
    limits: torch.Tensor  # int32 [rows]: from this position on the row computes nothing
    block_tables: torch.Tensor  # int32 [rows, M]
    sampling: SamplingRows


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """One batch size of decode steps: which rows take part, and where their tokens go."""

    rows_R: torch.Tensor  # int32; -1 = padding
    done_R: torch.Tensor  # int32: steps since the host set it to 0
    out: torch.Tensor  # int32 [steps, R]


class CudaDecoder:
    """Runs steps in Triton kernels and cuBLAS products.

    Args:
        decoder: on a CUDA device, bfloat16 or float16, dense, int8 or fp8.
        max_num_seqs: most rows of a decode step.
        max_logit_rows: most rows of logits in one usual step, not under `max_num_seqs`; default: as many.
        max_tokens: tokens of the largest usual step; larger ones work and allocate memory for themselves.
        max_model_len: positions to prepare rotations for.
        settings: how kernels cut their work.

    Raises:
        UnsupportedError: see `unsupported`.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_num_seqs: int,
        max_tokens: int,
        max_model_len: int,
        max_logit_rows: int | None = None,
        settings: KernelSettings | None = None,
    ) -> None:
        if (reason := unsupported(decoder)) is not None:
            raise UnsupportedError(f"CUDA kernels: {reason}; use kernels=torch")
        spec, weights = decoder.spec, decoder.weights
        self._settings = settings = settings or KernelSettings()
        self.spec = spec
        self.device = decoder.device
        self.dtype = decoder.dtype
        self.weights = weights
        self.weight_bytes = decoder.weight_bytes
        self.num_positions = max_model_len
        positions = torch.arange(max_model_len, device=weights.inv_freq.device, dtype=torch.float32)
        angles = torch.outer(positions, weights.inv_freq)
        self._rotations = torch.cat((angles.cos(), angles.sin()), dim=1).to(self.device)
        linears = [w for layer in weights.layers for w in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        self._products = Products(linears, self.dtype, self.device)
        self._fused_rope = not spec.qk_norm
        self._most_few = linear.most_rows(
            [parts(w)[0] for w in linears], self.dtype, self.device, settings.few_rows
        )
        self._buffers = Buffers(
            spec, max(max_tokens, max_num_seqs), self.dtype, self._products.activation, self.device
        )
        self.max_logit_rows = most = max_logit_rows or max_num_seqs
        shares = max(-(-spec.vocab_size // sampling.SHARE) * most, spec.vocab_size * gemv.MAX_ROWS)
        self._best = torch.empty(shares, dtype=torch.float32, device=self.device)
        self._best_at = torch.empty(shares, dtype=torch.int32, device=self.device)
        self._probs = torch.empty(most, spec.vocab_size, dtype=torch.float32, device=self.device)
        self._near = torch.empty(most, sampling.NEAR, dtype=torch.float32, device=self.device)
        self._logits = torch.empty(most, spec.vocab_size, dtype=self.dtype, device=self.device)
        self._head_rows = torch.empty(
            max(most, MIN_INT_MM_ROWS), spec.hidden_size, dtype=activation_dtype(weights.head, self.dtype),
            device=self.device,
        )  # fmt: skip
        self._head_scale = torch.empty(max(most, MIN_INT_MM_ROWS), dtype=torch.float32, device=self.device)
        self._scratch = attention.DecodeScratch.allocate(
            max_num_seqs,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            self.device,
            settings.kv_split_programs,
        )

    # ---- the contract of every decoder ------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        """Compute a step: writes the KV of its tokens, returns float32 logits [R, V] of the wanted rows."""
        arrays = tile_arrays(
            batch.query_start.cpu().numpy(),
            self.tile_tokens,
            batch.context_lens_S.cpu().numpy(),
            batch.logit_rows_R.cpu().numpy(),
        )
        tiles = Tiles(*(torch.from_numpy(array).to(self.device) for array in arrays))
        return self.forward_tiles(batch, kv, tiles).float()

    # ---- steps without the host -------------------------------------------------------------------------------

    @property
    def tile_tokens(self) -> int:
        """Queries in one tile of a varlen step."""
        return attention.tile_tokens(self.spec.num_heads // self.spec.num_kv_heads, self.spec.head_dim)

    def forward_tiles(self, batch: Batch, kv: KVCache, tiles: Tiles) -> torch.Tensor:
        """A varlen step; nothing in it waits for the device. Returns logits [R, V] in the model's type."""
        spec, rows = self.spec, batch.logit_rows_R
        b = self._buffers_for(batch.token_ids_T.shape[0])
        # Of the last layer nothing but the KV is read by later steps: the rest is computed for the wanted rows alone.
        few = rows if rows.shape[0] * _WANTED_SHARE <= b.x.shape[0] else None
        last = self.weights.layers[-1]
        elementwise.embed(batch.token_ids_T, self.weights.embedding, b.x)

        def attend(layer: LayerWeights, cache: KVLayer, scales: Scales | None) -> None:
            self._rope(b, layer, cache, batch.positions_T, scales, slots_T=batch.slot_mapping_T)
            sequence, start = tiles.sequence, tiles.start
            if few is not None and layer is last:
                sequence, start = tiles.wanted_sequence, tiles.wanted_start
            if sequence.shape[0]:
                attention.varlen_attention(
                    b.qkv, cache, b.attn, num_heads=spec.num_heads, tile_sequence=sequence, tile_start=start,
                    query_start=batch.query_start, context_lens=batch.context_lens_S,
                    block_tables=batch.block_tables_SM, window=layer.window,
                )  # fmt: skip

        rest = self._body(b, kv, attend, few)
        return self._head(b, rows if few is None else None, rest)

    def choose(
        self, logits_RV: torch.Tensor, batch: Batch, slots_R: torch.Tensor, rows: SamplingRows
    ) -> torch.Tensor:
        """The token of each row of logits of a varlen step, int32 [R], as its request wants it chosen.

        Args:
            slots_R: int32: the row of the batch that each belongs to; -1 = none, which gets the likeliest token.
        """
        count = logits_RV.shape[0]
        out = torch.empty(count, dtype=torch.int32, device=self.device)
        if count:
            best, best_at, probs, near = self._scratch_of_choice(count)
            where = (slots_R, batch.positions_T)
            shares = sampling.adjust_shares(logits_RV, *where, rows, probs, best, best_at, batch.logit_rows_R)
            sampling.choose(best, best_at, shares, *where, batch.logit_rows_R, rows, probs, near, out)
        return out

    def decode(self, state: RowState, step: DecodeStep, kv: KVCache) -> None:
        """One token for every row of `step`, on the device alone; can be captured in a CUDA graph."""
        rows = step.rows_R.shape[0]
        b = self._buffers_for(rows)
        elementwise.embed(state.tokens, self.weights.embedding, b.x, step.rows_R)
        if rows <= max(gemv.MAX_ROWS, self._most_few) and self._products.activation != torch.int8:
            shares = self._decode_few(b, state, step, kv)
        else:
            shares = self._decode_many(b, state, step, kv)
        sampling.advance(
            self._best, self._best_at, shares, state.sampling, self._probs[:rows], self._near, slots=step.rows_R,
            tokens=state.tokens, positions=state.positions, done=step.done_R, out=step.out,
        )  # fmt: skip

    def _decode_few(self, b: Buffers, state: RowState, step: DecodeStep, kv: KVCache) -> int:
        spec, eps = self.spec, self.spec.rms_norm_eps
        rows = b.x.shape[0]
        kernels: Any = gemv if rows <= gemv.MAX_ROWS else linear
        where = {
            "rows": step.rows_R, "positions": state.positions, "limits": state.limits,
            "block_tables": state.block_tables,
        }  # fmt: skip
        heads = spec.num_heads * spec.head_dim
        for layer, cache in zip(self.weights.layers, kv.layers, strict=True):
            weight, scale, bias = parts(layer.qkv)
            if self._fused_rope and cache.k_scale is None:
                q = b.qkv.view(-1)[: rows * heads].view(-1, heads)
                kernels.norm_qkv_rope(
                    b.x, layer.input_norm, weight, q, cache, self._rotations, eps, num_heads=spec.num_heads, scale=scale,
                    bias=bias, **where,
                )  # fmt: skip
            else:
                q = b.qkv
                kernels.norm_linear(b.x, layer.input_norm, weight, b.qkv, eps, scale=scale)
                self._rope(
                    b, layer, cache, state.positions, rows_T=step.rows_R, limits=state.limits,
                    block_tables=state.block_tables,
                )  # fmt: skip
            self._attend_decoding(q, cache, b.attn, window=layer.window, **where)
            weight, scale, _ = parts(layer.o)
            wants_linear = (
                self._most_few and weight.dtype == torch.float8_e4m3fn
            )  # faster even at one row (docs/LOG.md)
            (linear if wants_linear else kernels).linear_residual(b.attn, weight, b.x, scale)
            weight, scale, _ = parts(layer.gate_up)
            kernels.norm_gate_up(b.x, layer.post_norm, weight, b.act, eps, scale)
            weight, scale, _ = parts(layer.down)
            kernels.linear_residual(b.act, weight, b.x, scale)
        if rows > gemv.MAX_ROWS:
            return self._shares(self._head(b, None, None), state, step)
        weight, scale, _ = parts(self.weights.head)
        return gemv.norm_head(
            b.x, self.weights.final_norm, weight, step.rows_R, state.positions, state.sampling, self._probs, self._best,
            self._best_at, eps, scale,
        )  # fmt: skip

    def _decode_many(self, b: Buffers, state: RowState, step: DecodeStep, kv: KVCache) -> int:
        def attend(layer: LayerWeights, cache: KVLayer, scales: Scales | None) -> None:
            self._attend_rows(b, layer, cache, state, step, scales)

        return self._shares(self._head(b, None, self._body(b, kv, attend)), state, step)

    def _shares(self, logits: torch.Tensor, state: RowState, step: DecodeStep) -> int:
        return sampling.adjust_shares(
            logits, step.rows_R, state.positions, state.sampling, self._probs, self._best, self._best_at
        )

    def _attend_rows(
        self, b: Buffers, layer: LayerWeights, cache: KVLayer, state: RowState, step: DecodeStep,
        scales: Scales | None = None,
    ) -> None:  # fmt: skip
        """Rotate, write and attend for one token of every row, from `b.qkv` to `b.attn`."""
        self._rope(
            b, layer, cache, state.positions, scales, rows_T=step.rows_R, limits=state.limits,
            block_tables=state.block_tables,
        )  # fmt: skip
        self._attend_decoding(
            b.qkv, cache, b.attn, rows=step.rows_R, positions=state.positions, limits=state.limits,
            block_tables=state.block_tables, window=layer.window,
        )  # fmt: skip

    def _attend_decoding(self, q: torch.Tensor, cache: KVLayer, out: torch.Tensor, **where: Any) -> None:
        group = self.spec.num_heads // self.spec.num_kv_heads
        ours = cuda_attention.takes(q, cache, group, self._settings.cuda_attention_rows)
        kernels: Any = cuda_attention if ours else attention
        kernels.decode_attention(q, cache, out, self._scratch, num_heads=self.spec.num_heads, **where)

    # ---- parts ------------------------------------------------------------------------------------------------

    def _body(
        self, b: Buffers, kv: KVCache, attend: _Attend, wanted_R: torch.Tensor | None = None
    ) -> _Rest | None:
        """All layers; leaves the residual in `b.x`, but for what it returns.

        Args:
            wanted_R: from the last layer's attention on only these rows are computed; `b` then holds no others.
        """
        rest: _Rest | None = None
        last = self.weights.layers[-1]
        for layer, cache in zip(self.weights.layers, kv.layers, strict=True):
            h, h_scale = self._inputs(b, layer.qkv)
            self._norm(b, layer.input_norm, rest, h, h_scale)
            scales = self._products.compute(h, h_scale, layer.qkv, b.qkv)
            attend(layer, cache, scales)
            if wanted_R is not None and layer is last:
                b.keep(wanted_R)
                if not wanted_R.shape[0]:
                    return None
            attn = b.attn
            if self._products.takes(layer.o) != self.dtype:
                assert b.attn_q is not None
                assert b.attn_scale is not None
                elementwise.quantize_rows(b.attn, b.attn_q, b.attn_scale)
                attn = b.attn_q
            rest = self._add(b, attn, b.attn_scale, layer.o)
            h, h_scale = self._inputs(b, layer.gate_up)
            self._norm(b, layer.post_norm, rest, h, h_scale)
            act = self._gate_up(b, h, h_scale, layer)
            rest = self._add(b, act, b.act_scale, layer.down)
        return rest

    def _inputs(self, b: Buffers, weight: Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Where a norm puts what a product reads, and its scales where that is 8-bit."""
        return (b.h_dense, None) if self._products.takes(weight) == self.dtype else (b.h, b.h_scale)

    def _gate_up(
        self, b: Buffers, h: torch.Tensor, h_scale: torch.Tensor | None, layer: LayerWeights
    ) -> torch.Tensor:
        """SwiGLU of `h` in what `down` takes its inputs in, into `b`."""
        weight, dense = layer.gate_up, self._products.takes(layer.down) == self.dtype
        least = self._settings.prompt_kernel_rows
        if dense and isinstance(weight, DenseWeight) and prompts.takes(h, weight.weight, least):
            prompts.gate_up(h, weight.weight, b.act)
            return b.act
        scales = self._products.compute(h, h_scale, weight, b.gate_up)
        act, act_scale = (b.act, None) if dense or b.act_q is None else (b.act_q, b.act_scale)
        elementwise.silu_mul(b.gate_up, act, act_scale, x_scales=scales)
        return act

    def _norm(
        self, b: Buffers, weight: torch.Tensor, rest: _Rest | None, out: torch.Tensor, scale: torch.Tensor | None,
        rows_R: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """RMSNorm of the residual, to which `rest` is added first; all rows, or only those named (`b.x` then stays)."""
        product, x_scales = rest or (b.x, None)
        elementwise.rms_norm(
            product, weight, self.spec.rms_norm_eps, out, residual_TH=None if rest is None else b.x, scale_T=scale,
            rows_R=rows_R, x_scales=x_scales,
        )  # fmt: skip

    def _add(self, b: Buffers, x: torch.Tensor, x_scale: torch.Tensor | None, weight: Linear) -> _Rest | None:
        """Add ``x @ weight.T`` to the residual, or leave that to the norm that follows."""
        if isinstance(weight, DenseWeight) and x.shape[0] >= _ADDING_ROWS:
            b.x.addmm_(x, weight.weight.t())
            return None
        return b.out, self._products.compute(x, x_scale, weight, b.out)

    def _head(self, b: Buffers, logit_rows_R: torch.Tensor | None, rest: _Rest | None) -> torch.Tensor:
        """Final norm and logits [R, V] of the wanted rows, or of all."""
        rows = b.x.shape[0] if logit_rows_R is None else logit_rows_R.shape[0]
        if rows > self.max_logit_rows:  # every position of a prompt (prompt logprobs, the quality gate)
            padded = max(rows, MIN_INT_MM_ROWS)
            h = torch.empty(padded, self.spec.hidden_size, dtype=self._head_rows.dtype, device=self.device)[
                :rows
            ]
            scale = torch.empty(padded, dtype=torch.float32, device=self.device)
            logits = torch.empty(rows, self.spec.vocab_size, dtype=self.dtype, device=self.device)
        else:
            h, scale, logits = self._head_rows[:rows], self._head_scale[:rows], self._logits[:rows]
        if rows:
            self._norm(b, self.weights.final_norm, rest, h, scale, logit_rows_R)
            self._products.compute(h, scale, self.weights.head, logits)
        return logits

    def _rope(
        self,
        b: Buffers,
        layer: LayerWeights,
        cache: KVLayer,
        positions: torch.Tensor,
        scales: Scales | None = None,
        **where: torch.Tensor,
    ) -> None:
        rope.rope_write(
            b.qkv, self._rotations, positions, cache, num_heads=self.spec.num_heads,
            num_kv_heads=self.spec.num_kv_heads, bias=layer.qkv.bias, q_norm=layer.q_norm, k_norm=layer.k_norm,
            eps=self.spec.rms_norm_eps, x_scales=scales, **where,
        )  # fmt: skip

    def _buffers_for(self, tokens: int) -> Buffers:
        held = self._buffers
        return (
            held.first(tokens)
            if tokens <= held.x.shape[0]
            else Buffers(self.spec, tokens, self.dtype, self._products.activation, self.device)
        )

    def _scratch_of_choice(self, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(best, where, probabilities, those near a threshold) for that many rows of logits."""
        if rows <= self.max_logit_rows:
            return self._best, self._best_at, self._probs[:rows], self._near
        shares = rows * -(-self.spec.vocab_size // sampling.SHARE)
        return (
            torch.empty(shares, dtype=torch.float32, device=self.device),
            torch.empty(shares, dtype=torch.int32, device=self.device),
            torch.empty(rows, self.spec.vocab_size, dtype=torch.float32, device=self.device),
            torch.empty(rows, sampling.NEAR, dtype=torch.float32, device=self.device),
        )


# a product that is still to be added to the residual, and by what it is multiplied
_Rest = tuple[torch.Tensor, Scales | None]


class _Attend(Protocol):
    def __call__(self, layer: LayerWeights, cache: KVLayer, scales: Scales | None) -> None: ...


def unsupported(decoder: Decoder) -> str | None:
    """Why the CUDA step cannot take this model, in a few words; None when it can."""
    spec = decoder.spec
    if decoder.device.type == "cuda":
        capability = torch.cuda.get_device_capability(decoder.device)
        if capability < (8, 0):
            return f"compute capability {capability[0]}.{capability[1]} is under 8.0"
    elif decoder.device.type != "meta":  # where nothing is computed: see engine/rehearsal.py
        return f"the model is on {decoder.device.type}"
    if decoder.dtype not in (torch.bfloat16, torch.float16):
        return f"{decoder.dtype} is not bfloat16 or float16"
    if spec.head_dim % 8 or not 16 <= spec.head_dim <= 256:
        return f"head size {spec.head_dim} is not a multiple of 8 between 16 and 256"
    if spec.num_heads // spec.num_kv_heads > 64:
        return f"{spec.num_heads // spec.num_kv_heads} query heads share a KV head; at most 64 may"
    if max(spec.hidden_size, spec.intermediate_size) > _MOST_WIDTH:
        return f"a layer is wider than {_MOST_WIDTH}"
    widths = (spec.hidden_size, spec.intermediate_size, spec.num_heads * spec.head_dim)
    linears = (w for layer in decoder.weights.layers for w in (layer.qkv, layer.o, layer.gate_up, layer.down))
    eight_bit = any(activation_dtype(weight, decoder.dtype).itemsize == 1 for weight in linears)
    if eight_bit and any(n % 16 for n in widths):
        return f"8-bit products take widths that are multiples of 16, and one of {widths} is not"
    return None
