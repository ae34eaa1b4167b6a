"""The levers and the configurations that a design makes of them.

Order of the ladder: the compiled step first, since it is how anyone would serve and the guide has no place for it: every
lever after it then shows what it adds to a step that is worth having. Then the guide's sections 4.1 to 4.4, each engine-only
lever beside the section it belongs to: quantisation (4.1) · in-flight batching, and chunked prefill which needs it (4.2) ·
paged KV, the prefix sharing and the smaller KV that blocks carry (4.3) · speculation (4.4) last, since what it gains
depends on how fast a step already is.

A ladder attributes a gain to the rung where it appears: another order attributes otherwise. `one-at-a-time` and
`leave-one-out` answer the two questions that do not depend on an order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from inferoptim.bench.plan import BenchPlan
from inferoptim.config import EngineConfig
from inferoptim.errors import ConfigError

MAX_CONFIGURATIONS = 64
BASELINE = "transformers-static"


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides which levers exist here. Filled in by a worker process (`probe`), so that no torch is needed."""

    device: str  # 'cpu' or 'cuda'
    compute_capability: tuple[int, int] | None = None  # of GPU 0
    num_gpus: int = 0
    native_step: bool = False  # CPU: the fused native step is built, or can be
    native_step_reason: str = ""
    absent_targets: Mapping[str, str] = field(default_factory=dict)  # target → why it cannot run here


@dataclass(frozen=True, slots=True)
class Lever:
    """One optimisation, off or on.

    `settings(machine)` gives its 'on' fields of EngineConfig, or a reason (str) why this machine lacks it.
    """

    name: str
    title: str
    guide_section: str  # '' = not in the guide's section 4
    lossless: bool
    off: Mapping[str, Any]
    on_cpu: Mapping[str, Any] | None
    on_cuda: Mapping[str, Any] | None
    needs: tuple[str, ...] = ()  # levers that must be on too
    beyond: str = ""  # lever whose setting it replaces when both are on

    def settings(self, machine: Machine) -> Mapping[str, Any] | str:
        on = self.on_cpu if machine.device == "cpu" else self.on_cuda
        if on is None:
            return f"{self.name} needs {'an NVIDIA GPU' if machine.device == 'cpu' else 'a CPU'}"
        if self.name == "compiled_step" and machine.device == "cpu" and not machine.native_step:
            return machine.native_step_reason or "the native step cannot be built here"
        if self.name == "four_bit_weights" and not machine.native_step:
            return (
                machine.native_step_reason
                or "4-bit weights are read by the native step, which cannot be built here"
            )
        if self.name == "tensor_parallel" and machine.num_gpus < 2:
            return "tensor_parallel needs two GPUs"
        if "fp8" in on.values() and (machine.compute_capability or (0, 0)) < (8, 9):
            return {k: "int8" if v == "fp8" else v for k, v in on.items()}
        return on


LEVERS: tuple[Lever, ...] = (
    Lever(
        "compiled_step", "compiled step", "", True, {"compiled_step": False, "kernels": "torch"},
        {"compiled_step": True, "kernels": "native"}, {"compiled_step": True},
    ),
    Lever(
        "quantization", "quantised weights", "4.1", False, {"quantization": "none"},
        {"quantization": "int8"}, {"quantization": "fp8"},
    ),
    Lever(
        "four_bit_weights", "4-bit weights", "4.1", False, {}, {"quantization": "int4"}, None, beyond="quantization",
    ),
    Lever(
        "in_flight_batching", "in-flight batching", "4.2", True, {"in_flight_batching": False},
        {"in_flight_batching": True}, {"in_flight_batching": True},
    ),
    Lever(
        "chunked_prefill", "chunked prefill", "", True, {"chunked_prefill": False},
        # on a CPU a chunk as long as a GPU's default would hold up the decodes for a second
        {"chunked_prefill": True, "max_num_batched_tokens": 128}, {"chunked_prefill": True}, needs=("in_flight_batching",),
    ),
    Lever("paged_kv", "paged KV-cache", "4.3", True, {"paged_kv": False}, {"paged_kv": True}, {"paged_kv": True}),
    Lever(
        "prefix_caching", "prefix caching", "4.3", True, {"prefix_caching": False},
        {"prefix_caching": True}, {"prefix_caching": True}, needs=("paged_kv",),
    ),
    Lever(
        "kv_quantization", "quantised KV-cache", "", False, {"kv_quantization": "none"},
        {"kv_quantization": "int8"}, {"kv_quantization": "fp8"},
    ),
    Lever(
        "speculative", "speculative decoding", "4.4", True, {"speculative": "none"},
        {"speculative": "prompt-lookup"}, {"speculative": "prompt-lookup", "num_speculative_tokens": 10},
    ),
)  # fmt: skip
BY_NAME = {lever.name: lever for lever in LEVERS}
ORDER = {lever.name: index for index, lever in enumerate(LEVERS)}


