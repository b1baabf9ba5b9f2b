"""Where an order overshoots, if it is a stretch of a longer one."""

from __future__ import annotations

from planner.graphs import Graph, Op, Value
from planner.solvers.model.overshoot import bursts, overshoots
from planner.solvers.model.problem import flatten

CHAIN = flatten(
    Graph(
        tuple(Op(f"{i}", "f", (), (i,)) for i in range(5)),
        tuple(Value(f"{i}", 1) for i in range(5)),
        frozenset({4}),
    )
)


def test_what_runs_again_from_before_a_stretch_is_no_first_run() -> None:
    order = [0, 1, 3, 4]  # 0 stands for what ran before, 1 runs again, 3 is the stretch's first
    assert overshoots(CHAIN, order, 0, [], most=9) == [0, 3]
    assert overshoots(CHAIN, order, 0, [], most=9, first=3) == [3]
    assert overshoots(CHAIN, order, 0, [3], most=9, first=3) == [4]


def test_it_is_a_burst_of_the_stretchs_window() -> None:
    assert bursts(CHAIN, [0, 3, 1, 4], 0, [3]) == [(1, 3)]
    assert bursts(CHAIN, [0, 1, 3, 4], 0, [2], first=3) == [(0, 2), (1, 2)]
