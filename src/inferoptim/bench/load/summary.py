"""From requests to the figures of one stage. Percentiles appear only where n allows; failed requests have no latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from inferoptim.bench.load.client_health import judge, percentiles
from inferoptim.bench.load.run_stage import StagePlan, StageResult
from inferoptim.records.load_schema import LoadRequestRecord, LoadStage, SelfTest


def summarise_stage(
    plan: StagePlan, result: StageResult, *, allowed_lag_s: float, self_test: SelfTest | None
) -> LoadStage:
    """The figures of one stage, and the verdict on the client."""
    records = sorted(result.records, key=lambda r: r.arrival_s)
    good = [r for r in records if r.error is None]
    errors = Counter(r.error for r in records if r.error is not None)
    first = min((r.arrival_s for r in records), default=0.0)
    wall = max((r.finished_s for r in records), default=0.0) - first
    outputs = [r.output_tokens for r in good if r.output_tokens is not None]
    prompts = [r.prompt_tokens for r in good if r.prompt_tokens is not None]
    cached = [(r.cached_prompt_tokens, r.prompt_tokens) for r in good if r.cached_prompt_tokens is not None]
    ttft = [r.first_token_s - r.arrival_s for r in good if r.first_token_s is not None]
    tpot = [t for r in good if (t := _tpot(r)) is not None]
    itl = [b - a for r in good if r.token_times_s is not None for a, b in pairwise(r.token_times_s)]
    e2e = [r.finished_s - r.arrival_s for r in good]
    judged = [r.met_slo for r in records if r.met_slo is not None]
    late = judged[len(judged) // 2 :]
    rate = _per_s(len(good), wall)
    tokens_per_s = _per_s(sum(outputs), wall) if len(outputs) == len(good) else None
    lags = [r.started_s - r.arrival_s for r in records] if plan.arrivals_s is not None else []
    return LoadStage(
        name=plan.name,
        shape=plan.shape,
        loop="closed" if plan.arrivals_s is None else "open",
        offered_per_s=plan.offered_per_s,
        concurrency=int(plan.concurrency.last) if plan.concurrency is not None else None,
        requests=len(records),
        succeeded=len(good),
        errors={str(name): count for name, count in errors.most_common()},
        error_examples={
            str(name): next(r.error_detail for r in records if r.error == name) for name in errors
        },
        stopped_early=result.stopped_early,
        wall_s=wall,
        requests_per_s=rate,
        output_tokens_per_s=tokens_per_s,
        prompt_tokens_per_s=_per_s(sum(prompts), wall) if len(prompts) == len(good) else None,
        goodput_per_s=_per_s(sum(judged), wall) if judged else None,
        attainment=sum(judged) / len(judged) if judged else None,
        attainment_late=sum(late) / len(late) if late else None,
        ttft_s=percentiles(ttft),
        tpot_s=percentiles(tpot),
        itl_s=percentiles(itl),
        e2e_s=percentiles(e2e),
        counts={"ttft": len(ttft), "tpot": len(tpot), "itl": len(itl), "e2e": len(e2e)},
        prompt_tokens_p50=float(np.median(prompts)) if prompts else None,
        output_tokens_p50=float(np.median(outputs)) if outputs else None,
        cached_prompt_share=_share(cached),
        client=judge(
            lags,
            result.watch,
            allowed_lag_s=allowed_lag_s,
            requests_per_s=rate or 0.0,
            tokens_per_s=tokens_per_s or 0.0,
            self_test=self_test,
            client_errors=errors.get("client_files", 0),
        ),
    )


def _per_s(amount: float, wall_s: float) -> float | None:
    return amount / wall_s if wall_s > 0 else None


def _share(cached: Sequence[tuple[int | None, int | None]]) -> float | None:
    total = sum(prompt or 0 for _, prompt in cached)
    return sum(hit or 0 for hit, _ in cached) / total if total else None


def _tpot(record: LoadRequestRecord) -> float | None:
    if record.first_token_s is None or record.output_tokens is None or record.output_tokens < 2:
        return None
    return (record.finished_s - record.first_token_s) / (record.output_tokens - 1)
