"""Plain transformers: `generate` in bfloat16, one static batch, its default cache and attention."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer


class _FirstToken(BaseStreamer):
    def __init__(self) -> None:
        self.calls, self.at = 0, 0.0

    def put(self, value: torch.Tensor) -> None:
        self.calls += 1
        if self.calls == 2:  # the first call brings the prompt
            self.at = time.perf_counter()

    def end(self) -> None:
        pass


class Transformers:
    def __init__(self, options: dict[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        self._model = AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.bfloat16).eval()
        self.info = {"version": transformers.__version__, "torch": torch.__version__, "precision": "bfloat16"}

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], output_tokens: int) -> tuple[float, float, list[list[int]]]:
        ids = torch.tensor(prompts)
        streamer = _FirstToken() if len(prompts) == 1 else None  # it takes one sequence only
        started = time.perf_counter()
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=output_tokens,
            min_new_tokens=output_tokens,
            do_sample=False,
            streamer=streamer,
            pad_token_id=0,
        )
        total = time.perf_counter() - started
        first = streamer.at - started if streamer else 0.0
        return total, first, out[:, ids.shape[1] :].tolist()


def load(options: dict[str, Any]) -> Transformers:
    return Transformers(options)
