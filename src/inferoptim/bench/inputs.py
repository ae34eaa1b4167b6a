"""What a plan stands for: model, tokenizer, requests, scored texts, memory."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

from inferoptim.bench.cases import Case, build_cases
from inferoptim.bench.plan import BenchPlan
from inferoptim.bench.quality import scored_texts
from inferoptim.errors import ConfigError
from inferoptim.models.artefact import tuned_fields
from inferoptim.models.hub import ModelFiles
from inferoptim.models.spec import ModelSpec
from inferoptim.models.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a plan stands for, resolved. Of the machine it depends only in what an artefact's build tuned on one like it."""

    plan: BenchPlan
    files: ModelFiles
    spec: ModelSpec
    tokenizer: Tokenizer
    cases: tuple[Case, ...]
    texts: dict[str, list[tuple[int, ...]]]
    base: dict[str, Any]  # EngineConfig fields of every engine rung, but the device


def resolve(plan: BenchPlan, files: ModelFiles) -> Inputs:
    """Read the model's description and make the requests.

    Raises:
        DataError, UnsupportedError: the model cannot be read or run.
        ConfigError: a workload or quality setting that this model cannot have.
    """
    from inferoptim.models.spec import spec_from_config
    from inferoptim.models.tokenizer import load_tokenizer

    spec = spec_from_config(json.loads((files.folder / "config.json").read_text(encoding="utf-8")))
    tokenizer = load_tokenizer(files.folder)
    cases = tuple(build_cases(plan, tokenizer, spec.max_position))
    if plan.max_model_len is not None and plan.max_model_len > spec.max_position:
        raise ConfigError(
            f"max_model_len={plan.max_model_len} is above the model's context of {spec.max_position} tokens"
        )
    length = plan.max_model_len or max(case.longest_tokens for case in cases)
    rows = max(case.concurrency for case in cases)
    tuned, warning = tuned_fields(files.folder)
    if warning:
        _log.warning(warning)
    block = int(plan.engine.get("block_size", tuned.get("block_size", 16)))
    element = 4 if plan.engine.get("dtype") == "float32" or spec.torch_dtype == "float32" else 2
    slot_bytes = -(-length // block) * block * spec.kv_bytes_per_token(element)
    if plan.kv_budget_bytes is not None and plan.kv_budget_bytes < slot_bytes and "engine" in plan.targets:
        raise ConfigError(
            f"kv_budget_bytes={plan.kv_budget_bytes} is less than one sequence of {length} tokens takes ({slot_bytes} bytes): "
            "raise it, or lower max_model_len and the workloads' lengths"
        )
    base = {
        **tuned,
        "model": plan.model,
        "num_threads": plan.num_threads or tuned.get("num_threads"),
        "max_model_len": length,
        "max_num_seqs": rows,
        "kv_budget_bytes": plan.kv_budget_bytes
        or int(slot_bytes * max(1, round(rows * plan.kv_budget_share))),
    }
    texts = {str(k): v for k, v in scored_texts(tokenizer, plan.quality, spec.max_position).items()}
    return Inputs(plan, files, spec, tokenizer, cases, texts if plan.quality.enabled else {}, base)
