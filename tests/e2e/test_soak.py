"""A short soak in every test run: the same script as the long one, over a tiny model."""

from __future__ import annotations

from pathlib import Path

from benchmarks.soak import Soak, SoakPlan


def test_a_saturated_server_loses_nothing_and_leaks_nothing(tiny_chat_model: Path) -> None:
    options = ("--max-queue", "8", "-e", "max_num_seqs=8", "-e", "kernels=torch", "-e", "num_threads=1")
    plan = SoakPlan(
        str(tiny_chat_model),
        20.0,
        clients=20,
        malformed=0.05,
        max_prompt_words=20,
        max_tokens=24,
        server_options=options,
    )
    report = Soak(plan).run()
    assert not report.failures, (report.failures, report.outcomes)
    assert report.outcomes["answered"] > 50
    assert report.outcomes["left before the end"] > 0
    assert report.outcomes["refused: malformed (4xx)"] > 0
