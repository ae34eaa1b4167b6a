"""vLLM and TensorRT-LLM as targets, without them: what they would be told, and what is said when they are absent.

The stand-ins below are not these engines: they hold the few calls that the targets make, and answer with counting tokens.
"""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from inferoptim.bench.levers import Machine, configurations
from inferoptim.bench.plan import make_plan
from inferoptim.bench.worker import make_target
from inferoptim.config import SamplingParams
from inferoptim.errors import ConfigError, UnsupportedError
from inferoptim.targets import trtllm, vllm
from inferoptim.targets.base import TargetRequest
from tests.tiny import save_tiny_llama, tiny_tokenizer


class Kind(enum.Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class StandInEngine:
    """One token a request and step; a request of no tokens is refused."""

    most: int = 0
    waiting: dict[str, tuple[int, Any]] = field(default_factory=dict)
    vllm_config: Any = field(
        default_factory=lambda: SimpleNamespace(
            cache_config=SimpleNamespace(num_gpu_blocks=10, block_size=16),
            model_config=SimpleNamespace(dtype="torch.bfloat16"),
        )
    )

    def add_request(self, request_id: str, prompt: dict[str, Any], params: Any) -> None:
        if not prompt["prompt_token_ids"]:
            raise ValueError("an empty\nprompt")
        self.waiting[request_id] = (0, params)
        self.most = max(self.most, len(self.waiting))

    def step(self) -> list[Any]:
        out = []
        for request_id, (done, params) in list(self.waiting.items()):
            done += 1
            finished = done == params.max_tokens
            if finished:
                del self.waiting[request_id]
            else:
                self.waiting[request_id] = (done, params)
            ids = [done] if params.output_kind is Kind.DELTA else list(range(1, done + 1))
            if finished or params.output_kind is not Kind.FINAL_ONLY:
                out.append(
                    SimpleNamespace(
                        request_id=request_id, outputs=[SimpleNamespace(token_ids=ids)], finished=finished,
                        num_cached_tokens=4,
                    )
                )  # fmt: skip
        return out


class StandInVllm:
    """`vllm.LLM`."""

    last: StandInVllm

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.resets = arguments, 0
        self.llm_engine = StandInEngine()
        StandInVllm.last = self

    def reset_prefix_cache(self) -> None:
        self.resets += 1


class StandInTrtllm:
    """`tensorrt_llm.LLM`."""

    last: StandInTrtllm

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.closed, self.under_way, self.most = arguments, False, 0, 0
        StandInTrtllm.last = self

    async def generate_async(self, inputs: list[int], sampling_params: Any, streaming: bool) -> Any:
        import asyncio

        assert streaming
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        for done in range(1, sampling_params.max_tokens + 1):
            await asyncio.sleep(0)
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids_diff=[done])], cached_tokens=0)
        self.under_way -= 1

    def shutdown(self) -> None:
        self.closed = True


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__ = StandInVllm, SimpleNamespace, "0.25.1"
    sampling: Any = ModuleType("vllm.sampling_params")
    sampling.RequestOutputKind = Kind
    other: Any = ModuleType("tensorrt_llm")
    other.LLM, other.SamplingParams, other.__version__ = StandInTrtllm, SimpleNamespace, "1.0"
    other.llmapi = SimpleNamespace(KvCacheConfig=dict)
    for name, made in (("vllm", module), ("vllm.sampling_params", sampling), ("tensorrt_llm", other)):
        made.__spec__ = SimpleNamespace()
        monkeypatch.setitem(sys.modules, name, made)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_llama(folder)
    tiny_tokenizer(folder)
    return folder


def requests(count: int, tokens: int = 3) -> list[TargetRequest]:
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return [TargetRequest(f"r{i}", "", (5, 6, 7), sampling) for i in range(count)]


@pytest.mark.parametrize("name", ["vllm", "trtllm"])
def test_an_absent_package_is_one_clear_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"inferoptim.targets.{name}.find_spec", lambda _package: None)
    with pytest.raises(UnsupportedError, match=rf"target {name} needs the package .* pip install") as caught:
        make_target(name, {"model": "m"})
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("stand_ins")
def test_vllm_gets_equal_work(model: Path) -> None:
    budget = 1 << 20
    target = vllm.VllmTarget(
        {
            "model": str(model), "max_model_len": 64, "max_num_seqs": 2, "kv_budget_bytes": budget,
            "quantization": "fp8", "kv_quantization": "fp8", "args": {"block_size": 16},
        }
    )  # fmt: skip
    info = target.load()
    arguments = StandInVllm.last.arguments
    own_block = 16 * 2 * 2 * 2 * 16 * 4  # tokens, K and V, layers, KV heads, head size, float32
    assert arguments["kv_cache_memory_bytes"] == budget + own_block
    assert arguments["skip_tokenizer_init"] is True
    assert (arguments["quantization"], arguments["kv_cache_dtype"]) == ("fp8", "fp8")
    assert (arguments["max_model_len"], arguments["max_num_seqs"], arguments["block_size"]) == (64, 2, 16)
    assert info.kv_capacity_tokens == 160
    assert info.settings["dtype"] == "bfloat16"
    asked = requests(5)
    found = target.run(asked, concurrency=2)
    assert [r.token_ids for r in found] == [(1, 2, 3)] * 5
    assert StandInVllm.last.llm_engine.most == 2
    assert all(r.token_times_s is not None and len(r.token_times_s) == 3 for r in found)
    assert target.counters() == {"prefix_cache_hit_tokens": 20.0}
    target.reset()
    assert StandInVllm.last.resets == 1


