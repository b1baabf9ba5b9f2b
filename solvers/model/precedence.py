"""Which ops may run in another order than the graph's, and the graph in such an order.

Knows what must stay: data comes first; phases follow one another; ops that may not run twice keep
their order, and so do those that read what such an op made from nothing (a kernel that draws random
numbers, behind the op that remembers the generator); what only ends a phase ends it, what opens it
without inputs opens it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise

from planner.graphs import Graph, Op, Phase


@dataclass(frozen=True)
class Freedom:
    """For each op those that come right before and right after it in every order allowed.

    ``part[o]`` numbers the part of the step that ``o`` belongs to; parts follow one another.
    """

    before: tuple[tuple[int, ...], ...]
    after: tuple[tuple[int, ...], ...]
    part: tuple[int, ...]

    @cached_property
    def spans(self) -> dict[int, tuple[int, int]]:
        """For each part where it begins and stops, the same in every order."""
        found: dict[int, tuple[int, int]] = {}
        for o, p in enumerate(self.part):
            found[p] = (found.get(p, (o, o))[0], o + 1)
        return found

    def ancestors(self) -> list[int]:
        """Return for each op, as bits, the ops that run first before it in every order."""
        found: list[int] = []
        earlier = dict.fromkeys(self.part, 0)
        for o, p in enumerate(self.part):
            earlier[p] |= 1 << o
        done, total = dict[int, int](), 0
        for p in sorted(earlier):
            done[p], total = total, total | earlier[p]
        for o, befores in enumerate(self.before):
            bits = done[self.part[o]]
            for u in befores:
                bits |= found[u] | 1 << u
            found.append(bits)
        return found


def freedom(graph: Graph) -> Freedom:
    """Return what the order of first runs may be.

    >>> from planner.graphs import Value
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (), (1,)), Op("c", "f", (0, 1), (2,)))
    >>> freedom(Graph(ops, tuple(Value(x, 1) for x in "abc"))).before
    ((), (), (0, 1))
    """
    before: list[set[int]] = [
        {p for v in op.inputs if (p := graph.producer[v]) is not None} for op in graph.ops
    ]
    fixed = [o for o in range(len(graph.ops)) if _keeps_its_place(graph, o)]
    for earlier, later in pairwise(fixed):
        before[later].add(earlier)
    after: list[list[int]] = [[] for _ in graph.ops]
    for o, befores in enumerate(before):
        for u in befores:
            after[u].append(o)
    return Freedom(
        tuple(tuple(sorted(found)) for found in before), tuple(map(tuple, after)), _parts(graph)
    )


def _keeps_its_place(graph: Graph, index: int) -> bool:
    op = graph.ops[index]
    if not op.recomputable:
        return True
    makers = (graph.producer[v] for v in op.inputs)
    return any(m is not None and _from_nothing(graph.ops[m]) for m in makers)


def _from_nothing(op: Op) -> bool:
    return not op.recomputable and not op.inputs


def _parts(graph: Graph) -> tuple[int, ...]:
    """Number the parts: phases, without the ops that open or end one."""
    parts: list[int] = []
    number = 0
    for _, group in groupby(graph.ops, lambda op: op.phase):
        ops = list(group)
        opening = 0
        while opening < len(ops) and _from_nothing(ops[opening]):
            opening += 1
        ends = opening < len(ops) and not ops[-1].outputs
        parts += [*range(number, number + opening), *[number + opening] * (len(ops) - opening)]
        number += opening + 1
        if ends:
            parts[-1] = number
            number += 1
    return tuple(parts)


def may_reorder(graph: Graph) -> bool:
    """Say whether reordering is meant at all: not where the order hides communication."""
    return all(op.phase is not Phase.COMMUNICATION for op in graph.ops)


def permuted(graph: Graph, order: Sequence[int]) -> Graph:
    """Return the graph with its ops in another order; its values keep their numbers.

    >>> from planner.graphs import Value
    >>> g = Graph((Op("a", "f", (), (0,)), Op("b", "f", (), (1,))), (Value("x", 1), Value("y", 1)))
    >>> [op.name for op in permuted(g, [1, 0]).ops]
    ['b', 'a']
    """
    return replace(graph, ops=tuple(graph.ops[o] for o in order))