@dataclass(frozen=True, slots=True)
class Configuration:
    """One rung as planned: what a worker process will load."""

    config_id: str
    label: str
    target: str
    settings: Mapping[str, Any]
    levers: tuple[str, ...] = ()
    added_lever: str | None = None
    previous: str | None = None
    is_baseline: bool = False
    unsupported: str | None = None  # why this machine cannot run it

    @property
    def lossy_levers(self) -> tuple[str, ...]:
        return tuple(name for name in self.levers if not BY_NAME[name].lossless)


def engine_settings(
    plan: BenchPlan, base: Mapping[str, Any], levers: tuple[str, ...], machine: Machine
) -> dict[str, Any]:
    """EngineConfig fields of the engine with exactly `levers` on, as a resolved dict.

    Raises:
        ConfigError: contradictory levers or an unknown engine field, in one line.
    """
    fields: dict[str, Any] = {**base}
    for lever in LEVERS:
        fields.update(_settings_on(plan, lever, machine) if lever.name in levers else lever.off)
    if machine.device == "cuda":
        fields.pop("kernels", None)  # a choice between CPU kernels
    elif (
        "quantization" in levers and "quantization" not in plan.lever_settings and not fields["compiled_step"]
    ):
        # torch's operators scale activations by whole token, which breaks the gate on the small default model; the native step
        # scales groups of 64 channels
        fields["quantization"] = "int8-weight-only"
    fields.update(plan.engine)
    return EngineConfig.create(**fields).model_dump(mode="json")


def configurations(plan: BenchPlan, machine: Machine, base: Mapping[str, Any]) -> list[Configuration]:
    """The rungs of the plan's design, baseline targets first.

    Args:
        base: EngineConfig fields that every engine rung shares (model, device, memory, sequences).

    Raises:
        ConfigError: an unknown lever, contradictory levers, or more than `MAX_CONFIGURATIONS` rungs.
    """
    rungs = _transformers(plan, machine, base) if "transformers" in plan.targets else []
    if "engine" in plan.targets:
        chosen, missing = _chosen_levers(plan, machine)
        maker = {
            "ladder": _ladder,
            "one-at-a-time": _one_at_a_time,
            "leave-one-out": _leave_one_out,
            "full": _full,
        }[plan.design]
        below = rungs[-1].config_id if rungs else None
        rungs += maker(plan, machine, base, chosen, below)
        rungs += missing
    rungs += _peers(plan, machine, base)
    rungs += _endpoints(plan)
    if len(rungs) > MAX_CONFIGURATIONS:
        raise ConfigError(
            f"design={plan.design} makes {len(rungs)} configurations, at most {MAX_CONFIGURATIONS} are run: name fewer levers"
        )
    if not any(
        r.is_baseline for r in rungs
    ):  # no transformers: the engine with its levers off, or the first rung
        rungs[0] = replace(rungs[0], is_baseline=True)
    return rungs


def transformers_settings(plan: BenchPlan, machine: Machine) -> dict[str, Any]:
    """What the baseline is told, batching apart."""
    return {
        "model": plan.model,
        "device": machine.device,
        "num_threads": plan.num_threads,
        "max_batch_size": max(c for w in plan.workloads for c in w.concurrency),
        **plan.transformers,
    }


