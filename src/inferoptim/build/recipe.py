"""What to do to a model: the choices of a build, checked against each other before anything is read."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inferoptim.quant.observers import ObserverName

Quantization = Literal["none", "fp8", "int8", "int8-weight-only", "int4-weight-only"]
KVCacheDtype = Literal["auto", "fp8", "int8"]
# What `inferoptim build` aims at unless told otherwise: KL(source || artefact) in nats a token. A KL of ln(1 + p) raises the
# perplexity of text that the source itself writes by p; about 0.7 times its root is the share of tokens whose likeliest one
# changes (docs/build.md): int8 aims at 97 % of agreement, FP8 at +0.7 %. INT4 is asked for its size: nothing is kept.
DEFAULT_MAX_KL: dict[str, float] = {"fp8": 0.007, "int8": 0.0018, "int8-weight-only": 0.002}


class Recipe(BaseModel):
    """How the weights, their inputs and the KV-cache are quantised. Stored in the artefact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantization: Quantization = "int8"
    observer: ObserverName = Field("mse", description="Which scale a weight gets: max, percentile or mse.")
    smooth: bool = Field(True, description="int8: SmoothQuant where it lowers the error.")
    compensate: bool = Field(True, description="GPTQ error compensation.")
    group_size: int = Field(
        128, ge=32, description="int4: input channels that share a scale, where it divides them."
    )
    symmetric: bool = Field(True, description="int4: no zero points.")
    granularity: Literal["channel", "tensor"] = Field(
        "channel", description="fp8: scales per output channel or per tensor."
    )
    activations: Literal["dynamic", "static"] = Field(
        "dynamic", description="fp8: input scales at run time or calibrated."
    )
    quantise_head: bool = Field(
        True,
        description="int8 recipes: this engine rounds the output head as well when it loads the artefact.",
    )
    kv_cache_dtype: KVCacheDtype = Field("auto", description="auto: the model's type.")
    keep_above: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Leave a product in the model's type where its relative error would pass this; None: quantise all.",
    )

    keep_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Leave the most sensitive products in the model's type, up to this share of the linear weights; "
        "0: measure only; None: do not measure sensitivity.",
    )

    max_kl: float | None = Field(
        None,
        gt=0,
        description="Goal, nats a token: the build leaves as little in the model's type as a measurement on held-out tokens "
        "allows; keep_share and quantise_head then say what it chose.",
    )

    @model_validator(mode="after")
    def _no_contradiction(self) -> Recipe:
        if self.quantization != "fp8" and (self.granularity, self.activations) != ("channel", "dynamic"):
            raise ValueError("granularity and activations choose between FP8 recipes: set quantization=fp8")
        if not self.symmetric and (self.quantization != "int4-weight-only" or self.observer == "percentile"):
            raise ValueError("symmetric=false needs quantization=int4-weight-only, and observer max or mse")
        if self.quantization == "none" and (self.keep_above, self.keep_share) != (None, None):
            raise ValueError("keep_above and keep_share have nothing to keep with quantization=none")
        if self.quantization == "none" and self.has_goal:
            raise ValueError("max_kl has nothing to choose with quantization=none")
        if self.keep_above is not None and self.has_goal:
            raise ValueError("keep_above and max_kl exclude each other: give one")
        return self

    @property
    def has_goal(self) -> bool:
        """Whether the build chooses what to leave in the model's type."""
        return self.max_kl is not None

    @property
    def rounds_head(self) -> bool:
        """Whether this engine rounds the output head when it loads the artefact."""
        return self.quantise_head and self.quantization in ("int8", "int8-weight-only")

    @property
    def quantises_inputs(self) -> bool:
        """Whether products multiply 8-bit inputs."""
        return self.quantization in ("fp8", "int8")

    def describe(self) -> str:
        """In a few words, for people."""
        gptq = ", GPTQ" if self.compensate else ""
        zeros = "" if self.symmetric else " with zero points"
        words = {
            "none": "weights as they are",
            "fp8": f"FP8 W8A8, weights per {self.granularity}, inputs {self.activations}{gptq}",
            "int8": f"INT8 W8A8{' with SmoothQuant' if self.smooth else ''}, inputs per token{gptq}",
            "int8-weight-only": f"INT8 weights per channel{gptq}",
            "int4-weight-only": f"INT4 weights in groups of {self.group_size}{zeros}{gptq}",
        }[self.quantization]
        kv = "" if self.kv_cache_dtype == "auto" else f", {self.kv_cache_dtype} KV-cache"
        observer = "" if self.quantization == "none" else f", {self.observer} observer"
        kept = f", the most sensitive {self.keep_share:.0%} kept" if self.keep_share else ""
        return words + observer + kept + kv
