"""Where a value is held while nothing touches it, so that it may be away meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from planner.graphs import Graph, Schedule, Step, Subject, schedule_from_order
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


def with_copies(
    graph: Graph,
    order: Sequence[int],
    before: Mapping[int, Sequence[Step]],
    after: Mapping[int, Sequence[Step]],
) -> Schedule:
    """Return the schedule of an order with steps that move values added to it.

    Args:
        graph: the step.
        order: the ops to run, repetitions included.
        before: steps to take before a position, in their order; after what the order frees there.
        after: steps to take after a position, in their order.

    >>> from planner.graphs import Action, Op, Value
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)))
    >>> g = Graph(ops, (Value("a", 1), Value("b", 1)))
    >>> moved = with_copies(g, [0, 1], {}, {0: [Step(Action.OFFLOAD, 0)]})
    >>> [step.action.name for step in moved.steps][:3]
    ['compute', 'offload', 'compute']
    """
    steps: list[Step] = []
    position = 0
    for step in schedule_from_order(graph, order).steps:
        if step.action.subject is not Subject.OP:
            steps.append(step)
            continue
        steps += [*before.get(position, ()), step, *after.get(position, ())]
        position += 1
    return Schedule(tuple(steps))


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