def _transformers(plan: BenchPlan, machine: Machine, base: Mapping[str, Any]) -> list[Configuration]:
    """On a GPU one request gets what transformers has for it: a static cache, with which `generate` compiles the model."""
    shared = transformers_settings(plan, machine)
    alone: dict[str, Any] = {}
    label = "transformers, one request at a time"
    if machine.device == "cuda" and plan.transformers.get("static_cache") is not False:
        alone = {"static_cache": True, "max_cache_len": base["max_model_len"]}
        label += " (static cache, compiled)"
    return [
        Configuration(
            "transformers-sequential", label, "transformers", {**shared, "batching": "sequential", **alone}
        ),
        Configuration(
            BASELINE, "transformers, static batch", "transformers", {**shared, "batching": "static"},
            previous="transformers-sequential", is_baseline=True,
        ),
    ]  # fmt: skip


def _peers(plan: BenchPlan, machine: Machine, base: Mapping[str, Any]) -> list[Configuration]:
    """Other engines in a process of this machine: their own defaults on the memory, the rows and the context of ours."""
    given = ("model", "max_model_len", "max_num_seqs", "kv_budget_bytes")
    shared = {name: base[name] for name in given if name in base}
    named = {"vllm": ("vLLM", plan.vllm), "trtllm": ("TensorRT-LLM", plan.trtllm)}
    return [
        Configuration(
            name, label, name, {**shared, **options}, unsupported=machine.absent_targets.get(name)
        )
        for name, (label, options) in named.items()
        if name in plan.targets
    ]  # fmt: skip


def _endpoints(plan: BenchPlan) -> list[Configuration]:
    return [
        Configuration(
            f"endpoint-{e.name}", f"{e.name}, over HTTP", "openai_http",
            {"url": e.url, "model": e.model, "api_key_env": e.api_key_env, "tokenizer": plan.model},
        )
        for e in plan.endpoints
    ]  # fmt: skip


def _chosen_levers(plan: BenchPlan, machine: Machine) -> tuple[list[Lever], list[Configuration]]:
    """Levers to study in ladder order, and one unsupported rung for each that this machine lacks."""
    names = plan.levers if plan.levers is not None else tuple(BY_NAME)
    for name in (*names, *plan.lever_settings):
        if name not in BY_NAME:
            raise ConfigError(f"unknown lever {name!r}: use {', '.join(BY_NAME)}")
    for name in names:
        absent = [n for n in BY_NAME[name].needs if n not in names]
        if absent:
            raise ConfigError(f"lever {name} needs {absent[0]}: add it, or leave {name} out")
    for name, settings in plan.lever_settings.items():
        if name not in names:
            raise ConfigError(f"lever_settings.{name}: this lever is not studied; add it to levers")
        unknown = set(settings) - set(EngineConfig.model_fields)
        if unknown:
            raise ConfigError(f"lever_settings.{name}.{min(unknown)}: no such engine field")
    chosen, missing = [], []
    for lever in LEVERS:
        if lever.name not in names:
            continue
        on = lever.settings(machine)
        if isinstance(on, str):
            missing.append(
                Configuration(
                    f"+{lever.name}", f"+ {lever.title}", "engine", dict(lever.on_cpu or lever.on_cuda or {}),
                    levers=(lever.name,), added_lever=lever.name, unsupported=on,
                )
            )  # fmt: skip
        else:
            chosen.append(lever)
    return chosen, missing


def _settings_on(plan: BenchPlan, lever: Lever, machine: Machine) -> Mapping[str, Any]:
    settings = plan.lever_settings.get(lever.name) or lever.settings(machine)
    assert not isinstance(settings, str), "unsupported levers are set aside before"
    return settings


def _off(plan: BenchPlan, machine: Machine, base: Mapping[str, Any], below: str | None) -> Configuration:
    return Configuration(
        "engine-off", "engine, levers off", "engine", engine_settings(plan, base, (), machine), previous=below
    )


def _ladder(
    plan: BenchPlan, machine: Machine, base: Mapping[str, Any], chosen: list[Lever], below: str | None
) -> list[Configuration]:
    rungs = [_off(plan, machine, base, below)]
    levers: tuple[str, ...] = ()
    for lever in chosen:
        levers = (*levers, lever.name)
        rungs.append(
            Configuration(
                f"+{lever.name}", f"+ {lever.title}", "engine", engine_settings(plan, base, levers, machine), levers=levers,
                added_lever=lever.name, previous=rungs[-1].config_id,
            )
        )  # fmt: skip
    return rungs


