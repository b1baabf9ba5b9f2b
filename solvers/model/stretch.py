"""A stretch of an order as a problem of its own: between the first runs of two ops.

What is held where it begins and what must be held where it ends stay as they are, and so does all
that runs before and after; in between, first runs keep their order and anything near may run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from planner.solvers.model.positions import Positions
from planner.solvers.model.problem import Problem

T = TypeVar("T")


@dataclass(frozen=True)
class Stretch:
    """A stretch of an order.

    ``problem`` has the ops up to the end of the stretch. One op before it stands for all that ran
    before: it makes what is ``held`` at the beginning, and an order of the problem begins with it.
    ``order`` is that op and what ran in the stretch, from position ``start`` of the whole order up
    to ``stop``; ``first`` is the op that first runs at ``start``.
    """

    problem: Problem
    first: int
    held: frozenset[int]
    order: tuple[int, ...]
    start: int
    stop: int

    @property
    def first_seconds(self) -> float:
        """The seconds of the ops that first run in the stretch."""
        return sum(self.problem.seconds[self.first :])

    @property
    def repeated_seconds(self) -> float:
        """The seconds of what ran again in the stretch."""
        return max(0.0, self.problem.order_seconds(self.order) - self.first_seconds)

    def spliced(self, order: Sequence[int], part: Sequence[int]) -> list[int]:
        """Return a whole order with this stretch replaced.

        Args:
            order: the whole order that the stretch was taken from.
            part: an order of the stretch's problem.
        """
        return [*order[: self.start], *part[1:], *order[self.stop :]]


def stretch(problem: Problem, order: Sequence[int], first: int, stop: int) -> Stretch | None:
    """Return the stretch of an order from one op's first run up to another's.

    ``None`` if everything before may run again in it, so that no op is left to stand for that.

    Args:
        problem: the step, flattened.
        order: the ops to run, repetitions included; first runs in the graph's order.
        first: the op whose first run begins the stretch, not op 0.
        stop: the op whose first run follows it; ``problem.n`` for the end.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> ops = (Op("x", "f", (), (0,)), Op("a", "f", (0,), (1,)), Op("b", "f", (1,), (2,)),
    ...        Op("c", "f", (2,), (3,)), Op("d", "f", (2, 3), (4,)), Op("e", "f", (1, 4), (5,)))
    >>> part = stretch(flatten(Graph(ops, tuple(Value(x, 1) for x in "xabcde"))), range(6), 3, 5)
    >>> sorted(part.held), part.order, part.problem.ends, part.problem.recomputable
    ([1, 2], (1, 3, 4), (1, 4), (False, False, True, True, True))
    """
    positions = Positions(problem, order)
    begin = positions.first(first)
    end = positions.first(stop) if stop < problem.n else len(order)
    held = _held(problem, positions, first, begin)
    ends = _held(problem, positions, stop, end) if stop < problem.n else set(problem.ends)
    part = order[begin:end]
    local = _local(problem, part, first, held, ends)
    loader = next((o for o in reversed(range(first)) if o not in local), None)
    if loader is None:
        return None

    def put(item: T, items: Sequence[T]) -> tuple[T, ...]:
        return (*items[:loader], item, *items[loader + 1 : stop])

    again = [problem.recomputable[o] and (o >= first or o in local) for o in range(stop)]
    return Stretch(
        replace(
            problem,
            inputs=put((), problem.inputs),
            outputs=put(tuple(sorted(held)), problem.outputs),
            seconds=put(0.0, problem.seconds),
            workspace=put(0, problem.workspace),
            recomputable=tuple(again),
            maker=tuple(min(o, stop) for o in problem.maker),
            uses=tuple(
                (*(r for r in uses if r < stop), *((stop,) if v in ends else ()))
                for v, uses in enumerate(problem.uses)
            ),
            ends=tuple(sorted(ends)),
        ),
        first,
        frozenset(held),
        (loader, *part),
        begin,
        end,
    )


def _held(problem: Problem, positions: Positions, op: int, at: int) -> set[int]:
    """Return the values held where an op first runs, what it makes left out."""
    made = (v for o in range(op) for v in problem.outputs[o])
    return {v for v in made if positions.holds(v, at)}


def _local(
    problem: Problem, part: Sequence[int], first: int, held: set[int], ends: set[int]
) -> set[int]:
    """Return the ops from before the stretch that may run again in it.

    Those that do, and what makes a value read there from others that are there.
    """
    local = {o for o in part if o < first}
    there = held.union(*(problem.outputs[o] for o in local))
    read = ends.union(*(problem.inputs[o] for o in part))
    for _ in range(2):
        makers = {problem.maker[v] for v in read} - local
        more = {o for o in makers if o < first and there.issuperset(problem.inputs[o])}
        local |= more
        there.update(*(problem.outputs[o] for o in more))
        read.update(*(problem.inputs[o] for o in more))
    return local
