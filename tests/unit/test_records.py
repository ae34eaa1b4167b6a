"""A results folder survives crashes, refuses surprises, and reads back what was written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from inferoptim.errors import CapacityError, ConfigError, DataError
from inferoptim.records.reader import read_run, read_summary
from inferoptim.records.schema import (
    ConfigurationRecord,
    Record,
    RequestRecord,
    RunRecord,
    Summary,
    TelemetrySample,
)
from inferoptim.records.writer import RunWriter, explain_os_error, prepare_folder, write_atomic


class Plan(Record):
    name: str = "p"


def run(index: int, *, warmup: bool = False) -> RunRecord:
    return RunRecord(
        config_id="a", workload="w@1", run_index=index, warmup=warmup, order_index=index, started_at_s=0.0, wall_s=1.0,
        num_requests=1, num_failed=0, prompt_tokens=3, output_tokens=5,
    )  # fmt: skip


def request(index: int) -> RequestRecord:
    return RequestRecord(
        config_id="a", workload="w@1", run_index=index, request_id="r0", arrival_s=0.0, sent_s=0.0, first_token_s=0.1,
        finished_s=1.0, prompt_tokens=3, output_tokens=5,
    )  # fmt: skip


def sample(index: int) -> TelemetrySample:
    return TelemetrySample(config_id="a", workload="w@1", run_index=index, time_s=0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "results" / "one"
    prepare_folder(path, resume=False, force=False)
    writer = RunWriter(path)
    writer.plan(Plan())
    writer.configuration(ConfigurationRecord(config_id="a", label="A", target="engine", settings={}))
    writer.run(run(0, warmup=True))
    writer.run(run(0), [request(0)], [sample(0)])
    return path


def test_reads_back_what_was_written(folder: Path) -> None:
    RunWriter(folder).configuration(
        ConfigurationRecord(config_id="a", label="A", target="engine", settings={}, status="ok")
    )
    data = read_run(folder)
    assert data.plan == {"name": "p"}
    assert data.configurations["a"].status == "ok"  # the last line of an id wins
    assert [r.run_index for r in data.measured_runs()["a", "w@1"]] == [0]  # the warm-up does not count
    assert data.requests_by_run()["a", "w@1"][0] == [request(0)]
    assert len(data.telemetry) == 1
    assert data.summary is None


def test_a_crash_between_requests_and_commit_leaves_no_run(folder: Path) -> None:
    with open(folder / "requests.jsonl", "a") as file:  # run 1's requests, and half a line of its telemetry
        file.write(request(1).model_dump_json() + "\n")
    with open(folder / "telemetry.jsonl", "a") as file:
        file.write(sample(1).model_dump_json()[:30])
    data = read_run(folder)
    assert len(data.requests) == 1
    assert len(data.telemetry) == 1
    writer = RunWriter(folder)
    writer.resume()
    writer.run(run(1), [request(1)], [sample(1)])
    data = read_run(folder)
    assert [r.run_index for r in data.requests] == [0, 1]
    assert [t.run_index for t in data.telemetry] == [0, 1]


def test_damage_in_the_middle_is_named_with_its_line(folder: Path) -> None:
    path = folder / "runs.jsonl"
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(DataError, match=r"runs\.jsonl line 1 is damaged"):
        read_run(folder)


def test_folder_rules(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"already holds a run.*--resume"):
        prepare_folder(folder, resume=False, force=False)
    prepare_folder(folder, resume=True, force=False)
    prepare_folder(folder, resume=False, force=True)
    assert not (folder / "runs.jsonl").exists()
    with pytest.raises(ConfigError, match="nothing to resume"):
        prepare_folder(tmp_path / "none", resume=True, force=False)
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match="holds no run"):  # --force never deletes what is not ours
        prepare_folder(other, resume=False, force=True)
    assert (other / "cat.jpg").exists()
    with pytest.raises(ConfigError, match="cannot write"):
        prepare_folder(Path("/proc/inferoptim"), resume=False, force=False)


def test_disk_full_is_one_line_that_says_how_to_go_on(folder: Path) -> None:
    error = explain_os_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), folder / "runs.jsonl")
    assert isinstance(error, CapacityError)
    assert "disk full" in str(error)
    if Path("/dev/full").exists():  # a real full device
        writer = RunWriter(folder)
        (folder / "quality.jsonl").symlink_to("/dev/full")
        with pytest.raises(CapacityError, match=r"disk full.*with --resume"):
            writer._append("quality.jsonl", [run(0)])


def test_write_atomic_leaves_no_debris_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "summary.json").mkdir()  # a rename onto a folder fails
    with pytest.raises(ConfigError):
        write_atomic(tmp_path / "summary.json", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_summary_of_another_version_is_refused(folder: Path) -> None:
    RunWriter(folder).summary(Summary(name="n", baseline="a"))
    assert read_summary(folder).name == "n"
    path = folder / "summary.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(DataError, match="99"):
        read_summary(folder)


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no bench run"):
        read_run(tmp_path)
