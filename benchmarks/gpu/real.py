"""A real model on the GPU: tokens against transformers, and what each format costs in quality.

`reference` and `judge` run transformers in float32; `engine_side` runs one format or lever of the engine. They exchange files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from inferoptim.bench import workload
from inferoptim.bench.plan import QualityPlan
from inferoptim.bench.quality import Comparison, compare, distribution_record, judge, scored_texts
from inferoptim.config import SamplingParams
from inferoptim.targets.base import Target, TargetRequest

TEXTS = QualityPlan(tokens_per_language=1536)
ANSWER_TOKENS = 64
PROMPTS = 16
ENGINE: dict[str, Any] = {
    "device": "cuda", "max_model_len": 512, "max_num_seqs": 8, "max_num_batched_tokens": 512, "prefix_caching": False,
}  # fmt: skip
SIDES: dict[str, dict[str, Any]] = {
    "bf16": {"dtype": "bfloat16"},
    "fp16": {"dtype": "float16"},
    "fp8": {"quantization": "fp8"},
    "int8": {"quantization": "int8"},
    "int8 weight-only": {"quantization": "int8-weight-only"},
    "fp8 kv": {"kv_quantization": "fp8"},
    "int8 kv": {"kv_quantization": "int8"},
    "fp8, fp8 kv": {"quantization": "fp8", "kv_quantization": "fp8"},
    "no graphs": {"compiled_step": False},
    "prompt lookup": {"speculative": "prompt-lookup"},
    "draft self:8": {"speculative": "draft", "draft_model": "self:8"},
}
LOSSLESS = ("bf16", "fp16", "no graphs", "prompt lookup", "draft self:8")


def _inputs(model: str) -> tuple[dict[str, list[tuple[int, ...]]], list[TargetRequest]]:
    from inferoptim.models.hub import resolve_model
    from inferoptim.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(resolve_model(model).folder)
    texts = {str(k): v for k, v in scored_texts(tokenizer, TEXTS, 512).items()}
    made = workload.build(
        "guide", tokenizer, num_requests=PROMPTS, input_tokens=100, output_tokens=ANSWER_TOKENS
    )
    sampling = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0.0, ignore_eos=True)
    requests = [TargetRequest(f"r{i}", "", r.prompt_token_ids, sampling) for i, r in enumerate(made.requests)]
    return texts, requests


def _answers(target: Target, requests: list[TargetRequest]) -> list[list[int]]:
    return [list(r.token_ids) for r in target.run(requests, concurrency=len(requests))]


def _transformers(model: str) -> Target:
    from inferoptim.targets.transformers import TransformersTarget

    target = TransformersTarget({"model": model, "device": "cuda", "dtype": "float32"})
    target.load()
    return target


def reference(model: str, folder: str) -> dict[str, Any]:
    """Transformers in float32: logits of the texts, and its own greedy answers, into `folder`."""
    texts, requests = _inputs(model)
    target = _transformers(model)
    for number, text in enumerate(t for found in texts.values() for t in found):
        np.save(Path(folder) / f"{number}.npy", target.logits(text))
    (Path(folder) / "transformers.json").write_text(json.dumps(_answers(target, requests)))
    return {"texts": sum(map(len, texts.values())), "prompts": len(requests)}


def engine_side(model: str, folder: str, side: str) -> dict[str, Any]:
    """One format or lever: its distribution against the reference's, and its greedy answers into `folder`."""
    from inferoptim.targets.engine import EngineTarget

    texts, requests = _inputs(model)
    target = EngineTarget({"model": model, **ENGINE, **SIDES[side]})
    info = target.load()
    compared: dict[str, list[Comparison]] = {language: [] for language in texts}
    number, errors = 0, []
    for language, found in texts.items():
        for text in found:
            known, logits = np.load(Path(folder) / f"{number}.npy"), target.logits(text)
            compared[language].append(compare(known, logits, text))
            errors.append(float(np.linalg.norm(logits - known) / np.linalg.norm(known)))
            number += 1
    (Path(folder) / f"{side}.json").write_text(json.dumps(_answers(target, requests)))
    record = distribution_record(side, compared, TEXTS)
    counters = target.counters()
    return {
        "quality": record.model_dump(mode="json"), "logit_error": float(np.mean(errors)), "weight_bytes": info.weight_bytes,
        "counters": {k: v for k, v in counters.items() if k.startswith("draft")},
    }  # fmt: skip


def judge_answers(model: str, folder: str) -> dict[str, Any]:
    """Every side's answers: how many tokens are transformers' own choice given the same text, and how far off the worst is."""
    _, requests = _inputs(model)
    target = _transformers(model)
    own = json.loads((Path(folder) / "transformers.json").read_text())
    out: dict[str, Any] = {}
    for side in SIDES:
        path = Path(folder) / f"{side}.json"
        if not path.exists():
            continue
        answers = json.loads(path.read_text())
        found = [
            judge(target.logits((*r.prompt_token_ids, *a))[len(r.prompt_token_ids) - 1 : -1], a)
            for r, a in zip(requests, answers, strict=True)
        ]
        out[side] = {
            "tokens": sum(c.tokens for c in found),
            "own_choice": sum(c.same for c in found) / sum(c.tokens for c in found),
            "worst_gap": max(c.worst_gap for c in found),
            "identical_answers": sum(a == b for a, b in zip(answers, own, strict=True)),
            "answers": len(own),
        }
    return out
