"""JSON traces: JSON lines or one array, read element by element. Nested logs are mapped by dotted paths."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from inferoptim.audit.columns import is_failure
from inferoptim.audit.formats import Mapped, map_columns, with_time_unit
from inferoptim.audit.json_rows import (
    JsonRow,
    conversation_rows,
    number_of,
    paths_of,
    text_of,
    value_at,
    whole_of,
)
from inferoptim.audit.options import ReadOptions
from inferoptim.audit.rows import UNKNOWN, BadRow, Batch
from inferoptim.audit.source import MAX_LINE_BYTES, Source
from inferoptim.audit.times import TimeParser
from inferoptim.errors import ConfigError, DataError

BATCH_ROWS = 1 << 14
SAMPLE_ROWS = 64  # objects that decide what the paths mean
_Element = tuple[int, Any, str | None]  # line, value, why it could not be read


class JsonReader:
    """Reads JSON lines, or one JSON array (ShareGPT).

    Raises:
        ConfigError: no lengths and no text can be found. DataError: no JSON object in it.
    """

    def __init__(self, source: Source, options: ReadOptions) -> None:
        self.source, self._options = source, options
        head = source.head()
        self._array = head.lstrip()[:1] == b"["
        sample = []
        for _, value, _ in (
            _array_elements(iter([head])) if self._array else _line_elements(iter([(1, head)]))
        ):
            if isinstance(value, dict):
                sample.append(value)
                if len(sample) >= SAMPLE_ROWS:
                    break
        if not sample:
            raise DataError(f"{source.path}: no JSON object in it")
        self.mapped, self._paths = self._map(sample)
        self.times = TimeParser(self.mapped.scale.get("arrival"), options.timezone)

    def _map(self, sample: list[dict[str, Any]]) -> tuple[Mapped, dict[str, tuple[str | int, ...]]]:
        """What each path means; a nested path is known by its last part, the shallowest first."""
        found: dict[tuple[str | int, ...], None] = {}
        for value in sample:
            found.update(dict.fromkeys(paths_of(value)))
        alias: dict[str, tuple[str | int, ...]] = {}
        for path in sorted(found, key=len):
            name = str(path[-1])
            if (
                name.lower() in ("prompt", "text", "input", "query", "question", "text_input")
                and len(path) > 1
            ):
                continue  # text is looked for message by message
            alias.setdefault(name, path)
        for path in found:
            alias.setdefault(".".join(map(str, path)), path)
        lists = {name for name in ("hash_ids",) if any(name in value for value in sample)}
        mapped = map_columns([*alias, *lists], self._options.map)
        columns = {field: column for field, column in mapped.columns.items() if field != "text"}
        if any("conversations" in value or "conversation" in value for value in sample):
            name = "sharegpt"
        elif any(isinstance(value.get("turns"), list) for value in sample):
            name = "aiperf-multi-turn"
        elif mapped.name == "generic" and any("usage" in map(str, path) for path in found):
            name = "openai-log"
        else:
            name = mapped.name
        has_text = any(text_of(value, self._options.map.get("text")) for value in sample) or name in (
            "sharegpt",
            "aiperf-multi-turn",
        )
        ids = any(isinstance(value.get("input_ids"), list) for value in sample)
        if name == "generic" and has_text and "prompt" not in columns:
            name = "prompts"
        if not has_text and not ids and not {"prompt", "output"} <= columns.keys():
            missing = "prompt" if "prompt" not in columns else "output"
            raise ConfigError(
                f"{self.source.path}: cannot tell which field holds the {missing} lengths; name it with "
                f"--map {missing}=FIELD (fields: {', '.join(sorted(alias)[:12])})"
            )
        paths = {field: alias[column] for field, column in columns.items()}
        shown = {field: ".".join(map(str, path)) for field, path in paths.items()}
        mapped = Mapped(name, shown, mapped.scale, mapped.block_tokens)
        return with_time_unit(mapped, self._options.time_unit), paths

    def batches(self) -> Iterator[Batch]:
        """Batches in the file's order."""
        rows: list[JsonRow] = []
        bad: list[BadRow] = []
        elements = (
            _array_elements(self.source.pieces()) if self._array else _line_elements(self.source.blocks())
        )
        for line, value, problem in elements:
            if problem is None:
                try:
                    rows += self._rows(value)
                except ValueError as error:
                    problem = str(error)
            if problem is not None:
                bad.append(BadRow(line, problem))
            if len(rows) >= BATCH_ROWS or len(bad) >= BATCH_ROWS:
                yield self._batch(rows, bad)
                rows, bad = [], []
        if rows or bad:
            yield self._batch(rows, bad)

    def _rows(self, value: Any) -> list[JsonRow]:
        """The requests of one element.

        Raises:
            ValueError: why there is none.
        """
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        expanded = conversation_rows(value, self._options, self.times)
        if expanded is not None:
            return expanded
        paths = self._paths
        row = JsonRow()
        row.text = text_of(value, self._options.map.get("text"))
        row.turn = 0 if row.text is None else row.text.turn
        for field in ("prompt", "output"):
            if field in paths:
                raw = value_at(value, paths[field])
                if raw is None and row.text is not None:
                    continue  # the text is counted instead
                setattr(row, field, whole_of(raw, ".".join(map(str, paths[field]))))
        if isinstance(value.get("input_ids"), list) and "prompt" not in paths:
            row.prompt = len(value["input_ids"])
        if row.prompt == UNKNOWN and row.text is None:
            raise ValueError("neither a prompt length nor a text")
        if row.output == UNKNOWN and row.text is None:
            raise ValueError("no output length")
        if "arrival" in paths:
            row.arrival = self.times.one(value_at(value, paths["arrival"]))
            if np.isnan(row.arrival):
                raise ValueError(f"{'.'.join(map(str, paths['arrival']))}: missing, or not a time")
        for field in ("duration", "ttft"):
            if field in paths:
                seconds = number_of(value_at(value, paths[field])) * self.mapped.scale.get(field, 1.0)
                setattr(row, field, seconds if seconds >= 0 else np.nan)
        if "status" in paths:
            status = value_at(value, paths["status"])
            row.failed = is_failure(status if isinstance(status, str | int | float | None) else "error")
        if "finish" in paths:
            row.truncated = value_at(value, paths["finish"]) == "length"
        if "session" in paths:
            session = value_at(value, paths["session"])
            row.session = 0 if session is None else self._options.hash(str(session))
        blocks = value.get("hash_ids")
        if blocks is not None:
            if not isinstance(blocks, list) or any(type(b) is not int for b in blocks):
                raise ValueError("hash_ids: a list of whole numbers is expected")
            row.blocks = np.asarray(blocks, dtype=np.int64)
        return [row]

    def _batch(self, rows: list[JsonRow], bad: list[BadRow]) -> Batch:
        floats = {
            name: np.array([getattr(r, name) for r in rows], dtype=np.float64)
            for name in ("arrival", "duration", "ttft")
        }
        timed = not np.isnan(floats["arrival"]).all() if rows else False
        turns = np.array([r.turn for r in rows], dtype=np.int64)
        sessions = np.array([r.session for r in rows], dtype=np.int64)
        empty = np.zeros(0, dtype=np.int64)
        return Batch(
            prompt_tokens=np.array([r.prompt for r in rows], dtype=np.int64),
            output_tokens=np.array([r.output for r in rows], dtype=np.int64),
            arrival_s=floats["arrival"] if timed else None,
            duration_s=None if np.isnan(floats["duration"]).all() else floats["duration"],
            ttft_s=None if np.isnan(floats["ttft"]).all() else floats["ttft"],
            failed=np.array([r.failed for r in rows], dtype=bool) if "status" in self._paths else None,
            truncated=np.array([r.truncated for r in rows], dtype=bool) if "finish" in self._paths else None,
            session=sessions if sessions.any() else None,
            turns=turns if turns.any() else None,
            blocks=[empty if r.blocks is None else r.blocks for r in rows]
            if any(r.blocks is not None for r in rows)
            else None,
            texts=[r.text for r in rows] if any(r.text is not None for r in rows) else None,
            bad=bad,
            bytes_read=self.source.bytes_read,
        )


