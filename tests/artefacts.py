"""What the tests of artefacts share: a tiny source, recipes, texts, a request to build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inferoptim.build.pipeline import BuildRequest
from inferoptim.build.recipe import Recipe
from inferoptim.models.hub import resolve_model
from tests.tiny import save_tiny_llama, tiny_tokenizer

TEXT = [
    f"Paragraph {i}: the quick brown fox jumps over the lazy dog and runs along the river." for i in range(24)
]
RECIPES: dict[str, dict[str, Any]] = {
    "int8": {"quantization": "int8"},
    "int8-weight-only": {"quantization": "int8-weight-only"},
    "int4": {"quantization": "int4-weight-only", "group_size": 32},
    "int4-zeros": {"quantization": "int4-weight-only", "group_size": 32, "symmetric": False},
    "fp8": {"quantization": "fp8"},
    "fp8-static": {"quantization": "fp8", "granularity": "tensor", "activations": "static"},
}


def tiny_source(folder: Path) -> Path:
    """A tiny model with a tokenizer."""
    save_tiny_llama(folder, head_dim=16, num_hidden_layers=2)
    tiny_tokenizer(folder)
    return folder


def request(model: Path, out: Path, recipe: dict[str, Any], **fields: Any) -> BuildRequest:
    """Build `model` into `out`; the texts are shared out between calibration and proof."""
    return BuildRequest(
        files=resolve_model(str(model)),
        out=out,
        recipe=Recipe.model_validate(recipe),
        calibration=TEXT[0::2],
        calibration_source="test",
        proof={"en": TEXT[1::4], "fr": TEXT[3::4]},
        proof_source="test",
        **{"calibration_tokens": 512, **fields},
    )
