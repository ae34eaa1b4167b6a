"""The tokenizer inside a GGUF file, rebuilt as the ``tokenizer.json`` that it was made from.

Two kinds exist: byte-level BPE ('gpt2': merges are stored, and ``tokenizer.ggml.pre`` names how text is split first)
and SentencePiece BPE ('llama': scores are stored, merges follow from them). Source of the splitting rules: llama.cpp
``llama-vocab.cpp`` and the tokenizer.json of SmolLM2, GPT-2, Llama 3, Qwen2 and Mistral-Nemo.
"""

from __future__ import annotations

from typing import Any

from inferoptim.errors import DataError, UnsupportedError
from inferoptim.models.gguf_metadata import Metadata

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5  # tokenizer.ggml.token_type

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(regex: str) -> list[dict[str, Any]]:
    return [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
        _byte_level(use_regex=False),
    ]


# tokenizer.ggml.pre → (how text is split, whole-word lookup before merging, a BOS token by default, normalizer)
_DIGITS_ALONE = [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)]
PRE_TOKENIZERS: dict[str, tuple[list[dict[str, Any]], bool, bool, dict[str, Any] | None]] = {
    "smollm": (_DIGITS_ALONE, False, False, None),
    "gpt-2": ([_byte_level(use_regex=True)], False, False, None),
    "llama-bpe": (_split(_LLAMA3), True, True, None),
    "qwen2": (_split(_QWEN2), False, False, {"type": "NFC"}),
    "deepseek-r1-qwen": (_split(_QWEN2), False, False, {"type": "NFC"}),
    "tekken": (_split(_TEKKEN), True, True, None),
}


