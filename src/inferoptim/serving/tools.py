"""Tool calls: what the model is told, how its answer is read.

One format for every model: a JSON object between <tool_call> and </tool_call>, which Hermes, Qwen and SmolLM3 were
trained on. A model whose chat template does not speak it is told in a system message. The grammar (`structured`) makes
sure that what stands between the two marks is a call that the schemas allow.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from inferoptim.serving.structured import TOOL_BEGIN, TOOL_END

INSTRUCTIONS = """You may call functions to help with the user's request. The functions, as JSON schemas:
<tools>
{tools}
</tools>
To call one, write a JSON object with its name and arguments:
<tool_call>
{{"name": "function-name", "arguments": {{"argument": "value"}}}}
</tool_call>"""


def instructions(tools: list[dict[str, Any]]) -> str:
    """The system message for a model whose template knows no tools."""
    return INSTRUCTIONS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))


def plain_messages(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation for such a model: calls and their results as text, the functions in the system message."""
    result: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            result.append(
                {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
            )
        elif message.get("tool_calls"):
            calls = "\n".join(_call_text(call["function"]) for call in message["tool_calls"])
            content = message.get("content")
            result.append({"role": "assistant", "content": f"{content}\n{calls}" if content else calls})
        else:
            result.append(message)
    if tools:
        text = instructions(tools)
        if result and result[0]["role"] == "system":
            result[0] = {**result[0], "content": f"{result[0]['content']}\n\n{text}"}
        else:
            result.insert(0, {"role": "system", "content": text})
    return result


def _call_text(function: dict[str, Any]) -> str:
    body = json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)
    return f"{TOOL_BEGIN}\n{body}\n{TOOL_END}"


@dataclass(frozen=True, slots=True)
class Call:
    """One call that the model made."""

    id: str
    name: str
    arguments: str  # a JSON object as text


@dataclass(slots=True)
class Pieces:
    """What some text gave: content to show, and calls that became complete."""

    content: str = ""
    calls: list[Call] = field(default_factory=list)


class ToolReader:
    """Splits one answer into content and calls, as it comes."""

    def __init__(self) -> None:
        self._held = ""  # text that is, or may become, the beginning of a call
        self.num_calls = 0

    def feed(self, text: str, finished: bool = False) -> Pieces:
        """Take more text. At the end, a call that was cut off comes back as content."""
        self._held += text
        pieces = Pieces()
        while True:
            at = self._held.find(TOOL_BEGIN)
            if at < 0:
                keep = 0 if finished else _overlap(self._held, TOOL_BEGIN)
                shown = self._held[: len(self._held) - keep]
                self._held = self._held[len(shown) :]
                pieces.content += shown if not self.num_calls or shown.strip() else ""
                return pieces
            found = _complete_call(self._held, at + len(TOOL_BEGIN))
            if found is None:
                pieces.content += self._held[:at] if not self.num_calls or self._held[:at].strip() else ""
                self._held = self._held[at:]
                if finished:
                    pieces.content += self._held
                    self._held = ""
                return pieces
            call, end = found
            pieces.content += self._held[:at] if not self.num_calls or self._held[:at].strip() else ""
            pieces.calls.append(call)
            self.num_calls += 1
            self._held = self._held[end:]


def _complete_call(text: str, start: int) -> tuple[Call, int] | None:
    """The call whose body begins at `start`, and where its closing mark ends; None while it is not complete."""
    end = text.find(TOOL_END, start)
    while end >= 0:
        try:
            value = json.loads(text[start:end])
            arguments = json.dumps(value["arguments"], ensure_ascii=False)
            return Call(f"call_{secrets.token_hex(12)}", value["name"], arguments), end + len(TOOL_END)
        except (ValueError, KeyError, TypeError):
            end = text.find(TOOL_END, end + 1)  # the mark stands inside a string of the arguments
    return None


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    for size in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[-size:]):
            return size
    return 0
