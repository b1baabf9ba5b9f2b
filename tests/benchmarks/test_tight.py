"""The record of best known schedules is true, and the benchmark notices what should not be."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.tight import Least, Record, Row, defects, load_records, measure, packed, unpacked
from planner.solvers import Limits
from tests.strategies import transformer


def test_every_schedule_on_record_fits_what_it_says() -> None:
    for name, known in load_records([]).items():
        assert known.known, name
        assert all(
            a[0] < b[0] and a[1] > b[1] for a, b in zip(known.known, known.known[1:], strict=False)
        )


def test_a_run_is_recorded_and_found_again() -> None:
    graph = transformer(2)
    known = Record(graph, 60, ["0-" + str(len(graph.ops) - 1)])
    rows = list(measure("small", known, (1.0, 2.0), ("auto", "blocks_uniform"), Limits(seconds=5)))
    assert [row.multiple for row in rows] == [2.0, 2.0, 1.0, 1.0]
    again = Record(graph, 60, [packed(order) for _, _, order in known.known])
    assert again.known == known.known
    assert unpacked(packed([3, 4, 5, 1, 0])) == [3, 4, 5, 1, 0]


def test_defects_are_named() -> None:
    row = Row("a", 1, 1.0, 100, "auto", "FEASIBLE", 10.0, 9.0, 10.0, 1.0, "")
    assert defects([row], [], 60) == []
    assert "beaten by 9.5" in defects([replace(row, known_percent=9.5)], [], 60)[0]
    assert "below the bound" in " ".join(defects([replace(row, known_percent=8.0)], [], 60))
    assert "took 64.0 of 60 s" in defects([replace(row, solve_seconds=64.0)], [], 60)[0]
    rival = replace(row, method="revolve", cost_percent=9.0)
    assert "revolve: auto's 10.000% is beaten by 9.000%" in " ".join(defects([row, rival], [], 60))
    assert defects([], [Least("a", 9, 8, 9, 1.0)], 60) == []
    assert len(defects([], [Least("a", 9, 8, 7, 1.0)], 60)) == 2
