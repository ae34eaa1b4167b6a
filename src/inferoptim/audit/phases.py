"""Where time would go at the physical floor: prefill against decode, weights against KV-cache. No forecast."""

from __future__ import annotations

from dataclasses import dataclass

from inferoptim.economics.roofline import BYTES_OF, Shape, decode_step_floor_s, kv_bytes_per_token
from inferoptim.errors import ConfigError, UnsupportedError
from inferoptim.hardware.peaks import DevicePeaks
from inferoptim.records.audit_record import PhasePoint, RooflineRecord

BATCHES = (1.0, 8.0, 32.0, 128.0)
STATED_BATCH = 8.0  # where the trace does not tell how many requests run at once
USABLE = 0.9  # of the memory; the rest is activations and runtime


@dataclass(frozen=True)
class Machine:
    """The stated model and GPU."""

    shape: Shape
    device: DevicePeaks
    precision: str = "bf16"
    kv_precision: str = "bf16"
    batch: float | None = None  # stated; None = what the trace shows

    def __post_init__(self) -> None:
        for precision in (self.precision, self.kv_precision):
            if precision not in BYTES_OF:
                raise ConfigError(f"unknown precision {precision!r}: one of {', '.join(BYTES_OF)}")
        _ = self.flops

    @property
    def weight_bytes(self) -> float:
        """Read by each decode step."""
        return self.shape.read_per_step * BYTES_OF[self.precision]

    @property
    def kv_bytes(self) -> float:
        """Of one token."""
        return kv_bytes_per_token(
            self.shape.layers, self.shape.kv_heads, self.shape.head_dim, BYTES_OF[self.kv_precision]
        )

    @property
    def flops(self) -> float:
        """Peak of the precision that multiplies.

        Raises:
            UnsupportedError: the maker states none.
        """
        rates = {
            "fp8": self.device.fp8_flops_per_s or self.device.bf16_flops_per_s,
            "int8": self.device.int8_ops_per_s,
        }
        rate = rates.get(self.precision, self.device.bf16_flops_per_s)
        if rate is None:
            raise UnsupportedError(
                f"{self.device.name}: its maker states no {self.precision} rate; choose another --gpu"
            )
        return rate

    def prefill_s(self, prompt: float, prompt_squared: float) -> float:
        """Floor of the prefill of prompts with these mean length and mean squared length: FLOPs only.

        Source: 2 FLOPs a weight and token; causal attention 2·2·heads·dim·p²/2 a layer (Hoffmann et al. 2022, app. F).
        """
        attention = 2.0 * self.shape.layers * self.shape.heads * self.shape.head_dim * prompt_squared
        return (2.0 * self.shape.body * prompt + 2.0 * self.shape.head + attention) / self.flops

    def step_s(self, batch: float, context: float) -> float:
        """Floor of one decode step of `batch` sequences of this mean context."""
        attention = 4.0 * self.shape.layers * self.shape.heads * self.shape.head_dim * context
        flops = batch * (2.0 * self.shape.read_per_step + attention)
        return decode_step_floor_s(
            self.weight_bytes,
            batch * context * self.kv_bytes,
            self.device.bandwidth_bytes_per_s,
            flops,
            self.flops,
        )


@dataclass(frozen=True)
class MeanLengths:
    """Means over requests: p, p², o, and the context that output tokens see, Σ(o·p + o²/2) / Σo."""

    prompt: float
    prompt_squared: float
    output: float
    context: float
    prompt_p99: float


def roofline(machine: Machine, lengths: MeanLengths, observed: float | None) -> RooflineRecord:
    """Floors at several batch sizes and at the chosen one."""
    chosen = machine.batch if machine.batch is not None else observed
    basis = "stated" if machine.batch is not None or observed is None else "observed"
    batch = max(chosen if chosen is not None else STATED_BATCH, 1.0)
    room = machine.device.memory_bytes * USABLE - machine.shape.stored * BYTES_OF[machine.precision]
    return RooflineRecord(
        model=machine.shape.name,
        gpu=machine.device.name,
        source=machine.device.source,
        weight_bytes=machine.weight_bytes,
        element_bytes=BYTES_OF[machine.precision],
        kv_bytes_per_token=machine.kv_bytes,
        memory_bytes=machine.device.memory_bytes,
        flops_per_s=machine.flops,
        bytes_per_s=machine.device.bandwidth_bytes_per_s,
        points=tuple(_point(machine, lengths, b) for b in sorted({*BATCHES, batch})),
        chosen_batch=batch,
        chosen_basis=basis,
        p99_prefill_s=machine.prefill_s(lengths.prompt_p99, lengths.prompt_p99**2),
        kv_room_tokens=max(room, 0.0) / machine.kv_bytes,
    )


def _point(machine: Machine, lengths: MeanLengths, batch: float) -> PhasePoint:
    prefill = machine.prefill_s(lengths.prompt, lengths.prompt_squared)
    step = machine.step_s(batch, lengths.context)
    decode = lengths.output * step / batch
    cache = batch * lengths.context * machine.kv_bytes
    return PhasePoint(
        batch=batch,
        prefill_s=prefill,
        decode_s=decode,
        decode_share=decode / (prefill + decode),
        weights_share=machine.weight_bytes / (machine.weight_bytes + cache),
        step_s=step,
    )
