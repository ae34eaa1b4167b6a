"""The serving artefact: a standard model folder plus ``artefact.json``, which says what it is and proves it.

Everything measured may be None, printed as "not measured".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inferoptim.build.recipe import Recipe
from inferoptim.errors import DataError
from inferoptim.models.artefact import artefact_json
from inferoptim.models.machine import machine
from inferoptim.models.sources import ARTEFACT_NAME
from inferoptim.records.schema import Interval, Summary
from inferoptim.records.writer import write_atomic

FORMAT = 1


class Part(BaseModel):
    """Base of the artefact's parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Part):
    """The model that it was built from."""

    model: str
    revision: str
    fingerprint: str
    dtype: str
    parameters: int


class Calibration(Part):
    """What the scales were taken from."""

    source: str
    tokens: int
    fingerprint: str


class ProductSensitivity(Part):
    """What quantising one product alone would add to KL(source || artefact), estimated; rounded to nearest."""

    kl_nats: float
    inputs_kl_nats: float = Field(description="Its inputs rounded alone.")
    weights_kl_nats: float = Field(description="Its weight rounded alone.")


class LayerError(Part):
    """A layer after quantisation."""

    layer: int
    drift: float = Field(description="‖x_quantised − x‖ / ‖x‖ of the residual stream after this layer.")
    products: dict[str, float] = Field(description="‖y_quantised − y‖ / ‖y‖ of each product's output.")
    kept: tuple[str, ...] = Field((), description="Products left in the model's type.")
    sensitivity: dict[str, ProductSensitivity] = Field(
        default_factory=dict, description="By product; measured with keep_share only."
    )
    alphas: dict[str, float] = Field(
        default_factory=dict, description="SmoothQuant exponents; 0 = not smoothed."
    )


class TradeOff(Part):
    """What leaving the most sensitive products in the model's type gives: estimated, and with a goal measured."""

    share: float = Field(description="Of the linear weights.")
    products: int
    kl_nats_left: float = Field(description="Sum of the other products' estimates.")
    head_rounded: bool = Field(False, description="By this engine, when it loads the artefact.")
    tensors_bytes: int | None = Field(None, description="On disk, by arithmetic.")
    read_bytes: int | None = Field(None, description="Weights read for a token, by arithmetic.")
    kl_nats: Interval | None = Field(
        None, description="Measured on tokens that calibration did not use; so are the next two."
    )
    top1_agreement: Interval | None = None
    perplexity_ratio: Interval | None = None
    chosen: bool = False


class Quality(Part):
    """The artefact against its source, on texts that calibration never saw."""

    texts: str
    tokens: int
    computed_by: str = Field(description="The op set that ran both models.")
    perplexity_ratio: Interval
    kl_nats: Interval
    top1_agreement: Interval
    top5_overlap: Interval
    detectable_perplexity_increase: float = Field(
        description="Smallest increase that this sample would have shown (power 80 %, one-sided 5 %)."
    )
    by_language: dict[str, dict[str, Interval]] = Field(default_factory=dict)


class Memory(Part):
    """Bytes, counted and computed."""

    tensors_bytes: int = Field(description="Of the checkpoint's tensors, as stored.")
    predicted_tensors_bytes: int = Field(description="What arithmetic says: elements × bits + scales.")
    source_tensors_bytes: int
    resident_bytes: int | None = Field(
        None, description="Weights in memory once loaded here; None = not measured."
    )


class Tuning(Part):
    """Engine settings found on one machine."""

    machine: dict[str, str]
    settings: dict[str, Any]
    trials: tuple[dict[str, Any], ...] = ()
    spent_s: float


class BenchmarkRow(Part):
    """A measured rate."""

    configuration: str
    workload: str
    output_tokens_per_s: Interval


class Benchmark(Part):
    """Measured speed; what is not in it was not measured."""

    measured_by: Literal["build", "bench"]
    machine: dict[str, str]
    rows: tuple[BenchmarkRow, ...]


class Artefact(Part):
    """Content of ``artefact.json``."""

    format: int = FORMAT
    created_at: str | None = Field(None, description="None with --reproducible.")
    builder: str
    source: Source
    recipe: Recipe
    calibration: Calibration | None = None
    limits: dict[str, int] = Field(
        default_factory=dict, description="max_batch_size, max_input_len, max_output_len."
    )
    engine: dict[str, Any] = Field(default_factory=dict, description="EngineConfig fields to serve it with.")
    layers: tuple[LayerError, ...] = ()
    trade_off: tuple[TradeOff, ...] = Field((), description="With a goal or keep_share only.")
    memory: Memory
    quality: Quality | None = None
    tuning: Tuning | None = None
    benchmark: Benchmark | None = Field(
        None,
        description="By the build, or by the latest `inferoptim bench` of this folder; None = not measured.",
    )
    built_in_s: dict[str, float] = Field(
        default_factory=dict, description="Seconds of each part of the build; empty with --reproducible."
    )
    warnings: tuple[str, ...] = ()
    files: dict[str, str] = Field(description="SHA-256 of every other file of the folder.")

    def to_json(self) -> str:
        """Stable text: equal artefacts give equal bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def read_artefact(folder: Path) -> Artefact | None:
    """The artefact in `folder`; None where there is no ``artefact.json``.

    Raises:
        DataError: it cannot be read.
    """
    content = artefact_json(folder)
    try:
        return None if content is None else Artefact.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{folder / ARTEFACT_NAME}: {where}: {first['msg']}") from error


def record_benchmark(folder: Path, summary: Summary) -> bool:
    """Put what a bench run measured of the artefact in `folder` into its ``artefact.json``.

    Returns:
        False where the folder holds no artefact or nothing was measured: the file stays as it is.
    """
    artefact = read_artefact(folder)
    labels = {c.config_id: c.label for c in summary.configurations}
    rows = tuple(
        BenchmarkRow(
            configuration=labels[m.config_id],
            workload=m.workload,
            output_tokens_per_s=m.output_tokens_per_s,
        )
        for m in summary.metrics
        if m.output_tokens_per_s is not None
    )
    if artefact is None or not rows:
        return False
    benchmark = Benchmark(measured_by="bench", machine=machine(), rows=rows)
    write_atomic(folder / ARTEFACT_NAME, artefact.model_copy(update={"benchmark": benchmark}).to_json())
    return True