def _line_elements(blocks: Iterator[tuple[int, bytes]]) -> Iterator[_Element]:
    for first, block in blocks:
        for line, data in enumerate(block.split(b"\n"), first):
            if not data.strip():
                continue
            try:
                yield line, json.loads(data), None
            except UnicodeDecodeError:
                yield line, None, "broken UTF-8"
            except (ValueError, RecursionError) as error:
                yield line, None, f"not JSON: {getattr(error, 'msg', 'nested too deeply')}"


def _array_elements(pieces: Iterator[bytes]) -> Iterator[_Element]:
    """Elements of one big array, without holding more than one of them and one piece.

    A broken element cannot be stepped over in safety: the rest is reported as unreadable, in one row.
    """
    decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")("replace")
    held, line, opened, problem = "", 1, False, "cut off"
    for piece in pieces:
        held += utf8.decode(piece)
        at = 0
        while True:
            start = at
            while at < len(held) and (held[at] in " \t\r\n," or (not opened and held[at] == "[")):
                opened |= held[at] == "["
                at += 1
            line += held.count("\n", start, at)
            if at >= len(held) or held[at] == "]":
                break
            try:
                value, end = decoder.raw_decode(held, at)
            except (ValueError, RecursionError) as error:
                problem = getattr(error, "msg", "nested too deeply")
                break  # or it goes on in the next piece
            if end == len(held) and not isinstance(value, dict | list):
                break  # a number could go on in the next piece
            yield line, value, "broken UTF-8" if "\ufffd" in held[at:end] else None
            line += held.count("\n", at, end)
            at = end
        held = held[at:]
        if len(held) > MAX_LINE_BYTES:
            problem = f"an element longer than {MAX_LINE_BYTES >> 20} MiB, or {problem}"
            break
    if held.strip() not in ("", "]"):
        yield line, None, f"not JSON: {problem}; nothing after it was read"
