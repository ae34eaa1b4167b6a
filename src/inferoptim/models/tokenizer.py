"""Text to token ids and back, from a Hugging Face folder, without transformers.

The incremental detokeniser works on bytes: a token's bytes are known once and for all, so appending one costs the same
however long the text is, and the pieces it returns add up to exactly what decoding everything at once gives.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import tokenizers

from inferoptim.errors import DataError, RequestError, UnsupportedError
from inferoptim.models.chat_template import ChatTemplate


class Tokenizer:
    """One model's tokenizer. Safe to share between threads: nothing here changes after loading.

    Attributes:
        vocab_size: one more than the highest token id.
        eos_token_ids: every id that ends a generation (generation_config.json first, else config, else tokenizer).
        bos_token_id: what a raw prompt starts with, or None.
        special_tokens: 'bos_token', 'eos_token', … → text.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        folder: Path,
        eos_token_ids: tuple[int, ...] = (),
        special_tokens: Mapping[str, str] | None = None,
        chat_templates: Mapping[str, str] | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.folder = folder
        self.special_tokens = dict(special_tokens or {})
        self.eos_token_ids = eos_token_ids
        self._backend = backend
        self._templates = {
            name: ChatTemplate(source, where=f"{folder} ({name} chat template)")
            for name, source in (chat_templates or {}).items()
        }
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.special_ids = frozenset(i for i, t in backend.get_added_tokens_decoder().items() if t.special)
        bos = self.special_tokens.get("bos_token")
        self.bos_token_id: int | None = backend.token_to_id(bos) if bos is not None else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Special tokens written out in the text become their ids.

        Args:
            add_special_tokens: also what the tokenizer itself adds (a BOS for Llama); False for a rendered chat.

        Raises:
            RequestError: the text is not valid Unicode (a lone surrogate).
        """
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise RequestError(f"the prompt is not valid Unicode text: {error}") from error
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, ids that name no token nothing."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it, or None."""
        index: int | None = self._backend.token_to_id(token)
        return index

    def id_to_token(self, index: int) -> str | None:
        """The token as the vocabulary writes it, or None where the id names no token."""
        token: str | None = self._backend.id_to_token(index)
        return token

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token adds to the text, which may be part of a character; empty where the id names no token."""
        token = self.id_to_token(index)
        return b"" if token is None else self._decoding.token_bytes(token)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._templates)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt that the model expects for a conversation. Encode it with ``add_special_tokens=False``.

        Args:
            messages: ``{"role": …, "content": …}`` and what else the template reads.
            add_generation_prompt: end with the opening of the assistant's turn.
            tools: JSON schemas of the functions that the model may call.
            variables: anything else the template reads (``enable_thinking``, ``documents``, …).

        Raises:
            UnsupportedError: the model has no chat template. RequestError: the template refuses these messages.
        """
        template = self._templates.get("tool_use") if tools else None
        template = template or self._templates.get("default")
        if template is None:
            raise UnsupportedError(
                f"{self.folder}: this model has no chat template; send a plain prompt instead"
            )
        return template.render(
            {
                "messages": messages,
                "tools": tools,
                "add_generation_prompt": add_generation_prompt,
                **self.special_tokens,
                **variables,
            }
        )

    def detokenizer(self, skip_special: bool = True) -> IncrementalDetokenizer:
        """A fresh detokeniser for one stream."""
        return IncrementalDetokenizer(self, skip_special=skip_special)

    @cached_property
    def _decoding(self) -> _ByteLevel | _ByteFallback:
        decoder = self._backend.decoder
        settings: dict[str, Any] = json.loads(decoder.__getstate__()) if decoder is not None else {}
        steps: list[dict[str, Any]] = settings.get("decoders", [settings])
        kinds = [step.get("type") for step in steps]
        if kinds == ["ByteLevel"]:
            return _ByteLevel()
        strip: dict[str, Any] = steps[-1] if kinds[-1] == "Strip" else {"content": " ", "start": 0, "stop": 0}
        plain = kinds[:-1] if kinds[-1] == "Strip" else kinds
        replaces = [step for step in steps if step.get("type") == "Replace"]
        if (
            plain == ["Replace"] * len(replaces) + ["ByteFallback", "Fuse"]
            and all("String" in step["pattern"] for step in replaces)
            and strip["stop"] == 0
        ):
            return _ByteFallback(
                [(step["pattern"]["String"], step["content"]) for step in replaces],
                strip["content"],
                strip["start"],
            )
        raise UnsupportedError(
            f"{self.folder}: decoder {'+'.join(map(str, kinds))} cannot be streamed (supported: ByteLevel, "
            "Replace+ByteFallback+Fuse+Strip)"
        )


