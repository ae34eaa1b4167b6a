"""An engine that answers at once, without a model: what remains is the server. For measuring the HTTP path only."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from inferoptim import __version__
from inferoptim.config import EngineConfig
from inferoptim.engine.request import FinishReason, Request, TokenOutput
from inferoptim.models.hub import resolve_model
from inferoptim.models.tokenizer import load_tokenizer


@dataclass(slots=True)
class _Running:
    num_prompt: int
    max_tokens: int
    given: int = 0


class NullCore:
    """The interface of an engine core. Every request gets the same tokens, one a step, up to max_tokens.

    Args:
        config: only the model (for its tokenizer), max_model_len and max_num_seqs are read.
        step_s: how long a step takes, seconds; 0 gives tokens as fast as the server takes them.
    """

    def __init__(self, config: EngineConfig, step_s: float = 0.0) -> None:
        self.config = config
        self._step_s = step_s
        self._next_s = 0.0
        tokenizer = load_tokenizer(resolve_model(config.model).folder)
        self._tokens = tokenizer.encode(
            " the quick brown fox jumps over the lazy dog", add_special_tokens=False
        )
        self.vocab_size = tokenizer.vocab_size
        self.eos_token_ids: tuple[int, ...] = ()
        self.max_model_len = config.max_model_len or 8192
        self._running: dict[str, _Running] = {}
        self._steps = 0
        self._work: list[tuple[str, int, int]] = []

    def prepare_grammars(self) -> None:
        """There are none."""

    def add(self, request: Request) -> None:
        """Queue a request; nothing is checked."""
        self._running[request.request_id] = _Running(
            len(request.prompt_token_ids), request.sampling.max_tokens
        )

    def abort(self, request_id: str) -> None:
        """Forget a request."""
        self._running.pop(request_id, None)

    finish = abort

    @property
    def has_work(self) -> bool:
        """True while a request runs."""
        return bool(self._running)

    def step(self) -> list[TokenOutput]:
        """One token for each of the first max_num_seqs requests."""
        self._pace()
        outputs: list[TokenOutput] = []
        self._work = []
        for request_id in list(self._running)[: self.config.max_num_seqs]:
            state = self._running[request_id]
            token = self._tokens[state.given % len(self._tokens)]
            start = state.num_prompt + state.given - 1 if state.given else 0
            self._work.append((request_id, start, 1 if state.given else state.num_prompt))
            state.given += 1
            ended = state.given >= state.max_tokens
            outputs.append(TokenOutput(request_id, (token,), FinishReason.LENGTH if ended else None, 0))
            if ended:
                del self._running[request_id]
        self._steps += 1
        return outputs

    def _pace(self) -> None:
        """Wait for the next step's time; time that was lost is not made up for."""
        now_s = time.perf_counter()
        if self._next_s > now_s:
            time.sleep(self._next_s - now_s)
        self._next_s = max(self._next_s, now_s) + self._step_s

    def step_work(self) -> list[tuple[str, int, int]]:
        """What the latest step pretended to compute."""
        return self._work

    def counters(self) -> dict[str, float]:
        """Steps made."""
        return {"steps": self._steps, "step_s": 0.0}

    def kv_usage(self) -> dict[str, int]:
        """There is no KV-cache."""
        running = min(len(self._running), self.config.max_num_seqs)
        return {"running": running, "waiting": len(self._running) - running}

    def check(self) -> None:
        """There are no blocks to lose."""

    def info(self) -> dict[str, Any]:
        """What runs here: nothing."""
        return {"version": __version__, "model": self.config.model, "decoder": "null", "device": "none"}
