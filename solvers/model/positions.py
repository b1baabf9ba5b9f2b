"""What an order does when: what it runs between two positions, and what it holds at one.

Knows positions only, so that other modules can ask about moments of their own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from planner.solvers.model.problem import Problem


class Positions:
    """The runs and reads of an order, to be asked about.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)), Op("c", "f", (0, 1), (2,)))
    >>> positions = Positions(flatten(Graph(ops, tuple(Value(x, 1) for x in "abc"))), [0, 1, 0, 2])
    >>> positions.first(2), positions.runs(0, 1, 4), [positions.holds(0, at) for at in (1, 2, 3)]
    (3, True, [True, False, True])
    """

    def __init__(self, problem: Problem, order: Sequence[int]) -> None:
        self.length = len(order)
        self._runs: list[list[int]] = [[] for _ in range(problem.n)]
        self._reads: list[list[int]] = [[] for _ in problem.sizes]
        self._maker = problem.maker
        for i, op in enumerate(order):
            self._runs[op].append(i)
            for v in problem.inputs[op]:
                self._reads[v].append(i)
        for v in problem.ends:
            self._reads[v].append(self.length)

    def first(self, op: int) -> int:
        """Return where an op first runs."""
        return self._runs[op][0]

    def runs(self, op: int, start: int, stop: int) -> bool:
        """Say whether an op runs at a position from ``start`` on, before ``stop``.

        Args:
            op: an op.
            start: an order to begin with, by default the given one.
            stop: the position at which to end.
        """
        found = self._runs[op]
        i = bisect_left(found, start)
        return i < len(found) and found[i] < stop

    def holds(self, v: int, position: int) -> bool:
        """Say whether a value made before is read, at a position or later, before it is remade."""
        reads, makes = self._reads[v], self._runs[self._maker[v]]
        i, j = bisect_left(reads, position), bisect_left(makes, position)
        return i < len(reads) and (j == len(makes) or reads[i] <= makes[j])
