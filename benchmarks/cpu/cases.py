"""What every engine is asked to do: the same token ids, the same number of new tokens, greedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inferoptim.bench.workload import build
from inferoptim.models.tokenizer import Tokenizer

DECODE_IN, DECODE_OUT = 97, 200
SUMMARISE_REQUESTS, SUMMARISE_OUT = 3, 128


@dataclass(frozen=True)
class Case:
    """One piece of work."""

    name: str
    prompts: tuple[tuple[int, ...], ...]
    output_tokens: int  # of every request; exactly, the end of sequence is ignored
    one_by_one: bool = False  # else all at once

    @property
    def concurrency(self) -> int:
        return 1 if self.one_by_one else len(self.prompts)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(p) for p in self.prompts)

    @property
    def is_prefill(self) -> bool:
        return self.output_tokens == 1

    @property
    def is_speculation(self) -> bool:
        """Our engine with speculation beside itself without: its text repeats the prompt's."""
        return self.name == "summarise"

    def requests(self) -> list[dict[str, Any]]:
        """What a worker is sent, one after the other."""
        groups = [[p] for p in self.prompts] if self.one_by_one else [list(self.prompts)]
        return [
            {"prompts": [list(p) for p in group], "output_tokens": self.output_tokens} for group in groups
        ]


def make_cases(tokenizer: Tokenizer, names: tuple[str, ...]) -> list[Case]:
    """The cases by name: 'decode-N' (N requests at once, 97 in and 200 out), 'prefill-T' (one prompt of T tokens) and
    'summarise' (articles with the request to sum them up, one by one)."""
    cases = []
    for name in names:
        if name == "summarise":
            workload = build(name, tokenizer, num_requests=SUMMARISE_REQUESTS, output_tokens=SUMMARISE_OUT)
            prompts = tuple(r.prompt_token_ids for r in workload.requests)
            cases.append(Case(name, prompts, SUMMARISE_OUT, one_by_one=True))
            continue
        kind, _, number = name.partition("-")
        if kind not in ("decode", "prefill") or not number.isdigit() or int(number) < 1:
            raise SystemExit(
                f"case {name!r}: write decode-N (requests at once), prefill-T (prompt tokens) or summarise"
            )
        if kind == "decode":
            count, length, new = int(number), DECODE_IN, DECODE_OUT
        else:
            count, length, new = 1, int(number), 1
        workload = build("guide", tokenizer, num_requests=count, input_tokens=length, output_tokens=new)
        cases.append(Case(name, tuple(r.prompt_token_ids for r in workload.requests), new))
    return cases
