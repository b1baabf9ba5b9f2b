"""A graph flattened for solvers: what each op reads, writes and weighs, as plain lists.

Knows how many bytes an order of ops holds at each position, exactly as ``graphs.simulate`` does but
without building a schedule; ``simulate`` stays the only judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.graphs import Graph


@dataclass(frozen=True)
class Problem:
    """Ops ``0..n-1`` over the values that ops make; resident values are one constant.

    ``inputs[o]`` leaves resident values out. ``uses[v]`` are the ops that read ``v`` in order, and
    ``n`` at the end if ``v`` is a graph output. ``own[o]`` is what op ``o`` holds besides its
    inputs and other live values: resident bytes, outputs and workspace.
    """

    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    seconds: tuple[float, ...]
    workspace: tuple[int, ...]
    recomputable: tuple[bool, ...]
    sizes: tuple[int, ...]
    maker: tuple[int, ...]
    uses: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]
    resident_bytes: int

    @property
    def n(self) -> int:
        """The number of ops."""
        return len(self.inputs)

    def own(self, op: int) -> int:
        """Return the bytes held while an op runs, its inputs and other live values left out."""
        made = sum(self.sizes[v] for v in self.outputs[op])
        return self.resident_bytes + self.workspace[op] + made

    def order_seconds(self, order: Sequence[int]) -> float:
        """Return the time of an order, repetitions included."""
        return sum(self.seconds[o] for o in order)


def flatten(graph: Graph) -> Problem:
    """Flatten a graph; a resident value keeps its index and has no maker (``n`` stands in).

    >>> from planner.graphs import Op, Value
    >>> g = Graph((Op("a", "f", (0,), (1,)),), (Value("x", 8), Value("y", 4)), frozenset({1}))
    >>> p = flatten(g)
    >>> p.inputs, p.uses, p.resident_bytes, p.own(0)
    (((),), ((0,), (1,)), 8, 12)
    """
    n = len(graph.ops)
    uses = tuple(
        (*readers, n) if v in graph.outputs else readers
        for v, readers in enumerate(graph.consumers)
    )
    return Problem(
        inputs=tuple(tuple(v for v in o.inputs if v not in graph.resident) for o in graph.ops),
        outputs=tuple(o.outputs for o in graph.ops),
        seconds=tuple(o.seconds for o in graph.ops),
        workspace=tuple(o.workspace_bytes for o in graph.ops),
        recomputable=tuple(o.recomputable for o in graph.ops),
        sizes=tuple(v.size_bytes for v in graph.values),
        maker=tuple(n if o is None else o for o in graph.producer),
        uses=uses,
        ends=tuple(sorted(graph.outputs - graph.resident)),
        resident_bytes=graph.resident_bytes,
    )


def held_bytes(problem: Problem, order: Sequence[int]) -> NDArray[np.int64]:
    """Return the bytes held at each position of an order; each copy dies after its last use.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)))
    >>> g = Graph(ops, (Value("a", 3), Value("b", 4)))
    >>> held_bytes(flatten(g), [0, 1]).tolist()
    [3, 7]
    """
    last = dict.fromkeys(problem.ends, len(order) - 1)
    change = [0] * (len(order) + 1)
    for i in range(len(order) - 1, -1, -1):
        op = order[i]
        for v in problem.outputs[op]:
            size = problem.sizes[v]
            change[i] += size
            change[last.pop(v, i) + 1] -= size
        for v in problem.inputs[op]:
            last.setdefault(v, i)
    assert not last, "the order reads a value before it is made"
    held = np.cumsum(np.array(change[:-1], dtype=np.int64))
    workspace = np.array([problem.workspace[o] for o in order], dtype=np.int64)
    return held + workspace + problem.resident_bytes
