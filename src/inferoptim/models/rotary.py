"""Rotary position embeddings: frequencies of a model, and the cosines and sines of a step's positions.

Legend: T tokens · D head size.
"""

from __future__ import annotations

import math

import torch

from inferoptim.models.spec import ModelSpec, RopeScaling


def inverse_frequencies(spec: ModelSpec, device: torch.device | None = None) -> torch.Tensor:
    """Radians per position of each pair of a head, after scaling.

    Returns:
        float32 [D / 2].

    Source: RoFormer (arXiv:2104.09864) eq. 15; llama3 scaling as in transformers ``_compute_llama3_parameters``.
    """
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.int64).to(torch.float32) / spec.head_dim
    frequencies = 1.0 / (spec.rope_theta**exponents)
    if spec.rope_scaling is not None:
        frequencies = _scale(frequencies, spec.rope_scaling)
    return frequencies.to(device)


def _scale(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    # llama3: short wavelengths stay, long ones are stretched, those between are mixed linearly in 1 / wavelength
    low, high, original = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position
    wavelengths = 2 * math.pi / frequencies
    stretched = torch.where(wavelengths > original / low, frequencies / scaling.factor, frequencies)
    smooth = (original / wavelengths - low) / (high - low)
    mixed = (1 - smooth) * stretched / scaling.factor + smooth * stretched
    between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(between, mixed, stretched)


def cos_sin(positions_T: torch.Tensor, inv_freq: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of each token's angles.

    Args:
        positions_T: int32 [T].
        inv_freq: float32 [D / 2].

    Returns:
        Two float32 tensors [T, D / 2].
    """
    angles = torch.outer(positions_T.to(torch.float32), inv_freq)
    return angles.cos(), angles.sin()
