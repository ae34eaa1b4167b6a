"""What passes between the server's process and the engine's: small msgpack arrays in length-prefixed frames.

The two ends of one socket pair. A socket rather than a message queue, because a closed socket is the one signal of a
peer's death that cannot be lost: it needs no heartbeat and no time-out.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

HEADER = struct.Struct("<I")  # length of the body that follows, bytes
MAX_FRAME_BYTES = 256 * 1024 * 1024


# -- server → engine ---------------------------------------------------------------------------------------------------


class Start(msgspec.Struct, array_like=True, tag="start", frozen=True):
    """Load a model. The first frame, and the only one before `Ready`."""

    core: str  # 'package.module:factory', called with the configuration and the options
    config: dict[str, Any]  # fields of EngineConfig
    options: dict[str, Any]  # more arguments of the factory


class Add(msgspec.Struct, array_like=True, tag="add", frozen=True):
    """A request; `sampling` holds the fields of SamplingParams that differ from their defaults."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: dict[str, Any]
    arrival_s: float  # time.perf_counter() of the server; one clock for all processes of a Linux machine
    cache_salt: int = 0


class Abort(msgspec.Struct, array_like=True, tag="abort", frozen=True):
    """The client left, or its deadline passed."""

    request_id: str


class Finish(msgspec.Struct, array_like=True, tag="finish", frozen=True):
    """The text met a stop string."""

    request_id: str


class Check(msgspec.Struct, array_like=True, tag="check", frozen=True):
    """Verify the block accounting between two steps; answered by `Checked`."""

    number: int


# -- engine → server ---------------------------------------------------------------------------------------------------


class Ready(msgspec.Struct, array_like=True, tag="ready", frozen=True):
    """The model is loaded; `info` is EngineCore.info()."""

    info: dict[str, Any]
    max_model_len: int
    max_num_seqs: int
    vocab_size: int
    eos_token_ids: list[int]


class Failed(msgspec.Struct, array_like=True, tag="failed", frozen=True):
    """The engine cannot start, or its step loop raised; the process ends after this frame."""

    kind: str  # class name of the error
    message: str


class Rejected(msgspec.Struct, array_like=True, tag="rejected", frozen=True):
    """One request cannot run; the others go on."""

    request_id: str
    kind: str
    message: str


class Logprob(msgspec.Struct, array_like=True, frozen=True):
    """Log-probabilities at one position; see `TokenLogprobs`."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class Output(msgspec.Struct, array_like=True, frozen=True):
    """What one step gave one request."""

    request_id: str
    token_ids: list[int]
    finish_reason: str | None = None
    num_cached: int = 0
    logprobs: list[Logprob] | None = None
    prompt_logprobs: list[Logprob] | None = None
    scheduled_s: float = 0.0  # when a step first computed for it; with its first output only


class Stats(msgspec.Struct, array_like=True, frozen=True):
    """Counters and gauges of the engine. Counters grow for ever; gauges are of this moment."""

    counters: dict[str, float]
    gauges: dict[str, int]


class Step(msgspec.Struct, array_like=True, tag="step", frozen=True):
    """Outputs of one step, or news of the engine's state without any."""

    at_s: float  # time.perf_counter() when the step ended
    outputs: list[Output]
    stats: Stats | None
    used: list[
        tuple[str, float, float, bool]
    ]  # engine seconds since last told: (request id, prefill_s, decode_s, left)


class Checked(msgspec.Struct, array_like=True, tag="checked", frozen=True):
    """The block accounting is right ('' ) or what disagrees."""

    number: int
    problem: str
    gauges: dict[str, int]


ToEngine = Start | Add | Abort | Finish | Check
ToServer = Ready | Failed | Rejected | Step | Checked

_encoder = msgspec.msgpack.Encoder()
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_to_server = msgspec.msgpack.Decoder(ToServer).decode


def encode_frame(message: msgspec.Struct) -> bytes:
    """One message with its length in front."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that `data` completes, in order.

        Raises:
            ValueError: a length no sender would write: the stream is corrupt.
        """
        buffer = self._buffer
        buffer += data
        frames = []
        at, end = 0, len(buffer)
        while end - at >= 4:
            (size,) = HEADER.unpack_from(buffer, at)
            if size > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {size} bytes: the stream between server and engine is corrupt")
            if end - at - 4 < size:
                break
            frames.append(bytes(buffer[at + 4 : at + 4 + size]))
            at += 4 + size
        if at:
            del buffer[:at]
        return frames