def tokenizer_files(meta: Metadata, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The content of tokenizer.json, tokenizer_config.json and generation_config.json.

    Raises:
        UnsupportedError: a tokenizer or splitting rule that is not known, named. DataError: arrays that disagree.
    """
    tokens: list[str] = meta.require("tokenizer.ggml.tokens")
    types: list[int] = meta.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise DataError(f"{meta.path}: {len(tokens)} tokens but {len(types)} token types")
    kind = meta.require("tokenizer.ggml.model")
    if kind == "gpt2":
        parts, bos_default = _byte_bpe(meta, tokens, types)
    elif kind == "llama":
        parts, bos_default = _sentencepiece(meta, tokens, types)
    else:
        raise UnsupportedError(f"{meta.path}: tokenizer '{kind}' is not supported (supported: gpt2, llama)")

    specials = {i for i, t in enumerate(types) if t in (_CONTROL, _UNKNOWN)}
    added = [
        {
            "id": i,
            "content": tokens[i],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": i in specials,
        }
        for i, t in enumerate(types)
        if t in (_CONTROL, _USER_DEFINED, _UNKNOWN)
    ]
    named = {name: _token(meta, tokens, key) for name, key in _NAMED.items()}
    add_bos = bool(meta.get("tokenizer.ggml.add_bos_token", bos_default)) and named["bos_token"] is not None
    add_eos = bool(meta.get("tokenizer.ggml.add_eos_token", False)) and named["eos_token"] is not None
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": _post_processor(meta, named, add_bos, add_eos),
        "decoder": parts["decoder"],
        "model": parts["model"],
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        **{name: token for name, token in named.items() if token is not None},
    }
    if template := meta.get("tokenizer.chat_template"):
        tokenizer_config["chat_template"] = template
    stops = [meta.get(f"tokenizer.ggml.{key}") for key in ("eos_token_id", "eot_token_id", "eom_token_id")]
    generation = {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": sorted({int(stop) for stop in stops if stop is not None}) or None,
        "pad_token_id": config["pad_token_id"],
    }
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": tokenizer_config,
        "generation_config.json": {k: v for k, v in generation.items() if v is not None},
    }


_NAMED = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


def _token(meta: Metadata, tokens: list[str], key: str) -> str | None:
    index: int | None = meta.get(key)
    if index is None:
        return None
    if not 0 <= index < len(tokens):
        raise DataError(f"{meta.path}: '{key}' is {index}, outside the vocabulary of {len(tokens)}")
    return tokens[index]


def _byte_bpe(meta: Metadata, tokens: list[str], types: list[int]) -> tuple[dict[str, Any], bool]:
    pre = meta.get("tokenizer.ggml.pre", "absent")
    if pre not in PRE_TOKENIZERS:
        raise UnsupportedError(
            f"{meta.path}: pre-tokenizer '{pre}' is not known (known: {', '.join(PRE_TOKENIZERS)}); "
            "use the model's Hugging Face folder, which carries its own tokenizer.json"
        )
    steps, ignore_merges, bos_default, normalizer = PRE_TOKENIZERS[pre]
    vocab = {token: i for i, token in enumerate(tokens) if types[i] != _UNUSED}
    merges = []
    for merge in meta.require("tokenizer.ggml.merges"):
        left, space, right = merge.partition(" ")
        if not space or left not in vocab or right not in vocab or left + right not in vocab:
            raise DataError(f"{meta.path}: merge {merge!r} does not fit the vocabulary")
        merges.append([left, right])
    parts = {
        "normalizer": normalizer,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "decoder": _byte_level(use_regex=True),
        "model": _bpe(vocab, merges, ignore_merges=ignore_merges),
    }
    return parts, bos_default


def _sentencepiece(meta: Metadata, tokens: list[str], types: list[int]) -> tuple[dict[str, Any], bool]:
    scores: list[float] = meta.require("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise DataError(f"{meta.path}: {len(tokens)} tokens but {len(scores)} scores")
    vocab = {token: i for i, token in enumerate(tokens) if types[i] != _UNUSED}
    unknown = next((tokens[i] for i, t in enumerate(types) if t == _UNKNOWN), None)
    prefix = bool(meta.get("tokenizer.ggml.add_space_prefix", True))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = [{"type": "Prepend", "prepend": "▁"}, replace] if prefix else [replace]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    parts = {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(vocab, _merges_from_scores(vocab, scores, types), unknown=unknown, byte_fallback=True),
    }
    return parts, True


def _merges_from_scores(vocab: dict[str, int], scores: list[float], types: list[int]) -> list[list[str]]:
    """Every way to join two tokens into a third, best score first: what SentencePiece does greedily at run time.

    Among the splits of one token, the one of earlier (more frequent) parts wins.
    Source: transformers ``convert_slow_tokenizer.generate_merges``.
    """
    found: list[tuple[float, int, int, int, str, str]] = []
    for token, index in vocab.items():
        if types[index] not in (1, _USER_DEFINED):
            continue
        for cut in range(1, len(token)):
            left, right = vocab.get(token[:cut]), vocab.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[index], index, left, right, token[:cut], token[cut:]))
    return [[left, right] for *_, left, right in sorted(found)]


def _bpe(
    vocab: dict[str, int],
    merges: list[list[str]],
    *,
    unknown: str | None = None,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": unknown is not None,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }


def _post_processor(
    meta: Metadata, named: dict[str, str | None], bos: bool, eos: bool
) -> dict[str, Any] | None:
    if not (bos or eos):
        return None
    first = [{"SpecialToken": {"id": named["bos_token"], "type_id": 0}}] if bos else []
    last = [{"SpecialToken": {"id": named["eos_token"], "type_id": 0}}] if eos else []
    special: dict[str, Any] = {}
    for wanted, name in ((bos, "bos_token"), (eos, "eos_token")):
        if wanted:
            token = str(named[name])
            special[token] = {"id": token, "ids": [meta.get(_NAMED[name])], "tokens": [token]}
    single = [*first, {"Sequence": {"id": "A", "type_id": 0}}, *last]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}, *last],
        "special_tokens": special,
    }
