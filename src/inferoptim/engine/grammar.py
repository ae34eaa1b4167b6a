"""Output that must follow a grammar: which tokens may come next, from llguidance. Imported only when a request has one.

A grammar is llguidance's own text (JSON or Lark form). It is compiled once and kept; each sequence owns a copy of the
compiled state, which its accepted tokens advance.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inferoptim.errors import RequestError, UnsupportedError

_KEPT_GRAMMARS = 64


class GrammarState:
    """Where one sequence stands in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)

    def allowed(self) -> np.ndarray:
        """Bool [V]: the tokens that may come next. Once the grammar is complete, or broken, only end-of-sequence."""
        if not self._matcher.is_stopped():
            packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            mask = np.unpackbits(packed, bitorder="little", count=self._vocab_size).view(bool)
            if mask.any():
                return mask
        mask = np.zeros(self._vocab_size, dtype=bool)
        mask[self._eos_token_ids] = True
        return mask

    def allowed_along(self, drafts: Sequence[int]) -> list[np.ndarray]:
        """`allowed()` here and after each draft; after one that is not allowed, nothing is verified: the last repeats."""
        masks = [self.allowed()]
        consumed = 0
        for token in drafts:
            if masks[-1][token] and token not in self._eos_token_ids and self._matcher.consume_token(token):
                consumed += 1
                masks.append(self.allowed())
            else:
                masks += [masks[-1]] * (len(drafts) + 1 - len(masks))
                break
        if consumed:
            self._matcher.rollback(consumed)
        return masks

    def advance(self, tokens: Iterable[int]) -> None:
        """Take the tokens that the sequence gained."""
        for token in tokens:
            if token in self._eos_token_ids or self._matcher.is_stopped():
                return
            self._matcher.consume_token(token)


class GrammarCompiler:
    """Grammars for one tokenizer.

    Args:
        folder: of the model, with its tokenizer.json.
        vocab_size: rows of the logits.
        eos_token_ids: what ends a sequence.

    Raises:
        UnsupportedError: llguidance is not installed or cannot take the tokenizer, or the model has no end-of-sequence token.
    """

    def __init__(self, folder: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        try:
            import llguidance
        except ModuleNotFoundError as error:
            raise UnsupportedError(
                "structured output needs the Python package llguidance: pip install 'inference-optim-llm[serve]'"
            ) from error
        if not eos_token_ids:
            raise UnsupportedError("structured output needs a model with an end-of-sequence token")
        self._vocab_size, self._eos_token_ids = vocab_size, tuple(eos_token_ids)
        self._make: Any = llguidance.LLMatcher
        try:
            self._tokenizer = llguidance.LLTokenizer(
                str(folder / "tokenizer.json"), n_vocab=vocab_size, eos_token=list(eos_token_ids)
            )
        except ValueError as error:
            raise UnsupportedError(
                f"structured output: llguidance cannot take {folder / 'tokenizer.json'}: {first_line(str(error))}"
            ) from error
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    def check(self, grammar: str) -> None:
        """Compile, and keep it for `start`.

        Raises:
            RequestError: it is not a grammar, or beyond llguidance's limits.
        """
        self._compile(grammar)

    def start(self, grammar: str, token_ids: Sequence[int] = ()) -> GrammarState:
        """A fresh state, after `token_ids` of output."""
        state = GrammarState(self._compile(grammar).deep_copy(), self._vocab_size, self._eos_token_ids)
        state.advance(token_ids)
        return state

    def _compile(self, grammar: str) -> Any:
        matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = self._make(self._tokenizer, grammar, log_level=0)
            if matcher.is_error():
                raise RequestError(f"the grammar cannot be used: {first_line(matcher.get_error())}")
            self._compiled[grammar] = matcher
            if len(self._compiled) > _KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        else:
            self._compiled.move_to_end(grammar)
        return matcher


def first_line(text: str) -> str:
    """The first line of a library's message."""
    return text.strip().split("\n", 1)[0]
