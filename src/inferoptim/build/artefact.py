"""The serving artefact: a standard model folder plus ``artefact.json``, which says what it is and proves it.

Everything measured may be None, printed as "not measured".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inferoptim.build.recipe import Recipe
from inferoptim.errors import DataError
from inferoptim.models.sources import ARTEFACT_NAME
from inferoptim.records.schema import Interval

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


class LayerError(Part):
    """A layer after quantisation."""

    layer: int
    drift: float = Field(description="‖x_quantised − x‖ / ‖x‖ of the residual stream after this layer.")
    products: dict[str, float] = Field(description="‖y_quantised − y‖ / ‖y‖ of each product's output.")
    kept: tuple[str, ...] = Field((), description="Products left in the model's type.")
    alphas: dict[str, float] = Field(
        default_factory=dict, description="SmoothQuant exponents; 0 = not smoothed."
    )


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
    memory: Memory
    quality: Quality | None = None
    tuning: Tuning | None = None
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
    path = folder / ARTEFACT_NAME
    if not path.is_file():
        return None
    try:
        return Artefact.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
