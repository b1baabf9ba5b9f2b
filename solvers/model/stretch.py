"""A stretch of an order as a graph of its own, to be solved like any other.

What is held where it begins, what must be held where it ends and all that runs before and after
stay as they are. Every op that runs in the stretch is a first run there, be it one of the whole
order or not: memory while layers are recomputed is then as exact, in masters and bounds, as that of
a forward pass. An op that runs before and after one of its inputs is made anew reads the first copy
here, so that now and then an order holds more than the whole does, never less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.graphs import Graph, Op, Value
from planner.solvers.model.positions import Positions
from planner.solvers.model.problem import Problem


@dataclass(frozen=True)
class Stretch:
    """A stretch of an order, from position ``start`` up to ``stop``.

    ``graph`` has an op that makes what is held at the beginning, then the ``ops`` of the stretch in
    the order in which they run there first; a resident value stands for what it never touches.
    """

    graph: Graph
    ops: tuple[int, ...]
    start: int
    stop: int

    @property
    def background_bytes(self) -> int:
        """What is held throughout and never touched."""
        return self.graph.values[-1].size_bytes

    def order(self, local: Sequence[int]) -> list[int]:
        """Return the ops of the whole that an order of this graph runs."""
        return [self.ops[op - 1] for op in local if op]


def stretch(problem: Problem, order: Sequence[int], start: int, stop: int) -> Stretch:
    """Return the stretch of an order between two positions.

    Args:
        problem: the step, flattened.
        order: the ops to run, repetitions included.
        start: the position at which the stretch begins.
        stop: the position after its last.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> ops = (Op("x", "f", (), (0,)), Op("a", "f", (0,), (1,)), Op("b", "f", (1,), (2,)),
    ...        Op("c", "f", (1, 2), (3,)), Op("d", "f", (0, 3), (4,)))
    >>> part = stretch(flatten(Graph(ops, tuple(Value(v, 2) for v in "xabcd"))), range(5), 2, 4)
    >>> part.ops, part.background_bytes, [op.inputs for op in part.graph.ops]
    ((2, 3), 2, [(), (0,), (0, 1)])
    """
    positions = Positions(problem, order)
    ops = tuple(dict.fromkeys(order[start:stop]))
    touched = {v for o in ops for v in (*problem.inputs[o], *problem.outputs[o])}
    before, after = _held(problem, positions, order, start), _held(problem, positions, order, stop)
    values, copies = list[Value](), dict[int, int]()

    def made(outputs: Sequence[int]) -> tuple[int, ...]:
        for v in outputs:
            copies[v] = len(values)
            values.append(Value("", problem.sizes[v]))
        return tuple(copies[v] for v in outputs)

    def copied(o: int) -> Op:
        return Op(
            name="",
            target="",
            inputs=tuple(copies[v] for v in problem.inputs[o]),
            outputs=made(problem.outputs[o]),
            seconds=problem.seconds[o],
            workspace_bytes=problem.workspace[o],
            recomputable=problem.recomputable[o],
        )

    loader = Op("", "", (), made(sorted(before & touched)), recomputable=False)
    local = (loader, *(copied(o) for o in ops))
    across = sum(problem.sizes[v] for v in before - touched)
    values.append(Value("", problem.resident_bytes + across))
    outputs = frozenset(copies[v] for v in after & touched)
    return Stretch(Graph(local, tuple(values), outputs), ops, start, stop)


def _held(problem: Problem, positions: Positions, order: Sequence[int], at: int) -> set[int]:
    """Return the values made before a position of an order that are read from there on."""
    made = {v for o in set(order[:at]) for v in problem.outputs[o]}
    return {v for v in made if positions.holds(v, at)}
