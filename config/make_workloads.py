"""Writes the ready workloads whose lengths are stated rather than sampled from a trace: guide, rag, summarise.

    python config/make_workloads.py

`chat` and `code` are samples of public traces; docs/audit.md gives the commands that made them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from inferoptim.records.workload_file import (
    Workload,
    WorkloadHeader,
    WorkloadRequest,
    WorkloadSource,
    save_workload,
)

FOLDER = Path(__file__).resolve().parent / "workloads"
REQUESTS = 256


def lognormal(
    rng: np.random.Generator, median: float, sigma: float, low: int, high: int, n: int
) -> list[int]:
    """Whole lengths around `median`, clipped."""
    return [int(v) for v in np.clip(np.round(median * np.exp(sigma * rng.standard_normal(n))), low, high)]


def write(
    name: str, description: str, requests: list[WorkloadRequest], segments: tuple[int, ...], arrivals: str
) -> None:
    """Save one workload into `config/workloads/`."""
    header = WorkloadHeader(
        name=name,
        description=description,
        arrivals=arrivals,  # type: ignore[arg-type]
        segment_tokens=segments,
        source=WorkloadSource(
            kind="stated", description="stated inputs, not measured: config/make_workloads.py"
        ),
        num_requests=len(requests),
    )
    save_workload(FOLDER / f"{name}.jsonl", Workload(header, tuple(requests)))


def guide() -> None:
    """The guide's benchmark: 100 tokens in, 200 out."""
    write(
        "guide", "100 tokens in, 200 out (guide, 5.2)", [WorkloadRequest(100, 200)] * REQUESTS, (), "closed"
    )


def rag() -> None:
    """A shared system prompt, then four passages drawn by popularity (Zipf), then a question."""
    rng = np.random.default_rng(0)
    passages, system, per_prompt, passage_tokens = 200, 0, 4, 300
    popularity = 1 / np.arange(1, passages + 1)
    popularity /= popularity.sum()
    arrivals = np.concatenate([[0.0], np.cumsum(rng.exponential(1.0, REQUESTS - 1))])
    questions = lognormal(rng, 40, 0.5, 8, 200, REQUESTS)
    outputs = lognormal(rng, 150, 0.6, 16, 600, REQUESTS)
    requests = []
    for arrival, question, output in zip(arrivals, questions, outputs, strict=True):
        chosen = 1 + rng.choice(passages, size=per_prompt, replace=False, p=popularity)
        prompt = 200 + per_prompt * passage_tokens + question
        segments = (system, *(int(c) for c in chosen))
        requests.append(WorkloadRequest(prompt, output, round(float(arrival), 6), segments))
    segments_tokens = (200,) + (passage_tokens,) * passages
    write(
        "rag",
        "system prompt of 200 tokens, 4 of 200 passages of 300 tokens (Zipf), question; Poisson, 1 request/s",
        requests,
        segments_tokens,
        "open",
    )


def summarise() -> None:
    """Long documents, short answers, one shared instruction."""
    rng = np.random.default_rng(1)
    arrivals = np.concatenate([[0.0], np.cumsum(rng.exponential(1.0, REQUESTS - 1))])
    documents = lognormal(rng, 1800, 0.6, 200, 6000, REQUESTS)
    outputs = lognormal(rng, 160, 0.4, 40, 500, REQUESTS)
    requests = [
        WorkloadRequest(60 + d, o, round(float(a), 6), (0,))
        for a, d, o in zip(arrivals, documents, outputs, strict=True)
    ]
    write(
        "summarise",
        "instruction of 60 tokens, document of about 1800; Poisson, 1 request/s",
        requests,
        (60,),
        "open",
    )


if __name__ == "__main__":
    for make in (guide, rag, summarise):
        make()