def _one_at_a_time(
    plan: BenchPlan, machine: Machine, base: Mapping[str, Any], chosen: list[Lever], below: str | None
) -> list[Configuration]:
    rungs = [_off(plan, machine, base, below)]
    for lever in chosen:
        levers = _with_needs(lever)
        rungs.append(
            Configuration(
                f"only-{lever.name}", " + ".join(BY_NAME[n].title for n in levers) + ", alone", "engine",
                engine_settings(plan, base, levers, machine), levers=levers, added_lever=lever.name,
                previous=f"only-{lever.needs[0]}" if lever.needs else "engine-off",
            )
        )  # fmt: skip
    return rungs


def _leave_one_out(
    plan: BenchPlan, machine: Machine, base: Mapping[str, Any], chosen: list[Lever], below: str | None
) -> list[Configuration]:
    everything = tuple(lever.name for lever in chosen)
    rungs = [
        _off(plan, machine, base, below),
        Configuration(
            "engine-all", "engine, all levers", "engine", engine_settings(plan, base, everything, machine), levers=everything,
            previous="engine-off",
        ),
    ]  # fmt: skip
    for lever in chosen:
        gone = {lever.name, *(o.name for o in chosen if lever.name in o.needs or lever.name == o.beyond)}
        levers = tuple(name for name in everything if name not in gone)
        label = "all but " + " and ".join(BY_NAME[n].title for n in everything if n in gone)
        rungs.append(
            Configuration(
                f"without-{lever.name}", label, "engine", engine_settings(plan, base, levers, machine), levers=levers,
                previous="engine-all",
            )
        )  # fmt: skip
    return rungs


def _full(
    plan: BenchPlan, machine: Machine, base: Mapping[str, Any], chosen: list[Lever], below: str | None
) -> list[Configuration]:
    rungs = [_off(plan, machine, base, below)]
    names = [lever.name for lever in chosen]
    subsets = [
        subset
        for size in range(1, len(names) + 1)
        for subset in combinations(names, size)
        if all(set(BY_NAME[n].needs) <= set(subset) for n in subset)
    ]
    if len(subsets) + 3 > MAX_CONFIGURATIONS:
        raise ConfigError(
            f"design=full over {len(names)} levers makes {len(subsets) + 1} engine configurations, at most "
            f"{MAX_CONFIGURATIONS} are run: name fewer with --levers"
        )
    for subset in subsets:
        rungs.append(
            Configuration(
                "set-" + "+".join(subset), " + ".join(BY_NAME[n].title for n in subset), "engine",
                engine_settings(plan, base, subset, machine), levers=subset, previous="engine-off",
            )
        )  # fmt: skip
    return rungs


def _with_needs(lever: Lever) -> tuple[str, ...]:
    return tuple(sorted({lever.name, *lever.needs}, key=ORDER.__getitem__))


def without_lever(
    rungs: list[Configuration],
    failed: Configuration,
    plan: BenchPlan,
    machine: Machine,
    base: Mapping[str, Any],
) -> list[Configuration]:
    """A ladder whose rungs above `failed` no longer carry the lever that it added, nor one that needs it.

    The failed rung stays, to be reported; the next one builds on the rung below it. Designs other than a ladder are returned
    as they are: their configurations do not build on each other.
    """
    lever = failed.added_lever
    if plan.design != "ladder" or lever is None:
        return rungs
    gone = {lever, *(other.name for other in LEVERS if lever in other.needs)}
    out: list[Configuration] = []
    replaced = {failed.config_id: failed.previous}
    for rung in rungs:
        if rung.config_id != failed.config_id and rung.added_lever in gone and rung.unsupported is None:
            rung = replace(
                rung, unsupported=f"it needs {BY_NAME[lever].title}, which failed its quality gate"
            )
            replaced[rung.config_id] = rung.previous
        elif lever in rung.levers and rung.config_id != failed.config_id and rung.unsupported is None:
            levers = tuple(name for name in rung.levers if name not in gone)
            rung = replace(rung, levers=levers, settings=engine_settings(plan, base, levers, machine))
        previous = rung.previous
        while rung.config_id != failed.config_id and previous in replaced:
            previous = replaced[previous]
        out.append(replace(rung, previous=previous))
    return out
