"""What a claim is, what may be brought to judge it, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from inferoptim.units import NOT_MEASURED


class Verdict(str, Enum):
    """Our verdict on one figure of the guide."""

    HOLDS = "holds"
    CONDITIONS = "holds with conditions"
    WRONG = "wrong"
    NOT_MEASURED = "not measured here"


@dataclass(frozen=True, slots=True)
class TextFacts:
    """Measured on one tokenizer and one pair of texts on this machine; see `text.measure`."""

    tokenizer: str
    chars_per_token: Mapping[str, float]  # by language: 'en', 'fr'
    french_extra: float  # tokens of the French text / tokens of the English one - 1
    ids: Mapping[str, tuple[int, ...]]  # the guide's example sentences
    encode_p95_us: float | None = None  # of a prompt of about 128 tokens
    encode_tokens: int = 0
    parallel: bool = False  # True: the texts say the same thing, so `french_extra` means something


@dataclass(frozen=True, slots=True)
class Evidence:
    """What this machine measured. Everything may be absent: the claims that need it then say "not measured here"."""

    summary: Mapping[str, Any] | None = None  # the content of a run's summary.json
    environment: Mapping[str, Any] | None = None  # the content of its environment.json
    run: str = ""  # its folder, to cite
    texts: tuple[TextFacts, ...] = ()

    def rows(self) -> list[Mapping[str, Any]]:
        """The run's metrics, one a configuration and workload."""
        return list(self.summary.get("metrics", ())) if self.summary else []

    def lever(self, name: str) -> str | None:
        """What turning `name` on gained at its rung, by workload, as text; None where no run measured it."""
        if not self.summary:
            return None
        added = {
            c["config_id"] for c in self.summary.get("configurations", ()) if c.get("added_lever") == name
        }
        found = []
        for row in self.rows():
            ratio = row.get("speedup_vs_previous")
            if row["config_id"] in added and ratio:
                mark = "" if row.get("separated_from_previous", True) else ", not separated from 1"
                found.append(
                    f"×{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] on {row['workload']}{mark}"
                )
        return self.cite("; ".join(found)) if found else None

    def best(self, key: str) -> str | None:
        """The largest value of a scalar metric and where it was reached; None where nothing was measured."""
        rows = [row for row in self.rows() if isinstance(row.get(key), int | float)]
        if not rows:
            return None
        top = max(rows, key=lambda row: row[key])
        return self.cite(f"{top[key]:.1%} ({top['config_id']}, {top['workload']})")

    def speedups(self) -> str | None:
        """The best speed-up over the baseline on each workload."""
        best: dict[str, Mapping[str, Any]] = {}
        for row in self.rows():
            ratio = row.get("speedup_vs_baseline")
            if ratio and (row["workload"] not in best or ratio["value"] > best[row["workload"]]["value"]):
                best[row["workload"]] = ratio
        if not best:
            return None
        return self.cite(
            "; ".join(f"×{r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}] on {w}" for w, r in best.items())
        )

    def weights_cut(self) -> str | None:
        """How much smaller the weights got at the quantisation rung."""
        if not self.summary:
            return None
        by_id = {c["config_id"]: c for c in self.summary.get("configurations", ())}
        for config in by_id.values():
            below = by_id.get(config.get("previous") or "")
            if config.get("added_lever") == "quantization" and below:
                after, before = config.get("weight_bytes"), below.get("weight_bytes")
                if after and before:
                    text = f"weights {before / 1e6:.0f} → {after / 1e6:.0f} MB, {after / before - 1:+.1%}"
                    return self.cite(f"{config['config_id']}: {text}")
        return None

    def decode_share(self) -> str | None:
        """Share of a request's median time that comes after the first token, by configuration at the lowest load."""
        rows = [
            r for r in self.rows() if "p50" in (r.get("ttft_s") or {}) and "p50" in (r.get("e2e_s") or {})
        ]
        if not rows:
            return None
        lowest = min(row.get("concurrency") or 0 for row in rows)
        found = {
            f"{row['config_id']} on {row['workload']}": 1
            - row["ttft_s"]["p50"]["value"] / row["e2e_s"]["p50"]["value"]
            for row in rows
            if (row.get("concurrency") or 0) == lowest
        }
        return self.cite("; ".join(f"{share:.0%} ({name})" for name, share in found.items()))

    def kv_bytes(self) -> str | None:
        """Bytes of KV-cache that the engine allocated a token, beside the formula with KV heads and with all heads."""
        shape = (self.environment or {}).get("model_shape") or {}
        names = ("num_layers", "num_heads", "num_kv_heads", "head_dim")
        if not self.summary or any(name not in shape for name in names):
            return None
        elements = 2 * shape["num_layers"] * shape["head_dim"]
        found: dict[float, str] = {}
        for config in self.summary.get("configurations", ()):
            size, tokens = config.get("kv_capacity_bytes"), config.get("kv_capacity_tokens")
            if size and tokens:
                found.setdefault(size / tokens, config["config_id"])
        if not found:
            return None
        text = "; ".join(
            f"{allocated:,.0f} B a token allocated ({name}) = {allocated / elements / shape['num_kv_heads']:.3g} B an element "
            f"with {shape['num_kv_heads']} KV heads, {allocated / elements / shape['num_heads']:.3g} with all {shape['num_heads']}"
            for allocated, name in found.items()
        )
        return self.cite(text)

    def memory_read(self, device: str) -> str | None:
        """The measured read ceiling, if the run was on that device."""
        environment = self.environment or {}
        names = [str(gpu.get("name", "")) for gpu in environment.get("gpus", ())]
        rate = (environment.get("ceilings") or {}).get("memory_read_bytes_per_s")
        if rate and any(device in name for name in names):
            return self.cite(f"{rate / 1e12:.2f} TB/s read on {names[0]}")
        return None

    def cite(self, text: str) -> str:
        """`text` with the run that it comes from."""
        return f"{text} ({self.run})" if self.run else text


@dataclass(frozen=True, slots=True)
class Finding:
    """What the function of a claim found."""

    verdict: Verdict
    statement: str  # the right statement, with the figures just computed
    measured: str | None = None  # on this machine; None = not measured
    figures: Mapping[str, float] = field(default_factory=dict)  # what was computed, for JSON and tests


Judge = Callable[[Evidence], Finding]


@dataclass(frozen=True, slots=True)
class Claim:
    """One row: number and place in the guide, what it says, and the function that judges it."""

    number: int
    place: str
    says: str
    how: str  # P paper, C CPU, G GPU: what a full check needs
    judge: Judge

    def as_dict(self, evidence: Evidence) -> dict[str, Any]:
        """The row judged, as plain values."""
        found = self.judge(evidence)
        return {
            "number": self.number,
            "place": f"§{self.place}",
            "claim": self.says,
            "verdict": found.verdict.value,
            "statement": found.statement,
            "measured_here": found.measured or NOT_MEASURED,
            "check": self.how,
            "figures": dict(found.figures),
            "function": f"{self.judge.__module__}.{self.judge.__name__}",
        }


CLAIMS: dict[int, Claim] = {}


def claim(number: int, place: str, says: str, how: str) -> Callable[[Judge], Judge]:
    """Register the judging function of one row."""

    def register(judge: Judge) -> Judge:
        assert number not in CLAIMS, f"claim {number} is registered twice"
        CLAIMS[number] = Claim(number, place, says, how, judge)
        return judge

    return register


def examine_all(evidence: Evidence) -> list[dict[str, Any]]:
    """Every row judged, in the order of the guide."""
    return [CLAIMS[number].as_dict(evidence) for number in sorted(CLAIMS)]
