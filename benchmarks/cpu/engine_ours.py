"""Our engine, every lossless lever on; int8 weights and activations unless told otherwise."""

from __future__ import annotations

import time
from typing import Any


class Ours:
    def __init__(self, options: dict[str, Any]) -> None:
        from inferoptim import LLM, EngineConfig
        from inferoptim.kernels.cpu import describe

        self._llm = LLM(EngineConfig.create(model=options["model"], device="cpu", **options["config"]))
        core = self._llm.core
        spec = core.spec
        self.info = {
            **core.info(),
            "config": core.config.model_dump(),
            "kernels": describe(),
            "body_parameters": spec.body_parameters,
            "head_parameters": spec.head_parameters,
        }

    def generate(self, prompts: list[list[int]], output_tokens: int) -> tuple[float, float, list[list[int]]]:
        from inferoptim.config import SamplingParams
        from inferoptim.engine.request import Request

        core = self._llm.core
        core.reset_prefix_cache()
        sampling = SamplingParams(temperature=0, max_tokens=output_tokens, ignore_eos=True)
        tokens: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
        first = 0.0
        started = time.perf_counter()
        for i, prompt in enumerate(prompts):
            core.add(Request(str(i), tuple(prompt), sampling, started, frozenset(core.spec.eos_token_ids)))
        while core.has_work:
            for output in core.step():
                first = first or time.perf_counter() - started
                tokens[output.request_id] += output.token_ids
        return time.perf_counter() - started, first, list(tokens.values())


def load(options: dict[str, Any]) -> Ours:
    return Ours(options)
