"""A step contracted to blocks: what to hold between layers, apart from what happens inside them.

The forward pass is parted at given positions; the backward pass where the gradient enters another
part. Each part is one op of a small graph over the values that parts hand to one another. A part of
the backward pass includes running again all that it needs of the forward pass but what the small
graph holds, and how much memory it is granted for that is an assumption (``demands``) that only
solving its stretch of the order, on its own, can confirm. So nothing here proves anything.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from planner.graphs import Graph, Op, Value
from planner.solvers.model.forward_cuts import crossing
from planner.solvers.model.order_from_kept import ops_to_make, turning_point
from planner.solvers.model.problem import Problem, flatten


@dataclass(frozen=True)
class StepPart:
    """Consecutive ops, and those of the forward pass to run ``again`` before them.

    ``inputs`` and ``outputs`` are values handed over between parts. The most that its ops hold when
    each runs once is ``peak_bytes``, and no single one fits below ``floor_bytes``; both leave out
    what is resident and what others hold, and are at least what is handed over.
    """

    ops: range
    again: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    floor_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Contraction:
    """The parts of a step. ``fixed`` are forward values that cannot be made again: always held."""

    graph: Graph
    problem: Problem
    parts: tuple[StepPart, ...]
    fixed: frozenset[int]

    @property
    def turn(self) -> int:
        """The position of the first backward op."""
        return turning_point(self.graph)

    @property
    def handed(self) -> tuple[int, ...]:
        """The values that parts hand over, in the order of the small graph's."""
        return tuple(v for part in self.parts for v in part.outputs)

    def small(self, demands: Sequence[int]) -> Graph:
        """Return the small graph.

        Args:
            demands: the bytes granted to each part, its inputs and outputs included.
        """
        p, number = self.problem, {v: i for i, v in enumerate(self.handed)}

        def merged(part: StepPart, demand: int) -> Op:
            handed = sum(p.sizes[v] for v in {*part.inputs, *part.outputs})
            return Op(
                name="",
                target="",
                inputs=tuple(number[v] for v in part.inputs),
                outputs=tuple(number[v] for v in part.outputs),
                seconds=sum(p.seconds[o] for o in (*part.again, *part.ops)),
                workspace_bytes=demand - handed,
                recomputable=all(
                    p.recomputable[o] or self.fixed.issuperset(p.outputs[o]) for o in part.ops
                ),
            )

        ops = tuple(merged(part, demand) for part, demand in zip(self.parts, demands, strict=True))
        held = p.resident_bytes + sum(p.sizes[v] for v in self.fixed)
        values = (*(Value("", p.sizes[v]) for v in self.handed), Value("", held))
        return Graph(ops, values, frozenset(number[v] for v in p.ends if v in number))

    def expand(self, small: Graph, order: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return what an order of the small graph is in the large one, and where its parts end.

        Each stretch from one end to the next holds one first run of a part and what runs again
        before it, the last one also what runs again in the end.

        Args:
            small: the small graph.
            order: its ops to run, repetitions included.
        """
        found, ends, seen, live = list[int](), [0], set[int](), set[int]()
        for number, after in zip(order, _live_after(small, order), strict=True):
            part, kept = self.parts[number], {self.handed[i] for i in after}
            first = number not in seen
            seen.add(number)
            if first:
                own = {v for o in part.ops for v in self.graph.ops[o].outputs}
                read = {v for o in part.ops for v in self.graph.ops[o].inputs}
                again = ops_to_make(self.graph, sorted(read - own), live)
                runs = [*leanest(self.problem, again, read | kept), *part.ops]
            else:
                wanted = kept.intersection(part.outputs)
                runs = ops_to_make(self.graph, sorted(wanted), live - wanted)
            found += runs
            live.update(v for o in runs for v in self.graph.ops[o].outputs)
            live &= kept | self.fixed
            if first:
                ends.append(len(found))
        return found, [*ends[:-1], len(found)]


def _live_after(small: Graph, order: Sequence[int]) -> list[set[int]]:
    """Return the values that are still needed after each position of an order."""
    found, live = list[set[int]](), set(small.outputs)
    for op in (small.ops[number] for number in reversed(order)):
        found.append(set(live))
        live.difference_update(op.outputs)
        live.update(op.inputs)
    return found[::-1]


def contract(graph: Graph, starts: Sequence[int]) -> Contraction:
    """Part a step.

    Args:
        graph: the step.
        starts: the positions, ascending, at which parts of the forward pass begin but the first.

    >>> from planner.graphs import Phase
    >>> forward = [Op(f"f{i}", "f", (i,), (i + 1,), 1.0) for i in range(4)]
    >>> backward = [Op(f"b{i}", "b", (i - 1, 8 - i), (9 - i,), 1.0, phase=Phase.BACKWARD)
    ...             for i in (4, 3, 2, 1)]
    >>> values = tuple(Value(f"{i}", 1) for i in range(9))
    >>> step = contract(Graph((*forward, *backward), values), [2])
    >>> [(list(part.again), list(part.ops)) for part in step.parts]
    [([], [0, 1]), ([], [2, 3, 4, 5]), ([0], [6, 7])]
    """
    problem, turn = flatten(graph), turning_point(graph)
    fixed = frozenset(
        v for o in range(turn) if not problem.recomputable[o] for v in problem.outputs[o]
    )
    handed = crossing(graph, turn, starts) - fixed
    handed |= {v for v in problem.ends if problem.maker[v] < turn} - fixed
    ranges = _ranges(problem, turn, starts, handed | fixed)
    part_of = {o: k for k, ops in enumerate(ranges) for o in ops}
    needs = [_needs(problem, turn, ops, handed, fixed) for ops in ranges]
    read = {v for _, inputs in needs for v in inputs}.union(problem.ends)
    parts = []
    for k, (ops, (again, inputs)) in enumerate(zip(ranges, needs, strict=True)):
        outputs = tuple(
            v
            for o in ops
            for v in problem.outputs[o]
            if v in read and v not in fixed and (o >= turn or v in handed)
            if any(u == problem.n or part_of[u] != k for u in problem.uses[v])
        )
        handed_bytes = sum(problem.sizes[v] for v in {*inputs, *outputs})
        floor, peak = (
            max(handed_bytes, most)
            for most in _floor_and_peak(problem, (*again, *ops), inputs, outputs, fixed)
        )
        parts.append(StepPart(ops, again, inputs, outputs, floor, peak))
    known = {v for part in parts for v in part.outputs}
    assert all(known.issuperset(part.inputs) for part in parts)
    return Contraction(graph, problem, tuple(parts), fixed)


def _ranges(
    problem: Problem, turn: int, starts: Sequence[int], kept: Collection[int]
) -> list[range]:
    """Return the ops of each part.

    One of the backward pass begins where a value from within one of the forward pass is first read;
    the last of the forward pass goes on until the first of those.
    """
    first_read: dict[int, int] = {}
    for k, (begin, end) in enumerate(pairwise([0, *starts])):
        inner = {v for o in range(begin, end) for v in problem.outputs[o]} - set(kept)
        reads = [u for v in inner for u in problem.uses[v] if turn <= u < problem.n]
        if reads:
            first_read[k] = min(reads)
    bounds = [0, *starts, *sorted(set(first_read.values()) - {turn}), problem.n]
    return [range(a, b) for a, b in pairwise(bounds)]


def _needs(
    problem: Problem, turn: int, ops: range, handed: Collection[int], fixed: Collection[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what a part runs again, and what it reads that others hand over."""
    again, inputs = set[int](), set[int]()
    stack = [v for o in ops for v in problem.inputs[o]]
    while stack:
        v = stack.pop()
        maker = problem.maker[v]
        if maker in ops or v in fixed:
            continue
        if v in handed or maker >= turn:
            inputs.add(v)
        elif maker not in again:
            again.add(maker)
            stack += problem.inputs[maker]
    return tuple(sorted(again)), tuple(sorted(inputs))


def _floor_and_peak(
    problem: Problem,
    ops: Sequence[int],
    inputs: Sequence[int],
    outputs: Sequence[int],
    fixed: Collection[int],
) -> tuple[int, int]:
    """Return the most bytes that one op alone needs, and that ops hold when each runs once.

    What is ``fixed`` counts in neither: all of it counts as held throughout the step.
    """
    sizes = problem.sizes
    made = {v for o in ops for v in problem.outputs[o] if v not in fixed}
    mine = made.union(inputs)
    last = {v: i for i, o in enumerate(ops) for v in (*problem.outputs[o], *problem.inputs[o])}
    last.update(dict.fromkeys(outputs, len(ops)))
    held, floor, peak = sum(sizes[v] for v in inputs), 0, 0
    for i, o in enumerate(ops):
        held += sum(sizes[v] for v in problem.outputs[o] if v not in fixed)
        touched = {*problem.outputs[o], *problem.inputs[o]} & mine
        floor = max(floor, problem.workspace[o] + sum(sizes[v] for v in touched))
        peak = max(peak, problem.workspace[o] + held)
        held -= sum(sizes[v] for v in touched if last[v] == i)
    return floor, peak


def leanest(problem: Problem, ops: Sequence[int], later: Collection[int]) -> list[int]:
    """Return ops in the order in which the next one always adds the fewest bytes to what is held.

    Args:
        problem: the step, flattened.
        ops: what runs, each once.
        later: what is read after them, too.
    """
    made = {v for o in ops for v in problem.outputs[o]}
    readers = {v: {o for o in ops if v in problem.inputs[o]} for v in made}
    left, found = set(ops), list[int]()

    def added(o: int) -> int:
        freed = (v for v in problem.inputs[o] if readers.get(v) == {o} and v not in later)
        return sum(problem.sizes[v] for v in problem.outputs[o]) - sum(
            problem.sizes[v] for v in freed
        )

    while left:
        ready = [o for o in left if all(problem.maker[v] not in left for v in problem.inputs[o])]
        best = min(ready, key=lambda o: (added(o), o))
        left.remove(best)
        found.append(best)
        for v in problem.inputs[best]:
            readers.get(v, set()).discard(best)
    return found
