"""The order of the runs: complete rounds, shuffled anew, stopped by the rule and by nothing else."""

from __future__ import annotations

from inferoptim.bench.schedule import Schedule, StopRule, interleave_fits

CELLS = [(config, case) for config in ("a", "b", "c") for case in ("guide@1", "guide@32")]


def run_all(schedule: Schedule, wall_s: float = 1.0, out_of_time: bool = False) -> list[tuple[str, str]]:
    order = []
    for cell in schedule.rounds(lambda: out_of_time):
        order.append(cell)
        schedule.record(cell, wall_s)
    return order


def test_each_round_runs_every_cell_once_in_another_order() -> None:
    order = run_all(Schedule(list(CELLS), StopRule(runs=4, min_runs=2), seed=3))
    rounds = [order[i : i + len(CELLS)] for i in range(0, len(order), len(CELLS))]
    assert len(rounds) == 4
    assert all(sorted(r) == sorted(CELLS) for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    assert order == run_all(Schedule(list(CELLS), StopRule(runs=4, min_runs=2), seed=3))
    assert order != run_all(Schedule(list(CELLS), StopRule(runs=4, min_runs=2), seed=4))


def test_a_slow_cell_stops_after_its_seconds_but_not_before_min_runs() -> None:
    rule = StopRule(runs=8, min_runs=2, seconds_per_case=6.0)
    assert len(run_all(Schedule([("a", "x")], rule, 0), wall_s=10.0)) == 2
    assert len(run_all(Schedule([("a", "x")], rule, 0), wall_s=2.0)) == 3
    assert len(run_all(Schedule([("a", "x")], rule, 0), wall_s=0.1)) == 8


def test_out_of_time_still_gives_every_cell_its_minimum() -> None:
    order = run_all(Schedule(list(CELLS), StopRule(runs=50, min_runs=2), 0), out_of_time=True)
    assert len(order) == 2 * len(CELLS)


def test_a_failed_configuration_is_not_run_again_even_in_its_round() -> None:
    schedule = Schedule(list(CELLS), StopRule(runs=3, min_runs=1), 0)
    order = []
    for cell in schedule.rounds(lambda: False):
        order.append(cell)
        if cell[0] == "b":
            schedule.drop("b")
        else:
            schedule.record(cell, 1.0)
    assert [c[0] for c in order].count("b") == 1
    assert [c[0] for c in order].count("a") == 6


def test_a_resumed_schedule_runs_only_what_is_missing() -> None:
    done = {cell: [1.0] * 3 for cell in CELLS[:5]}
    assert run_all(Schedule(list(CELLS), StopRule(runs=3, min_runs=1), 0, done)) == [CELLS[5]] * 3


def test_time_left_is_unknown_until_every_cell_ran_once() -> None:
    schedule = Schedule(CELLS[:2], StopRule(runs=10, min_runs=1, seconds_per_case=4.0), 0)
    schedule.record(CELLS[0], 1.0)
    assert schedule.left_s() is None
    schedule.record(CELLS[1], 2.0)
    assert schedule.left_s() == 3.0 + 2.0
    assert schedule.progress() == (2, 4 + 2)


def test_interleaving_leaves_a_fifth_of_free_memory_alone() -> None:
    assert interleave_fits({"a": 40, "b": 40}, 100)
    assert not interleave_fits({"a": 41, "b": 40}, 100)
