"""The decoder whose step is one native call: same contract as `Decoder`, weights packed for the CPU kernels.

Legend: T tokens of the step · R rows whose logits are wanted · V vocabulary · D head size.
"""

from __future__ import annotations

import ctypes

import torch

from inferoptim.config import KernelSettings
from inferoptim.errors import UnsupportedError
from inferoptim.hardware.cpu import usable_cores
from inferoptim.kernels import cpu
from inferoptim.kernels.cpu.native import (
    GROUPS,
    INT8_DYNAMIC,
    INT8_WEIGHT_ONLY,
    KV_TYPES,
    LINEAR_KINDS,
    Keep,
    LayerSource,
    LinearSource,
    ModelSource,
    NativeModel,
    Step,
)
from inferoptim.models.batch import Batch, KVCache
from inferoptim.models.decoder import Decoder
from inferoptim.models.rotary import cos_sin
from inferoptim.quant.formats import DenseWeight, Fp8Weight, GroupedWeight, Int8Weight, Linear


class FusedDecoder:
    """Runs a step in native code. Holds its own copy of the weights; the KV-cache belongs to the caller."""

    def __init__(
        self, decoder: Decoder, num_threads: int | None = None, settings: KernelSettings | None = None
    ) -> None:
        """Pack a decoder's weights, which are not needed afterwards.

        Args:
            decoder: on the CPU, float32 or bfloat16; dense, int8 or in groups.
            num_threads: default: the cores that this process may use.
            settings: how a step is cut; changes no result.

        Raises:
            UnsupportedError: see `unsupported`; or the kernels are not available here.
        """
        if (reason := unsupported(decoder)) is not None:
            raise UnsupportedError(f"native CPU kernels: {reason}; use kernels=torch")
        spec, weights = decoder.spec, decoder.weights
        self.spec = spec
        self.device = decoder.device
        self.dtype = decoder.dtype
        self.num_threads = num_threads or usable_cores()
        self._embedding = weights.embedding.contiguous()
        self._inv_freq = weights.inv_freq
        self._angles = cos_sin(torch.arange(0), weights.inv_freq)
        self._kv: KVCache | None = None
        self._kv_pointers: tuple[ctypes.Array[ctypes.c_void_p], ...] = ()
        cut = settings or KernelSettings()
        keep = Keep()
        source = ModelSource(
            hidden=spec.hidden_size,
            intermediate=spec.intermediate_size,
            layers=spec.num_layers,
            heads=spec.num_heads,
            kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            vocab=spec.vocab_size,
            threads=self.num_threads,
            prompt_rows=cut.prompt_rows,
            prompt_block=cut.prompt_block,
            tasks=cut.product_tasks,
            eps=spec.rms_norm_eps,
            embedding_type=0 if self._embedding.dtype == torch.float32 else 1,
            embedding=self._embedding.data_ptr(),
            final_norm=keep.address(weights.final_norm, torch.float32),
        )
        self._model = NativeModel(cpu.library(), source)
        for layer in weights.layers:
            keep = Keep()
            self._model.add_layer(
                LayerSource(
                    qkv=_linear(keep, layer.qkv),
                    o=_linear(keep, layer.o),
                    gate_up=_linear(keep, layer.gate_up),
                    down=_linear(keep, layer.down),
                    input_norm=keep.address(layer.input_norm, torch.float32),
                    post_norm=keep.address(layer.post_norm, torch.float32),
                    q_norm=keep.address(layer.q_norm, torch.float32),
                    k_norm=keep.address(layer.k_norm, torch.float32),
                    window=layer.window or 0,
                )
            )
        keep = Keep()
        self._model.set_head(_linear(keep, weights.head))
        self.read_bytes = self._model.weight_bytes  # of weights, by every step
        self.weight_bytes = self.read_bytes + self._embedding.nbytes

    def forward(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        """Compute a step: writes the KV of its tokens, returns float32 logits [R, V] of the wanted rows."""
        logits_RV = torch.empty(batch.logit_rows_R.shape[0], self.spec.vocab_size)
        self._run(batch, kv, logits=logits_RV.data_ptr())
        return logits_RV

    def forward_greedy(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        """The same step; returns the likeliest token of each wanted row, int64 [R], the lowest id among equals.

        The logits are never written to memory.
        """
        chosen_R = torch.empty(batch.logit_rows_R.shape[0], dtype=torch.int64)
        self._run(batch, kv, chosen=chosen_R.data_ptr())
        return chosen_R

    def decode_greedy(self, batch: Batch, kv: KVCache, steps: int) -> torch.Tensor:
        """Several decode steps in a row, the likeliest token of each fed to the next; int64 [steps, S].

        Args:
            batch: the first step: one token a sequence, each wanting its logits; its block tables have room for
                `steps` tokens.
        """
        assert batch.token_ids_T.shape == batch.logit_rows_R.shape == batch.context_lens_S.shape
        chosen = torch.empty(steps, batch.logit_rows_R.shape[0], dtype=torch.int64)
        self._run(batch, kv, chosen=chosen.data_ptr(), steps=steps)
        return chosen

    def _run(self, batch: Batch, kv: KVCache, logits: int = 0, chosen: int = 0, steps: int = 1) -> None:
        first = kv.layers[0]
        if kv is not self._kv:
            self._kv, self._kv_pointers = kv, _pointers(kv)
        pointers = self._kv_pointers
        cos, sin = self._table(batch.max_context_len + steps - 1)
        self._model.run(
            Step(
                tokens=batch.token_ids_T.shape[0],
                sequences=batch.context_lens_S.shape[0],
                rows=batch.logit_rows_R.shape[0],
                table_width=batch.block_tables_SM.shape[1],
                block_size=kv.block_size,
                kv_type=KV_TYPES[first.k.dtype],
                greedy=int(chosen != 0),
                steps=steps,
                token_ids=batch.token_ids_T.data_ptr(),
                positions=batch.positions_T.data_ptr(),
                slots=batch.slot_mapping_T.data_ptr(),
                query_start=batch.query_start.data_ptr(),
                context=batch.context_lens_S.data_ptr(),
                tables=batch.block_tables_SM.data_ptr(),
                logit_rows=batch.logit_rows_R.data_ptr(),
                cos=cos.data_ptr(),
                sin=sin.data_ptr(),
                k=ctypes.addressof(pointers[0]),
                v=ctypes.addressof(pointers[1]),
                k_scale=None if first.k_scale is None else ctypes.addressof(pointers[2]),
                v_scale=None if first.v_scale is None else ctypes.addressof(pointers[3]),
                logits=logits,
                chosen=chosen,
            )
        )

    def _table(self, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of every position below `positions`, at least: [P, D / 2] each, computed once."""
        known = self._angles[0].shape[0]
        if known < positions:
            most = max(self.spec.max_position, positions)
            self._angles = cos_sin(torch.arange(min(max(positions, 2 * known, 4096), most)), self._inv_freq)
        return self._angles


def unsupported(decoder: Decoder) -> str | None:
    """Why the native step cannot take this model, in a few words; None when it can."""
    if decoder.device.type != "cpu":
        return f"the model is on {decoder.device.type}"
    if decoder.dtype not in (torch.float32, torch.bfloat16):
        return f"{decoder.dtype} is not float32 or bfloat16"
    if decoder.spec.head_dim % 16:
        return f"head size {decoder.spec.head_dim} is not a multiple of 16"
    products = (
        w for layer in decoder.weights.layers for w in (layer.qkv, layer.o, layer.gate_up, layer.down)
    )
    if any(isinstance(weight, Fp8Weight) for weight in products):
        return "its weights are FP8"
    return None


def _linear(keep: Keep, weight: Linear) -> LinearSource:
    """A layer's weight as the native side takes it: the type decides the kernel."""
    n, k = weight.shape
    bias = keep.address(weight.bias, torch.float32)
    if isinstance(weight, GroupedWeight):
        return LinearSource(
            kind=GROUPS,
            n=n,
            k=k,
            group=weight.group_size,
            bits=weight.bits,
            zero=weight.zero,
            half=int(weight.scale.dtype == torch.float16),
            weight=keep.address(weight.q),
            scale=keep.address(weight.scale),
            minimum=keep.address(weight.minimum, weight.scale.dtype),
            bias=bias,
        )
    if isinstance(weight, Int8Weight):
        return LinearSource(
            kind=INT8_DYNAMIC if weight.dynamic_activations else INT8_WEIGHT_ONLY,
            n=n,
            k=k,
            weight=keep.address(weight.q),
            scale=keep.address(weight.scale, torch.float32),
            bias=bias,
        )
    assert isinstance(weight, DenseWeight)
    kind = LINEAR_KINDS[weight.weight.dtype]
    return LinearSource(kind=kind, n=n, k=k, weight=keep.address(weight.weight), bias=bias)


def _pointers(kv: KVCache) -> tuple[ctypes.Array[ctypes.c_void_p], ...]:
    def array(tensors: list[torch.Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
        return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))

    return (
        array([layer.k for layer in kv.layers]),
        array([layer.v for layer in kv.layers]),
        array([layer.k_scale for layer in kv.layers]),
        array([layer.v_scale for layer in kv.layers]),
    )
