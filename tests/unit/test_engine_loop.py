"""The engine process's loop, turn by turn, over a real engine and a real socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from inferoptim.config import EngineConfig
from inferoptim.engine.core import EngineCore
from inferoptim.serving import messages as m
from inferoptim.serving.engine_process import Connection, EngineLoop
from inferoptim.serving.null_engine import NullCore
from tests.server import save_tiny_chat_model


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    model = save_tiny_chat_model(tmp_path_factory.mktemp("loop"))
    return EngineConfig.create(model=str(model), device="cpu", kernels="torch", max_num_seqs=4)


class Engine:
    """A loop that is turned by hand, and the server's end of its socket."""

    def __init__(self, core: EngineCore | NullCore) -> None:
        self.core = core
        self.server, theirs = socket.socketpair()
        self.server.settimeout(10)
        self.loop = EngineLoop(core, Connection(theirs))
        self._theirs = theirs
        self._reader = m.FrameReader()

    def send(self, *messages: m.ToEngine) -> None:
        self.server.sendall(b"".join(map(m.encode_frame, messages)))

    def read(self) -> list[m.ToServer]:
        return [m.decode_to_server(frame) for frame in self._reader.feed(self.server.recv(1 << 20))]

    def close(self) -> None:
        self.server.close()
        self._theirs.close()


@pytest.fixture
def engine(config: EngineConfig) -> Iterator[Engine]:
    engine = Engine(EngineCore(config))
    yield engine
    engine.close()


def add(request_id: str, prompt: list[int], **sampling: object) -> m.Add:
    return m.Add(
        request_id, prompt, {"temperature": 0.0, "max_tokens": 200, "ignore_eos": True, **sampling}, 0.0
    )


def test_an_abort_frees_the_blocks_before_the_next_step(engine: Engine) -> None:
    engine.send(add("a", list(range(10, 60))), add("b", list(range(100, 120))))
    for _ in range(4):
        engine.loop.turn()
    assert engine.core.kv_usage()["running"] == 2
    engine.read()
    engine.send(m.Abort("a"))
    steps = engine.core.counters()["steps"]
    engine.loop.turn()
    assert engine.core.counters()["steps"] == steps + 1
    [step] = [message for message in engine.read() if isinstance(message, m.Step)]
    assert [output.request_id for output in step.outputs] == ["b"], "nothing was computed for it any more"
    usage = engine.core.kv_usage()
    assert usage["running"] == 1
    assert usage["kv_reserved_tokens"] < 50, "only b's blocks are owned"
    engine.send(m.Abort("b"))
    engine.loop.turn()
    assert engine.core.kv_usage()["kv_reserved_tokens"] == 0
    engine.core.check()


def test_a_rejected_request_harms_nobody(engine: Engine) -> None:
    engine.send(add("long", [5] * 600), add("bad", [5000]), add("good", [5, 6, 7], max_tokens=2), m.Check(7))
    for _ in range(2):  # a turn with nothing to do would wait
        engine.loop.turn()
    messages = engine.read()
    rejected = {r.request_id: r.message for r in messages if isinstance(r, m.Rejected)}
    assert set(rejected) == {"long", "bad"}
    assert "600 tokens" in rejected["long"]
    outputs = [o for s in messages if isinstance(s, m.Step) for o in s.outputs]
    assert [o.request_id for o in outputs] == ["good", "good"]
    assert outputs[0].scheduled_s > 0
    assert outputs[1].finish_reason == "length"
    assert [c.problem for c in messages if isinstance(c, m.Checked)] == [""]


def test_engine_seconds_reach_the_server_and_the_end_of_the_socket_ends_the_loop(engine: Engine) -> None:
    engine.send(add("a", [5] * 40, max_tokens=3))
    for _ in range(4):
        if engine.core.has_work or not engine.core.counters()["steps"]:
            engine.loop.turn()
    steps = [s for s in engine.read() if isinstance(s, m.Step)]
    used = [u for s in steps for u in s.used]
    assert {name for name, *_ in used} == {"a"}
    assert [left for *_, left in used].count(True) == 1
    assert steps[-1].stats is not None
    assert sum(prefill + decode for _, prefill, decode, _ in used) == pytest.approx(
        steps[-1].stats.counters["busy_s"]
    )
    engine.server.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        engine.loop.turn()


def test_a_server_that_does_not_read_never_blocks_a_step(config: EngineConfig) -> None:
    engine = Engine(NullCore(config))
    engine.send(*(add(f"r{i}", [5], max_tokens=100_000) for i in range(4)))
    for _ in range(30_000):  # far more than the socket holds; every turn returns
        engine.loop.turn()
    assert engine.core.counters()["steps"] > 10_000
    engine.close()
