"""Where a value is held while nothing touches it, so that it may be away meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from planner.solvers.model.problem import Problem


@dataclass(frozen=True, slots=True, order=True)
class Gap:
    """A value that no op touches between two positions of an order, and may be away meanwhile.

    Its copy out may begin once position ``made`` has run, while ops still read the value.
    """

    made: int
    after: int
    before: int
    value: int


def gaps_of(problem: Problem, order: Sequence[int], movable: Collection[int]) -> list[Gap]:
    """Return where values are held untouched while at least one op runs.

    Args:
        problem: the step, flattened.
        order: the ops to run, repetitions included.
        movable: the values that may be away.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (), (1,)), Op("c", "f", (0, 1), (2,)))
    >>> gaps_of(flatten(Graph(ops, tuple(Value(x, 1) for x in "abc"))), [0, 1, 2], {0, 1})
    [Gap(made=0, after=0, before=2, value=0)]
    """
    found: list[Gap] = []
    made: dict[int, int] = {}
    touched: dict[int, int] = {}
    for i, op in enumerate(order):
        for v in problem.inputs[op]:
            if v in movable and i - touched[v] > 1:
                found.append(Gap(made[v], touched[v], i, v))
                made[v] = i  # a second copy out begins after the first has come back
            touched[v] = i
        made.update(dict.fromkeys(problem.outputs[op], i))
        touched.update(dict.fromkeys(problem.outputs[op], i))
    return sorted(found)
