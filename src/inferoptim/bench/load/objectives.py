"""Service-level objectives as a person writes them, and whether a request met them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from inferoptim.errors import ConfigError
from inferoptim.records.load_schema import LoadRequestRecord, Objectives
from inferoptim.records.schema import RequestRecord

_BOUND = re.compile(r"\s*(ttft|tpot|itl|e2e)\s*(?:<=|<|=)\s*([0-9.]+)\s*(ms|s)\s*", re.IGNORECASE)


def parse_objectives(texts: Sequence[str], attainment: float = 0.95) -> Objectives:
    """From ``ttft=500ms``, ``tpot=40ms``, ``itl=200ms``, ``e2e=10s``.

    Raises:
        ConfigError: another form, the same metric twice, or a share outside (0, 1].
    """
    if not 0 < attainment <= 1:
        raise ConfigError(f"--attainment {attainment}: the share of requests must be above 0 and at most 1")
    bounds: dict[str, float] = {}
    for text in texts:
        match = _BOUND.fullmatch(text)
        try:
            value = float(match[2]) * (1e-3 if match[3].lower() == "ms" else 1.0) if match else 0.0
        except ValueError:
            value = 0.0
        if match is None or value <= 0:
            raise ConfigError(f"--slo {text!r}: write ttft=500ms, tpot=40ms, itl=200ms or e2e=10s")
        name = f"{match[1].lower()}_s"
        if name in bounds:
            raise ConfigError(f"--slo {text!r}: {match[1]} is stated twice")
        bounds[name] = value
    return Objectives(**bounds, attainment=attainment)


def met(record: LoadRequestRecord | RequestRecord, objectives: Objectives) -> bool | None:
    """True when every stated objective was met; a failed request, or a time that could not be seen, does not meet it."""
    if not objectives.stated:
        return None
    if record.error is not None:
        return False
    e2e = record.finished_s - record.arrival_s
    ttft = None if record.first_token_s is None else record.first_token_s - record.arrival_s
    checks = [objectives.e2e_s is None or e2e <= objectives.e2e_s]
    if objectives.ttft_s is not None:
        checks.append(ttft is not None and ttft <= objectives.ttft_s)
    if objectives.tpot_s is not None and record.output_tokens != 1:  # one token has no time per further token
        known = ttft is not None and record.output_tokens is not None
        checks.append(
            known and (e2e - (ttft or 0.0)) / ((record.output_tokens or 2) - 1) <= objectives.tpot_s
        )
    if objectives.itl_s is not None:
        times = record.token_times_s
        checks.append(times is not None and all(b - a <= objectives.itl_s for a, b in pairwise(times)))
    return all(checks)
