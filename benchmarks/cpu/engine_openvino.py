"""OpenVINO GenAI's continuous batching pipeline on weights exported by optimum-intel."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai


class OpenVino:
    def __init__(self, options: dict[str, Any]) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 2  # GB
        scheduler.max_num_seqs = options["max_sequences"]
        scheduler.max_num_batched_tokens = 2048
        scheduler.enable_prefix_caching = False
        self._pipeline = genai.ContinuousBatchingPipeline(
            options["folder"], scheduler, "CPU", {"INFERENCE_NUM_THREADS": options["threads"]}
        )
        self.info = {
            "version": genai.__version__,
            "openvino": ov.__version__,
            "precision": options["precision"],
        }

    def generate(self, prompts: list[list[int]], output_tokens: int) -> tuple[float, float, list[list[int]]]:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = output_tokens
        config.ignore_eos = True
        config.do_sample = False
        started = time.perf_counter()
        handles = [
            self._pipeline.add_request(i, ov.Tensor(np.array([prompt], dtype=np.int64)), config)
            for i, prompt in enumerate(prompts)
        ]
        tokens: list[list[int]] = [[] for _ in prompts]
        first = 0.0
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for i, handle in enumerate(handles):
                while handle.can_read():
                    first = first or time.perf_counter() - started
                    for output in handle.read().values():
                        tokens[i] += output.generated_ids
        return time.perf_counter() - started, first, tokens


def load(options: dict[str, Any]) -> OpenVino:
    return OpenVino(options)
