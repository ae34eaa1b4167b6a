"""Tiny random models of every architecture that the decoder claims, as transformers itself builds and saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_COMMON: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,  # so that short, middle and long wavelengths all occur in a head of 16
}

# name -> (transformers' class, what differs from the common shape)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2 (a KV head for each query head, untied)": ("Llama", {"num_key_value_heads": 4}),
    "llama-3.1 (rope scaling, untied)": ("Llama", {"rope_parameters": _LLAMA3}),
    "llama-3.2 (rope scaling, tied)": ("Llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "llama, linear rope scaling": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "tinyllama (GQA 8:1, untied)": ("Llama", {"num_attention_heads": 8, "num_key_value_heads": 1}),
    "smollm2 (three heads a KV head, tied)": (
        "Llama",
        {
            "hidden_size": 48,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        },
    ),
    "mistral (sliding window)": ("Mistral", {"sliding_window": 7}),
    "mistral-nemo (no window, heads wider than the model)": ("Mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2 (QKV bias, untied)": ("Qwen2", {}),
    "qwen2.5 (QKV bias, tied)": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, window in the upper layers": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3 (QK norm, tied)": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3 (QK norm, untied)": ("Qwen3", {}),
}  # fmt: skip


def random_model(name: str, folder: Path) -> Any:
    """Build the architecture `name` with random weights, save it to `folder`, return transformers' own model in fp32.

    Norms and biases are random too: left at one and zero, a forgotten one would go unseen.
    """
    import transformers

    family, fields = ARCHITECTURES[name]
    config = getattr(transformers, f"{family}Config")(
        **{"tie_word_embeddings": False, **_COMMON, **fields}, attn_implementation="eager"
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.ndim == 1:
                value.uniform_(0.5, 1.5) if "norm" in key else value.uniform_(-1, 1)
            else:
                value.normal_(0, 0.2 if "embed" in key or "lm_head" in key else 0.12)
    model.save_pretrained(folder)
    return model