@pytest.mark.usefixtures("stand_ins")
def test_vllm_without_streaming_states_no_token_times(model: Path) -> None:
    target = vllm.VllmTarget({"model": str(model), "stream": False})
    target.load()
    assert "kv_cache_memory_bytes" not in StandInVllm.last.arguments
    (found,) = target.run(requests(1))
    assert found.token_ids == (1, 2, 3)
    assert found.token_times_s is None
    assert found.finished_s > found.sent_s


@pytest.mark.usefixtures("stand_ins")
def test_a_request_that_vllm_refuses_is_an_error_of_that_request(model: Path) -> None:
    target = vllm.VllmTarget({"model": str(model)})
    target.load()
    good, bad = requests(2)
    empty = TargetRequest("bad", "", (), bad.sampling)
    found = target.run([good, empty], concurrency=2)
    assert found[0].error is None
    assert found[1].error == "an empty prompt"


@pytest.mark.usefixtures("stand_ins")
def test_trtllm_gets_equal_work(model: Path) -> None:
    target = trtllm.TrtllmTarget(
        {
            "model": str(model),
            "max_model_len": 64,
            "max_num_seqs": 2,
            "kv_budget_bytes": 99,
            "kv_quantization": "fp8",
        }
    )
    target.load()
    arguments = StandInTrtllm.last.arguments
    assert (arguments["max_seq_len"], arguments["max_batch_size"]) == (64, 2)
    assert arguments["kv_cache_config"] == {
        "enable_block_reuse": False, "dtype": "fp8", "max_gpu_total_bytes": 99,
    }  # fmt: skip
    found = target.run(requests(5), concurrency=2)
    assert [r.token_ids for r in found] == [(1, 2, 3)] * 5
    assert StandInTrtllm.last.most == 2
    assert all(r.finished_s >= r.token_times_s[-1] for r in found if r.token_times_s)
    target.close()
    assert StandInTrtllm.last.closed


def test_sampling_is_handed_over_field_by_field() -> None:
    greedy = SamplingParams(max_tokens=7, temperature=0.0, ignore_eos=True)
    assert vllm.sampling_arguments(greedy)["temperature"] == 0.0
    assert trtllm.sampling_arguments(greedy) == {
        "max_tokens": 7, "ignore_eos": True, "detokenize": False, "end_id": -1, "top_k": 1,
    }  # fmt: skip
    drawn = SamplingParams(max_tokens=7, temperature=0.5, top_k=9, top_p=0.8, seed=3, stop_token_ids=(4,))
    for arguments in (vllm.sampling_arguments(drawn), trtllm.sampling_arguments(drawn)):
        wanted = {"temperature": 0.5, "top_k": 9, "top_p": 0.8, "seed": 3, "stop_token_ids": [4]}
        assert {name: arguments[name] for name in wanted} == wanted
    for module in (vllm, trtllm):
        with pytest.raises(UnsupportedError, match="no stop strings"):
            module.sampling_arguments(SamplingParams(stop=("x",)))


def test_the_plan_takes_them_as_rungs_on_the_engines_memory() -> None:
    base = {"model": "m", "device": "cuda", "max_model_len": 64, "max_num_seqs": 2, "kv_budget_bytes": 9}
    machine = Machine("cuda", (9, 0), 1, absent_targets={"trtllm": "target trtllm needs …"})
    plan = make_plan(
        {"model": "m", "targets": ["engine", "vllm", "trtllm"], "levers": [], "vllm": {"quantization": "fp8"}}
    )
    found = {r.config_id: r for r in configurations(plan, machine, base)}
    assert found["vllm"].settings == {
        "model": "m", "max_model_len": 64, "max_num_seqs": 2, "kv_budget_bytes": 9, "quantization": "fp8",
    }  # fmt: skip
    assert found["vllm"].unsupported is None
    assert found["trtllm"].unsupported == "target trtllm needs …"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"vllm": {"dtype": "auto"}}, "vllm: options of a target that is not measured"),
        (
            {"targets": ["engine", "vllm"], "vllm": {"max_num_seqs": 4}},
            "vllm.max_num_seqs is set by the plan",
        ),
    ],
)
def test_contradictory_options_are_one_line(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make_plan({"model": "m", **fields})


def test_on_a_gpu_the_lone_request_has_a_static_cache() -> None:
    base = {"model": "m", "device": "cuda", "max_model_len": 64, "max_num_seqs": 2, "kv_budget_bytes": 9}
    machine = Machine("cuda", (9, 0), 1)
    alone, static, *_ = configurations(make_plan({"model": "m"}), machine, base)
    assert (alone.settings["static_cache"], alone.settings["max_cache_len"]) == (True, 64)
    assert "static_cache" not in static.settings
    plain = configurations(make_plan({"model": "m", "transformers": {"static_cache": False}}), machine, base)
    assert plain[0].settings["static_cache"] is False
