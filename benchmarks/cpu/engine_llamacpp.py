"""llama.cpp through llama-cpp-python's C bindings: all requests as sequences of one batch, as its batched bench runs them."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp as c
import numpy as np


class LlamaCpp:
    def __init__(self, options: dict[str, Any]) -> None:
        self._silence = c.llama_log_callback(lambda level, text, data: None)
        c.llama_log_set(self._silence, None)
        c.llama_backend_init()
        self._model = c.llama_model_load_from_file(options["gguf"].encode(), c.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {options['gguf']}")
        params = c.llama_context_default_params()
        params.n_ctx = options["context_tokens"]
        params.n_seq_max = options["max_sequences"]
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = options["threads"]
        if hasattr(params, "kv_unified"):
            params.kv_unified = True
        self._context = c.llama_init_from_model(self._model, params)
        if not self._context:
            raise SystemExit("llama.cpp made no context")
        self._batch_tokens = 512
        self._batch = c.llama_batch_init(self._batch_tokens, 0, 1)
        self._vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self._model))
        self.info = {
            "version": f"llama-cpp-python {c.__version__}",
            "system": c.llama_print_system_info().decode(),
            "precision": options["precision"],
        }

    def generate(self, prompts: list[list[int]], output_tokens: int) -> tuple[float, float, list[list[int]]]:
        c.llama_memory_clear(c.llama_get_memory(self._context), True)
        tokens: list[list[int]] = [[] for _ in prompts]
        started = time.perf_counter()
        flat = [
            (token, position, s, position == len(prompt) - 1)
            for s, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        first = 0.0
        for i in range(0, len(flat), self._batch_tokens):
            self._decode(flat[i : i + self._batch_tokens], tokens)
            if not first and any(tokens):
                first = time.perf_counter() - started
        for step in range(1, output_tokens):
            rows = [(tokens[s][-1], len(p) + step - 1, s, True) for s, p in enumerate(prompts)]
            self._decode(rows, tokens)
        return time.perf_counter() - started, first, tokens

    def _decode(self, rows: list[tuple[int, int, int, bool]], tokens: list[list[int]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        if (status := c.llama_decode(self._context, batch)) != 0:
            raise SystemExit(f"llama_decode returned {status}")
        for i, (_, _, sequence, wanted) in enumerate(rows):
            if wanted:
                logits = c.llama_get_logits_ith(self._context, i)
                address = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * self._vocab)).contents
                tokens[sequence].append(int(np.frombuffer(address, np.float32).argmax()))


def load(options: dict[str, Any]) -> LlamaCpp:
    return LlamaCpp(options)
