"""How a server was asked to behave. Frozen, validated at the border."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MIB = 1 << 20


class ServerSettings(BaseModel):
    """Everything about the server that is not the engine's."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0 = any free one.")
    served_model_names: tuple[str, ...] = Field(min_length=1)
    max_queue: int = Field(128, ge=0, description="Sequences that may wait beyond those that run.")
    max_body_bytes: int = Field(8 * MIB, ge=1024)
    max_tokens: int | None = Field(None, ge=1, description="Most output tokens of one choice.")
    request_timeout_s: float = Field(600.0, gt=0)
    drain_timeout_s: float = Field(30.0, ge=0)
    on_engine_death: Literal["restart", "exit"] = "restart"
    cors_origins: tuple[str, ...] = ()
    otlp_endpoint: str | None = None
    access_log: Path | None = None
    metrics_alias: Literal["none", "vllm"] = "none"
    usd_per_hour: float | None = Field(None, ge=0)
    usd_per_kwh: float | None = Field(None, ge=0)
    max_tenants: int = Field(50, ge=1, le=1000)
