"""A graph flattened for solvers: what each op reads, writes and weighs, as plain lists.

Knows how many bytes an order of ops holds at each position, exactly as ``graphs.simulate`` does but
without building a schedule; ``simulate`` stays the only judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.graphs import Graph

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Touched:
    """What the ops of a problem touch: op ``o`` the ``count[o]`` entries from ``first[o]`` on.

    Of each entry, ``value`` is what is touched, and ``makes`` says whether it is made or read.
    ``sizes`` and ``ends`` are by value, ``workspace`` is by op.
    """

    first: Ints
    count: Ints
    value: Ints
    makes: Bools
    sizes: Ints
    workspace: Ints
    ends: Bools


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

    @cached_property
    def touched(self) -> Touched:
        """What ops make and read, as arrays."""
        pairs = [
            [*((v, True) for v in made), *((v, False) for v in read)]
            for made, read in zip(self.outputs, self.inputs, strict=True)
        ]
        count = np.array([len(own) for own in pairs], dtype=np.int64)
        ends = np.zeros(len(self.sizes), dtype=np.bool_)
        ends[list(self.ends)] = True
        return Touched(
            first=np.cumsum(count) - count,
            count=count,
            value=np.array([v for own in pairs for v, _ in own], dtype=np.int64),
            makes=np.array([makes for own in pairs for _, makes in own], dtype=np.bool_),
            sizes=np.array(self.sizes, dtype=np.int64),
            workspace=np.array(self.workspace, dtype=np.int64),
            ends=ends,
        )

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
    touched, ops = problem.touched, np.asarray(order, dtype=np.int64)
    count = touched.count[ops]
    at = np.repeat(np.arange(len(ops)), count)
    index = np.arange(len(at)) + np.repeat(touched.first[ops] - np.cumsum(count) + count, count)
    index, at = _by_value(touched.value[index], index, at)
    value, makes = touched.value[index], touched.makes[index]
    closing = np.append(value[1:] != value[:-1], np.True_)[: len(value)]  # the last of a value
    made = np.flatnonzero(makes)
    copies, read = value[made], np.append(made[1:], len(at))[: len(made)] - 1
    kept = touched.ends[copies] & closing[read]
    assert makes[np.roll(closing, 1)].all(), "the order reads a value before it is made"
    assert np.count_nonzero(kept) == len(problem.ends), "the order leaves out what the end needs"
    last = np.where(kept, len(ops) - 1, at[read])
    size = touched.sizes[copies].astype(np.float64)  # exact up to 2**53 bytes
    change = np.bincount(at[made], size, len(ops) + 1)
    change -= np.bincount(last + 1, size, len(ops) + 1)
    held = np.cumsum(change[:-1]).astype(np.int64)
    return held + touched.workspace[ops] + problem.resident_bytes


def _by_value(value: Ints, *arrays: Ints) -> tuple[Ints, ...]:
    """Sort arrays by value; what is of one value stays in its order."""
    places = np.argsort(value, kind="stable")
    return tuple(array[places] for array in arrays)
