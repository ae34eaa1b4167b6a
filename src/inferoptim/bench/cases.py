"""The cases of a plan: one workload at one concurrency, as exact requests, and the memory that they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from inferoptim.bench import workload
from inferoptim.bench.plan import BenchPlan, WorkloadPlan
from inferoptim.bench.traffic import TokenizerLike, Workload, WorkloadRequest
from inferoptim.config import SamplingParams
from inferoptim.errors import ConfigError
from inferoptim.records.synthetic_text import SyntheticText
from inferoptim.records.workload_file import load_workload
from inferoptim.targets.base import TargetRequest


@dataclass(frozen=True, slots=True)
class Case:
    """What every configuration serves, the same requests each time."""

    name: str  # 'guide@32'
    concurrency: int  # in flight at any time (closed loop), or most sequences of an engine step (open loop)
    open_loop: bool  # requests are sent at their arrival times
    requests: tuple[TargetRequest, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def prompt_tokens(self) -> int:
        return sum(len(r.prompt_token_ids) for r in self.requests)

    @property
    def output_tokens(self) -> int:
        return sum(r.sampling.max_tokens for r in self.requests)

    @property
    def longest_tokens(self) -> int:
        """Prompt and answer of the longest request."""
        return max(len(r.prompt_token_ids) + r.sampling.max_tokens for r in self.requests)

    @property
    def shareable_tokens(self) -> int:
        """Upper bound of the prompt tokens that a prefix cache, empty at the start, can find during one run."""
        prompts = sorted(r.prompt_token_ids for r in self.requests)
        common = [0, *(_common(a, b) for a, b in pairwise(prompts)), 0]
        return sum(max(common[i], common[i + 1]) for i in range(len(prompts)))


def build_cases(plan: BenchPlan, tokenizer: TokenizerLike, context: int) -> list[Case]:
    """The requests of every workload at every concurrency.

    Args:
        context: longest sequence of the model, tokens.

    Raises:
        ConfigError: a workload that cannot be made (text too short, bad file, too long for the context).
    """
    cases: list[Case] = []
    for part in plan.workloads:
        limit, most = min(context, plan.max_model_len or context), max(part.concurrency)
        largest = _case(most, _workload(part, most, tokenizer, plan.seed, limit), tokenizer)
        if largest.open_loop:  # arrivals decide how many run at once: one case, with room for the most
            cases.append(largest)
            continue
        for concurrency in part.concurrency:
            if concurrency == most:
                cases.append(largest)
            else:
                made = _workload(part, concurrency, tokenizer, plan.seed, limit)
                cases.append(_case(concurrency, made, tokenizer))
    names = [case.name for case in cases]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"workloads: two of them are called {twice}; rename one of the files")
    return cases


def _workload(
    part: WorkloadPlan, concurrency: int, tokenizer: TokenizerLike, seed: int, context: int
) -> Workload:
    per_slot = part.requests_per_slot or (3 if part.name == "chat" else 1)
    wanted = None if part.file and not part.requests_per_slot else concurrency * per_slot
    if part.name == "replay":
        made = _replayed(str(part.file), tokenizer, wanted)
        made.check_fits(context)
        return made
    synthetic = part.synthetic_lengths is not None
    return workload.build(
        part.file or part.name,
        tokenizer,
        num_requests=wanted,
        seed=seed,
        input_tokens=None if synthetic else part.prompt_tokens,
        output_tokens=None if synthetic else part.output_tokens,
        max_model_len=context,
    )


def _replayed(name: str, tokenizer: TokenizerLike, count: int | None) -> Workload:
    """The first `count` requests of a workload file (None: all), as exact tokens."""
    stored = load_workload(name)
    text = SyntheticText(tokenizer)
    is_open = stored.header.arrivals == "open"
    requests = tuple(
        WorkloadRequest(
            text.prompt(stored, i).token_ids,
            request.output_tokens,
            arrival_s=request.arrival_s if is_open else None,
            tag="replay",
            source=f"{name}, request {i + 1}",
        )
        for i, request in enumerate(stored.requests[:count])
    )
    notes: tuple[str, ...] = ()
    distance = stored.distance(stored.requests[:count])
    if distance:
        found = ", ".join(f"{name} {value:.3f}" for name, value in distance.items())
        notes = (f"{stored.header.name}: KS distance of what was replayed from its trace: {found}",)
    if count is not None and count < len(stored.requests):
        notes += (f"{stored.header.name}: the first {count} of {len(stored.requests)} requests were used",)
    fingerprint = f"{stored.fingerprint}/{len(requests)}"
    return Workload(stored.header.name, fingerprint, requests, notes)


def _case(concurrency: int, made: Workload, tokenizer: TokenizerLike) -> Case:
    requests = tuple(
        TargetRequest(
            request_id=f"r{number}",
            prompt=tokenizer.decode(request.prompt_token_ids, skip_special=False),
            prompt_token_ids=request.prompt_token_ids,
            sampling=SamplingParams(max_tokens=request.max_tokens, temperature=0.0, ignore_eos=True),
            arrival_offset_s=request.arrival_s or 0.0,
        )
        for number, request in enumerate(made.requests)
    )
    return Case(
        name=f"{made.name}@{concurrency}",
        concurrency=concurrency,
        open_loop=any(r.arrival_s is not None for r in made.requests),
        requests=requests,
        fingerprint=made.fingerprint,
        notes=made.notes,
    )


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)
