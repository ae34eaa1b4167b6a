"""The physical ceiling of each case on this machine: bytes over the measured read rate, operations over the measured
matrix rate, whichever takes longer, step by step."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cpu.cases import Case
from inferoptim.economics.roofline import decode_step_floor_s


@dataclass(frozen=True)
class Machine:
    """Measured ceilings."""

    read_bytes_per_s: float
    int8_ops_per_s: float

    def best_of(self, other: Machine) -> Machine:
        """The larger of each: what the machine can do at its best around a case."""
        return Machine(
            max(self.read_bytes_per_s, other.read_bytes_per_s), max(self.int8_ops_per_s, other.int8_ops_per_s)
        )


@dataclass(frozen=True)
class Weights:
    """Our engine's weights: how many, and the bytes that a step reads of them (packed, scales included)."""

    body: int
    head: int
    read_bytes: int
    kv_bytes_per_token: int


def floor_s(case: Case, weights: Weights, machine: Machine) -> float:
    """Least time of a case: prompts computed at once, then one step a token for all requests together.

    Attention's own operations are left out, which only lowers the floor.
    """
    total = prefill_floor_s(case, weights, machine)
    n = case.concurrency
    context = case.prompt_tokens
    for _ in range(case.output_tokens - 1):
        context += n
        total += decode_step_floor_s(
            weights.read_bytes,
            context * weights.kv_bytes_per_token,
            machine.read_bytes_per_s,
            2.0 * n * (weights.body + weights.head),
            machine.int8_ops_per_s,
        )
    return total


def prefill_floor_s(case: Case, weights: Weights, machine: Machine) -> float:
    """Least time until every prompt is computed and each request has its first token."""
    operations = 2.0 * (case.prompt_tokens * weights.body + case.concurrency * weights.head)
    return max(operations / machine.int8_ops_per_s, weights.read_bytes / machine.read_bytes_per_s)
