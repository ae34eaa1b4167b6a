"""What every engine is asked to do: the same token ids, the same number of new tokens, greedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inferoptim.bench.workload import build
from inferoptim.models.tokenizer import Tokenizer

DECODE_IN, DECODE_OUT = 97, 200


@dataclass(frozen=True)
class Case:
    """One piece of work."""

    name: str
    prompts: tuple[tuple[int, ...], ...]
    output_tokens: int  # of every request; exactly, the end of sequence is ignored

    @property
    def concurrency(self) -> int:
        return len(self.prompts)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(p) for p in self.prompts)

    @property
    def is_prefill(self) -> bool:
        return self.output_tokens == 1

    def request(self) -> dict[str, Any]:
        """What a worker is sent."""
        return {"prompts": [list(p) for p in self.prompts], "output_tokens": self.output_tokens}


def make_cases(tokenizer: Tokenizer, names: tuple[str, ...]) -> list[Case]:
    """The cases by name: 'decode-N' (N requests at once, 97 in and 200 out) and 'prefill-T' (one prompt of T tokens)."""
    cases = []
    for name in names:
        kind, _, number = name.partition("-")
        if kind not in ("decode", "prefill") or not number.isdigit() or int(number) < 1:
            raise SystemExit(f"case {name!r}: write decode-N (requests at once) or prefill-T (prompt tokens)")
        if kind == "decode":
            count, length, new = int(number), DECODE_IN, DECODE_OUT
        else:
            count, length, new = 1, int(number), 1
        workload = build("guide", tokenizer, num_requests=count, input_tokens=length, output_tokens=new)
        cases.append(Case(name, tuple(r.prompt_token_ids for r in workload.requests), new))
    return cases
