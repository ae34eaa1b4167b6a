"""How each row of the batch is sampled on an NVIDIA GPU: the host's side of `kernels/triton/sampling.py`."""

from __future__ import annotations

import numpy as np
import torch

from inferoptim.config import MAX_DEVICE_RULES
from inferoptim.engine.step import Admission
from inferoptim.kernels.triton import sampling as on_device
from inferoptim.kernels.triton.sampling import SamplingRows

_ALWAYS = 2**31 - 1


class SamplingTable:
    """Parameters of every row, and the tokens that rows with penalties have seen.

    The device counts the tokens that it chooses. It must be told of all others: `count` does so for rows in `uncounted`.

    Args:
        num_rows: rows of the persistent batch.
        vocab: tokens of the vocabulary.
        eos_token_ids: what a request that minds the end of sequence may not choose below its min_tokens.
    """

    def __init__(
        self, num_rows: int, vocab: int, eos_token_ids: tuple[int, ...], device: torch.device
    ) -> None:
        self._vocab = vocab
        self._eos = eos_token_ids
        self.rows = SamplingRows.allocate(num_rows, vocab, MAX_DEVICE_RULES + len(eos_token_ids), device)
        self._fields = np.zeros((num_rows, on_device.NUM_FIELDS), dtype=np.int32)
        self._rules = np.zeros(self.rows.rules.shape, dtype=np.int32)
        self._changed = [False, False]  # fields, rules
        self._penalised = np.zeros(num_rows, dtype=bool)
        self._counted = np.zeros(num_rows, dtype=bool)

    def admit(self, admission: Admission, seed: int) -> None:
        """A sequence takes a row."""
        s, slot = admission.sampling, admission.slot
        fields = np.zeros(on_device.NUM_FIELDS, dtype=np.int32)
        real = fields.view(np.float32)
        real[on_device.TEMPERATURE], real[on_device.TOP_P], real[on_device.MIN_P] = (
            s.temperature, s.top_p, s.min_p,
        )  # fmt: skip
        real[on_device.REPETITION], real[on_device.PRESENCE], real[on_device.FREQUENCY] = (
            s.repetition_penalty, s.presence_penalty, s.frequency_penalty,
        )  # fmt: skip
        fields[on_device.TOP_K] = min(s.top_k or self._vocab, self._vocab)
        fields[on_device.PENALISED] = self._penalised[slot] = s.penalises
        fields[[on_device.SEED_LOW, on_device.SEED_HIGH]] = np.array([seed], dtype=np.uint64).view(np.int32)
        rules = [(token, bias, _ALWAYS) for token, bias in s.logit_bias.items()]
        if s.min_tokens:
            stops = s.stop_token_ids if s.ignore_eos else (*s.stop_token_ids, *self._eos)
            rules += [(token, -np.inf, admission.num_prompt + s.min_tokens) for token in dict.fromkeys(stops)]
        fields[on_device.RULES] = len(rules)
        if rules:
            ids, values, until = zip(*rules, strict=True)
            self._rules[slot, 0, : len(rules)] = ids
            self._rules[slot, 1, : len(rules)] = np.asarray(values, dtype=np.float32).view(np.int32)
            self._rules[slot, 2, : len(rules)] = until
            self._changed[1] = True
        if (fields != self._fields[slot]).any():
            self._fields[slot] = fields
            self._changed[0] = True
        self._counted[slot] = False

    def upload(self) -> None:
        """Tell the device what changed."""
        for which, (host, there) in enumerate(
            ((self._fields, self.rows.fields), (self._rules, self.rows.rules))
        ):
            if self._changed[which]:
                there.copy_(_pinned(host, there.device), non_blocking=True)
                self._changed[which] = False

    def penalises(self, slot: int) -> bool:
        """Whether the row's choice depends on the tokens before it."""
        return bool(self._penalised[slot])

    def uncounted(self, slots: np.ndarray) -> list[int]:
        """Of these rows, those with penalties whose tokens the device does not know."""
        found: list[int] = slots[self._penalised[slots] & ~self._counted[slots]].tolist()
        return found

    def count(self, slot: int, token_ids: np.ndarray, num_prompt: int) -> None:
        """Tell the device every token of a row so far."""
        ids, counts = np.unique(token_ids[num_prompt:], return_counts=True)
        values = np.zeros(self._vocab, dtype=np.int16)
        values[ids] = np.minimum(counts, on_device.MAX_COUNT)
        values[token_ids[:num_prompt]] |= on_device.IN_PROMPT
        there = self.rows.counts[slot]
        there.copy_(_pinned(values, there.device), non_blocking=True)
        self._counted[slot] = True

    def lose_count(self, slots: np.ndarray) -> None:
        """The host chooses the next tokens of these rows."""
        self._counted[slots] = False


def _pinned(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy that stays as it is until the device has read it: torch keeps pinned memory until then."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor.clone()
