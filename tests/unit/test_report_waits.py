"""What the report says of waiting: only what the intervals allow, and the memory that the engine really had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from inferoptim.records.schema import Interval
from inferoptim.report.facts import Facts, read_facts
from inferoptim.report.language import Language
from inferoptim.report.load import load_records
from inferoptim.report.waits import kv_note, room_findings, wait_findings, waiting_table
from tests.golden import report_records

BUSY = report_records.CASES[-1][0]


def interval(value: float, half: float = 0.1) -> Interval:
    return Interval(value=value, low=value * (1 - half), high=value * (1 + half), n=4)


def facts(tmp_path: Path, first_token: dict[str, Interval], **configuration: Any) -> Facts:
    """The made-up run with these times to first token, and its busiest workload alone said to wait."""
    metrics = tuple(
        m.model_copy(
            update={"ttft_s": {"p50": first_token[m.config_id]} if m.config_id in first_token else {}}
        )
        for m in report_records.metrics()
    )
    configurations = tuple(c.model_copy(update=configuration) for c in report_records.configurations())
    folder = report_records.write_folder(
        tmp_path, report_records.summary(metrics=metrics, configurations=configurations)
    )
    return read_facts(load_records(folder))


def test_a_wait_is_called_shorter_or_longer_only_where_the_intervals_part(tmp_path: Path) -> None:
    found = facts(
        tmp_path,
        {
            "+chunked_prefill": interval(2.0),
            "+paged_kv": interval(1.0),
            "+prefix_caching": interval(0.95),
        },
    )
    english = Language("en")
    said = wait_findings(found, english, {r.id: r.id for r in found.rungs})
    assert len(said) == 1
    assert "+paged_kv (first token 2.00\u00a0s → 1.00\u00a0s" in said[0]
    assert "+prefix_caching" not in said[0]  # 0.95 within the interval of 1.0
    table = waiting_table(found, found.cases[-1], english)
    assert table is not None
    marked = {row.heading: row.cells[0] for row in table.rows if row.cells[0].tone}
    assert list(marked) == ["+ paged KV-cache"]
    assert marked["+ paged KV-cache"].value.endswith("↓")  # a sign beside the colour


def test_room_is_said_of_the_lever_that_made_it(tmp_path: Path) -> None:
    found = facts(tmp_path, {})
    ran = {"+chunked_prefill": 8, "+paged_kv": 14}
    samples = {
        key: [s.model_copy(update={"running": ran.get(key[0])}) for s in of_run]
        for key, of_run in found.telemetry.items()
    }
    found = replace(found, telemetry=samples)
    said = room_findings(found, Language("en"), {r.id: r.id for r in found.rungs})
    assert len(said) == 1
    assert "+paged_kv (8 → 14 at" in said[0]
    assert "+chunked_prefill" not in said[0]  # nothing is known of the rung below it


def test_memory_is_stated_in_sequences_of_full_length(tmp_path: Path) -> None:
    found = facts(
        tmp_path,
        {},
        kv_capacity_bytes=8 * 304 * 23040,
        kv_capacity_tokens=8 * 304,
        settings={"max_model_len": 294, "block_size": 16},
    )
    assert "8 sequences of 294 tokens" in kv_note(found, Language("en"))
