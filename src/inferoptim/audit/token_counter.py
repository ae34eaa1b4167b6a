"""Tokenizers behind one small interface: tokenizers library, mistral-common, tiktoken. All work offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from inferoptim.errors import ConfigError, DataError, UnsupportedError

Ids = NDArray[np.uint32]


class TokenCounter(Protocol):
    """What the audit needs of a tokenizer. Special tokens are never added."""

    name: str
    kind: str
    vocabulary: int

    def lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Tokens of each text [n]."""
        ...

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some ids."""
        ...


class LibraryTokens:
    """A `tokenizer.json`, through the tokenizers library's batch encoder."""

    kind = "tokenizers"

    def __init__(self, path: Path, name: str) -> None:
        import tokenizers

        self.name = name
        try:
            self.backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for every kind of fault
            raise DataError(f"{path}: not a readable tokenizer ({error})") from error
        self.backend.no_truncation()
        self.backend.no_padding()
        self.vocabulary = self.backend.get_vocab_size()
        # without offsets, where this version of the library can
        self._encode = getattr(self.backend, "encode_batch_fast", self.backend.encode_batch)

    def lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        encoded = self._encode(list(texts), add_special_tokens=False)
        return np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        return [np.array(e.ids, dtype=np.uint32) for e in self._encode(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.backend.decode(list(ids), skip_special_tokens=False))


class _OneByOne:
    """Tokenizers that encode one text at a time."""

    def _one(self, text: str) -> list[int]:
        raise NotImplementedError

    def lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        return np.array([len(self._one(text)) for text in texts], dtype=np.int64)

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        return [np.array(self._one(text), dtype=np.uint32) for text in texts]


class MistralTokens(_OneByOne):
    """One of the tokenizers inside the mistral-common package: tekken, v1, v2, v3."""

    kind = "mistral-common"

    def __init__(self, version: str) -> None:
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

        makers = {
            "tekken": lambda: MistralTokenizer.v3(is_tekken=True),
            "v1": MistralTokenizer.v1,
            "v2": MistralTokenizer.v2,
            "v3": MistralTokenizer.v3,
        }
        if version not in makers:
            raise ConfigError(f"--tokenizer mistral:{version}: one of {', '.join(makers)}")
        self._backend: Any = makers[version]().instruct_tokenizer.tokenizer
        self.name = f"mistral:{version}"
        self.vocabulary = int(self._backend.n_words)

    def _one(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, bos=False, eos=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._backend.decode(list(ids)))


class TiktokenTokens(_OneByOne):
    """A local `.tiktoken` rank file; nothing is downloaded. Its split pattern goes by the file's name.

    Source: split patterns of cl100k_base and o200k_base, openai/tiktoken `tiktoken_ext/openai_public.py`.
    """

    kind = "tiktoken"

    def __init__(self, path: Path) -> None:
        import tiktoken
        from tiktoken.load import load_tiktoken_bpe

        self.name = path.stem
        base = next((n for n in ("o200k", "cl100k") if n in path.stem), None)
        if base is None:
            raise UnsupportedError(
                f"{path}: a .tiktoken file does not hold its split pattern; it is known for cl100k and o200k, by the file's name"
            )
        pattern = {"o200k": _O200K, "cl100k": _CL100K}[base]
        try:
            ranks = load_tiktoken_bpe(str(path))
            self._backend = tiktoken.Encoding(
                path.stem, pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
            )
        except Exception as error:  # the loader raises ValueError, the encoder panics
            raise DataError(f"{path}: not a readable .tiktoken file ({error})") from error
        self.vocabulary = self._backend.n_vocab

    def lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        return np.array(
            [len(ids) for ids in self._backend.encode_ordinary_batch(list(texts), num_threads=2)],
            dtype=np.int64,
        )

    def _one(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode_ordinary(text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._backend.decode(list(ids)))


_CL100K = r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
_O200K = "|".join(
    [
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""",
        r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
        r"""\s*[\r\n]+""",
        r"""\s+(?!\S)""",
        r"""\s+""",
    ]
)


def open_tokenizer(name: str, *, offline: bool = False) -> TokenCounter:
    """A tokenizer by name.

    Args:
        name: `mistral:VERSION`, a `.tiktoken` file, a `tokenizer.json` or a folder that holds one, a `.gguf` file, or a
            model that `pull` resolves.

    Raises:
        ConfigError, DataError, UnsupportedError: nothing of that name, or it cannot be read.
    """
    if name.startswith("mistral:"):
        return MistralTokens(name.partition(":")[2])
    path = Path(name)
    if path.suffix == ".tiktoken":
        if not path.is_file():
            raise ConfigError(f"--tokenizer {name}: no such file")
        return TiktokenTokens(path)
    if path.is_file() and path.suffix == ".json":
        return LibraryTokens(path, path.parent.name if path.name == "tokenizer.json" else path.stem)
    if (path / "tokenizer.json").is_file():
        return LibraryTokens(path / "tokenizer.json", path.name)
    from inferoptim.models.hub import resolve_model

    files = resolve_model(name, offline=offline)
    file = files.folder / "tokenizer.json"
    if not file.is_file():
        raise UnsupportedError(f"{name}: it has no tokenizer.json")
    return LibraryTokens(file, files.name)