class IncrementalDetokenizer:
    """Token ids in, newly printable text out, for one stream.

    The pieces of all `append` calls and of the final `flush` add up to `Tokenizer.decode` of all ids. A character is
    returned once its last byte is there, never in parts. Appending costs O(length of the token).
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer, self._decoding = tokenizer, tokenizer._decoding
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._stream = self._decoding.stream()

    def append(self, ids: int | Iterable[int]) -> str:
        """Text that `ids` complete; may be empty."""
        text = ""
        for index in (ids,) if isinstance(ids, int) else ids:
            if index in self._skipped:
                continue
            token = self._tokenizer.id_to_token(index)
            if token is not None:
                text += self._stream.feed(token)
        return text

    def flush(self) -> str:
        """The rest, at the end of the stream: bytes that never became a character, as U+FFFD."""
        return self._stream.end()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte → the byte. Source: openai/gpt-2 ``encoder.py``, ``bytes_to_unicode``."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in alphabet.values()]
    return alphabet | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


class _ByteLevel:
    """Every token is bytes; text is the UTF-8 reading of them all."""

    @staticmethod
    @lru_cache(maxsize=1 << 15)  # the tokens of a text are few, and come again and again
    def token_bytes(token: str) -> bytes:
        try:
            return bytes([_BYTE_OF[char] for char in token])
        except KeyError:  # an added token that is plain text, not written in the byte alphabet
            return token.encode()

    class Stream:
        def __init__(self) -> None:
            self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

        def feed(self, token: str) -> str:
            return self._utf8.decode(_ByteLevel.token_bytes(token))

        def end(self) -> str:
            text = self._utf8.decode(b"", final=True)
            self._utf8.reset()
            return text

    def stream(self) -> Stream:
        return self.Stream()


class _ByteFallback:
    """Tokens are text, except ``<0xAB>``: a run of those is one UTF-8 text, or one U+FFFD per byte if it is not valid.

    A run is therefore held until it ends, as its last byte can change how its first is shown.
    """

    def __init__(self, replacements: list[tuple[str, str]], strip: str, strip_count: int) -> None:
        self.replacements, self.strip, self.strip_count = replacements, strip, strip_count

    def stream(self) -> _ByteFallbackStream:
        return _ByteFallbackStream(self)

    def token_bytes(self, token: str) -> bytes:
        for old, new in self.replacements:
            token = token.replace(old, new)
        return _raw_byte(token) or token.encode()


class _ByteFallbackStream:
    def __init__(self, rules: _ByteFallback) -> None:
        self._rules, self._run, self._to_strip = rules, bytearray(), rules.strip_count

    def feed(self, token: str) -> str:
        for old, new in self._rules.replacements:
            token = token.replace(old, new)
        byte = _raw_byte(token)
        if byte is not None:
            self._run += byte
            return ""
        return self._strip(self._end_run() + token)

    def end(self) -> str:
        return self._strip(self._end_run())

    def _end_run(self) -> str:
        try:
            text = self._run.decode()
        except UnicodeDecodeError:
            text = "\ufffd" * len(self._run)
        self._run.clear()
        return text

    def _strip(self, text: str) -> str:
        while self._to_strip and text:
            if not text.startswith(self._rules.strip):
                self._to_strip = 0
                break
            text = text[len(self._rules.strip) :]
            self._to_strip -= 1
        return text


def _raw_byte(token: str) -> bytes | None:
    """The byte that ``<0xAB>`` stands for; None for any other token."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            return None
    return None


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load ``tokenizer.json`` and what goes with it from a Hugging Face folder.

    Raises:
        DataError: a file is missing or cannot be read. UnsupportedError: there is no tokenizer.json, or it has ids
            beyond the rows of the embedding (padding rows, the other way round, are fine).
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedError(
            f"{folder}: no tokenizer.json; older tokenizer formats must be converted first"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for every kind of fault
        raise DataError(f"{path}: not a readable tokenizer ({error})") from error
    settings = _read_json(folder / "tokenizer_config.json")
    config = _read_json(folder / "config.json")
    special = {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in settings.items()
        if name.endswith("_token") and isinstance(value, str | dict)
    }
    tokenizer = Tokenizer(
        backend,
        folder=folder,
        eos_token_ids=_eos_ids(backend, _read_json(folder / "generation_config.json"), config, special),
        special_tokens=special,
        chat_templates=_chat_templates(folder, settings),
    )
    rows = config.get("vocab_size")
    if isinstance(rows, int) and tokenizer.vocab_size > rows:
        raise UnsupportedError(
            f"{folder}: the tokenizer has ids up to {tokenizer.vocab_size - 1} but the embedding has {rows} rows: "
            "tokenizer and model do not belong together"
        )
    return tokenizer


def _eos_ids(
    backend: tokenizers.Tokenizer, generation: dict[str, Any], config: dict[str, Any], special: dict[str, str]
) -> tuple[int, ...]:
    for source in (generation, config):
        value = source.get("eos_token_id")
        if value is not None:
            return tuple(value) if isinstance(value, list) else (int(value),)
    index = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
    return () if index is None else (index,)


def _chat_templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Name → source. A chat_template.jinja file wins over tokenizer_config.json, as in transformers."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return {"default": file.read_text(encoding="utf-8")}
    value = settings.get("chat_template")
    if isinstance(value, list):
        return {item["name"]: item["template"] for item in value}
    return {"default": value} if isinstance(value, str) else {}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: unreadable ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: a JSON object is expected")
    return content
