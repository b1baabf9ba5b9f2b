"""Schedules: the order in which ops run, recomputations included, and values are freed.

Knows how a schedule is written down. What one costs and holds is ``graphs.simulate``'s to say.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from planner.graphs.graph import Graph


class Action(enum.Enum):
    """What a step does."""

    COMPUTE = "compute"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Step:
    """COMPUTE the op with this index, or FREE the value with this index."""

    action: Action
    index: int


@dataclass(frozen=True)
class Schedule:
    """Steps in the order they run.

    >>> Schedule((Step(Action.COMPUTE, 0), Step(Action.FREE, 1))).order
    (0,)
    """

    steps: tuple[Step, ...]

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The ops computed, in order, repetitions included."""
        return tuple(s.index for s in self.steps if s.action is Action.COMPUTE)

    @property
    def is_store_all(self) -> bool:
        """True if no op runs twice."""
        return len(set(self.order)) == len(self.order)

    @property
    def is_reordered(self) -> bool:
        """True if ops first run in another order than the graph's.

        >>> Schedule((Step(Action.COMPUTE, 1), Step(Action.COMPUTE, 0))).is_reordered
        True
        """
        first = list(dict.fromkeys(self.order))
        return first != sorted(first)


def schedule_from_order(graph: Graph, order: Sequence[int]) -> Schedule:
    """Add to a sequence of ops the earliest possible frees: each copy dies after its last use.

    >>> from planner.graphs.graph import Graph, Op, Value
    >>> values = (Value("a", 1), Value("b", 1))
    >>> g = Graph((Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,))), values)
    >>> [(s.action.value, s.index) for s in schedule_from_order(g, [0, 1]).steps]
    [('compute', 0), ('compute', 1), ('free', 0), ('free', 1)]
    """
    needed = set(graph.outputs)  # going backwards: values some later step still reads
    reverse: list[Step] = []
    for index in reversed(order):
        op = graph.ops[index]
        dying = [v for v in op.outputs if v not in needed]
        needed.difference_update(op.outputs)
        dying += [v for v in op.inputs if v not in needed and v not in graph.resident]
        needed.update(op.inputs)
        reverse += [Step(Action.FREE, v) for v in sorted(dying, reverse=True)]
        reverse.append(Step(Action.COMPUTE, index))
    return Schedule(tuple(reversed(reverse)))


def store_all(graph: Graph) -> Schedule:
    """Return the schedule that runs every op once, in order, freeing at last use."""
    return schedule_from_order(graph, range(len(graph.ops)))
