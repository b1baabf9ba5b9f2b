"""Moves that change what a schedule holds when, and neither what it runs nor what that costs.

A value is freed later, or as early as it can be; an op runs a few others earlier or later. No move
crosses where the backward pass begins or ends. Knows nothing of what a move is good for.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from planner.graphs import Action, Graph, Op, Phase, Step
from planner.solvers.model.precedence import freedom
from planner.solvers.tuning import (
    MOVES_AHEAD,
    MOVES_KEPT_SHARE,
    MOVES_RESTORED_SHARE,
    MOVES_SHIFTS,
)


class FreeMoves:
    """Random moves of the schedules of a graph.

    >>> from planner.graphs import Value, plain_schedule
    >>> graph = Graph((Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)), Op("c", "f", (1,), (2,))),
    ...               tuple(Value(name, 1) for name in "abc"), frozenset({2}))
    >>> steps = list(plain_schedule(graph).steps)
    >>> moves = FreeMoves(graph, random.Random(2), [True] * 3, reorder=False)
    >>> moves.make(steps), [(step.action.name, step.index) for step in steps]
    (True, [('compute', 0), ('compute', 1), ('compute', 2), ('free', 0), ('free', 1)])
    """

    def __init__(
        self, graph: Graph, draw: random.Random, matter: Sequence[bool], *, reorder: bool
    ) -> None:
        """Begin with a graph.

        Args:
            graph: whose schedules are moved.
            draw: what every choice is drawn from.
            matter: for every value whether it matters when it is held.
            reorder: whether first runs may be exchanged, too, and not only recomputations be moved.
        """
        self.graph, self.draw, self.matter = graph, draw, matter
        # a program can keep what has a name of its own there: what some op reads
        self.read = frozenset(v for op in graph.ops for v in op.inputs)
        # for each op, as bits, those that first run before it in every order allowed
        self.earlier = freedom(graph).ancestors() if reorder else None

    def make(self, steps: list[Step]) -> bool:
        """Make one move, drawn at random; tell whether there was one to make."""
        these = [i for i, step in enumerate(steps) if self._matters(step)]
        frees = [i for i in these if steps[i].action is Action.FREE and steps[i].index in self.read]
        makers = [i for i in these if steps[i].action is Action.COMPUTE]
        ops = [i for i in makers if self.graph.ops[steps[i].index].recomputable]
        if self.earlier is None:
            first = _first_runs(steps)
            ops = [i for i in ops if first[steps[i].index] < i]
        if frees and (not ops or self.draw.random() < MOVES_KEPT_SHARE):
            return self._keep(steps, self.draw.choice(frees), makers)
        return bool(ops) and self._shift(steps, self.draw.choice(ops))

    def _matters(self, step: Step) -> bool:
        if step.action is Action.FREE:
            return self.matter[step.index]
        return any(self.matter[v] for v in self.graph.ops[step.index].outputs)

    def _keep(self, steps: list[Step], i: int, makers: list[int]) -> bool:
        """Free a value right after one of the next large ones is made, or as early as it can be."""
        step, first, stop = steps[i], i, i + 1
        while first and not self._bars(steps[first - 1], step):
            first -= 1
        while stop < len(steps) and not self._bars(step, steps[stop]):
            stop += 1
        if first < i and self.draw.random() < MOVES_RESTORED_SHARE:
            steps.insert(first, steps.pop(i))
            return True
        ahead = self.draw.choice(MOVES_AHEAD)
        if not (places := [j for j in makers if first <= j < stop][:ahead]):
            return False
        j = self.draw.choice(places)
        del steps[i]
        steps.insert(j + 1 if j < i else j, step)
        return True

    def _shift(self, steps: list[Step], i: int) -> bool:
        """Run an op a few others earlier or later."""
        step, j = steps[i], i
        first = _first_runs(steps)
        way, ops = self.draw.choice((-1, 1)), self.draw.choice(MOVES_SHIFTS)
        while ops and 0 <= (k := j + way) < len(steps):
            both_first = first.get(step.index) == i and first.get(steps[k].index) == k
            if self._bars(step, steps[k]) or (both_first and self._ordered(step, steps[k])):
                break
            j = k
            ops -= steps[j].action is Action.COMPUTE
        steps.insert(j, steps.pop(i))
        return j != i

    def _ordered(self, one: Step, other: Step) -> bool:
        """Tell whether the first runs of two ops must keep their order."""
        if other.action is Action.FREE:
            return False
        a, b = one.index, other.index
        return self.earlier is None or bool(self.earlier[a] >> b & 1 or self.earlier[b] >> a & 1)

    def _bars(self, step: Step, other: Step) -> bool:
        """Tell whether the one must stay on its side of the other, were they neighbours."""
        if step.action is Action.FREE and other.action is Action.FREE:
            return False
        if step.action is Action.FREE:
            step, other = other, step
        op = self.graph.ops[step.index]
        if other.action is Action.FREE:
            return _is_border(op) or other.index in op.inputs or other.index in op.outputs
        following = self.graph.ops[other.index]
        return (
            _is_border(following)
            or not set(op.outputs).isdisjoint((*following.inputs, *following.outputs))
            or not set(op.inputs).isdisjoint(following.outputs)
        )


def _first_runs(steps: list[Step]) -> dict[int, int]:
    """Return the position at which each op first runs."""
    found: dict[int, int] = {}
    for i, step in enumerate(steps):
        if step.action is Action.COMPUTE:
            found.setdefault(step.index, i)
    return found


def _is_border(op: Op) -> bool:
    """Tell whether the backward pass begins or ends with an op: the programs of a step do, too."""
    ends = not op.outputs if op.phase is Phase.BACKWARD else op.phase is Phase.OPTIMIZER
    return ends or (op.phase is Phase.BACKWARD and not op.inputs and not op.recomputable)
