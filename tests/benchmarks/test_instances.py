"""The instances benchmark: one row a case, infeasible ones too, from files of both kinds."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from benchmarks.instances import OWN, Row, measure
from planner.graphs import plain_schedule, read_graph, save_graph, simulate
from planner.solvers import Limits, minimum_budget, solve
from planner.solvers.given_order import BASELINES
from tests.strategies import chain

LIMITS = Limits(seconds=5.0)


def test_the_columns_are_what_others_read() -> None:
    assert ",".join(f.name for f in fields(Row)) == (
        "instance,ops,budget_fraction,status,cost_percent,bound_percent,peak_fraction,"
        "build_seconds,solve_seconds"
    )


def test_infeasible_cases_are_rows_that_name_the_op(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_graph(chain(6, size=10), tmp_path / "chain.json")
    ample, tight, none = measure(tmp_path / "chain.json", (1.0, 0.75, 0.3), LIMITS)
    assert (ample.instance, ample.ops, ample.status) == ("chain", 12, "OPTIMAL")
    assert ample.cost_percent == ample.bound_percent == 0.0
    assert 0.0 < tight.bound_percent <= tight.cost_percent
    assert tight.peak_fraction <= 0.75
    assert (none.status, none.cost_percent) == ("INFEASIBLE", float("inf"))
    assert "chain at 30%: INFEASIBLE: op 'b6' alone needs 40" in capsys.readouterr().out


def test_published_files_are_read_by_the_same_function(tmp_path: Path) -> None:
    nodes = [{"name": n, "duration": 1, "out_cost": 2} for n in "ab"]
    data = {"graph": {}, "nodes": nodes, "links": [{"0": "a", "1": "b"}]}
    (tmp_path / "two.json").write_text(json.dumps(data))
    (row,) = measure(tmp_path / "two.json", (1.0,), LIMITS)
    assert (row.instance, row.ops, row.cost_percent) == ("two", 2, 0.0)
    (tmp_path / "two.json").write_text("[1, 2")
    with pytest.raises(ValueError, match="is not JSON"):
        read_graph(tmp_path / "two.json")


@pytest.mark.parametrize("path", sorted(OWN.glob("*.json")), ids=lambda p: p.stem)
def test_our_own_instances_are_small_and_say_nothing_of_where_they_were_made(path: Path) -> None:
    assert path.stat().st_size < 300_000
    graph = read_graph(path)
    assert 50 < len(graph.ops) < 1000
    assert not any(op.source.startswith("/") for op in graph.ops)


def test_there_are_own_instances() -> None:
    assert len(sorted(OWN.glob("*.json"))) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(OWN.glob("*.json")), ids=lambda p: p.stem)
def test_never_dearer_than_a_baseline_nor_feasible_later(path: Path) -> None:
    graph = read_graph(path)
    least = minimum_budget(graph).least_bytes
    most = simulate(graph, plain_schedule(graph)).peak_bytes
    budgets = [least - 1, *(least + (most - least) * i // 8 for i in (0, 1, 2, 4, 6))]
    for budget in budgets:
        found = solve(graph, budget).schedule
        ours = float("inf") if found is None else simulate(graph, found).seconds
        for name in ("blocks", *BASELINES):
            schedule = solve(graph, budget, method=name).schedule
            assert schedule is None or ours <= simulate(graph, schedule).seconds * (1 + 1e-9)
