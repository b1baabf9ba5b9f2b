"""The memory rule: which bytes a step holds. Everything that counts bytes agrees with it.

While an op runs, what it reads, what it makes and its workspace are held at once. A value made
while a copy of it is live is there twice during that step, and once after it. A resident value is
there from the first step to the last. What a step frees is gone while that step runs.

``Holding`` writes down what is taken and given back; a ``MemoryModel`` says what a device needs for
it: the very bytes, or what an allocator makes of them. Knows nothing of time, nor of which
schedules are valid: see ``graphs.simulate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from planner.graphs.graph import Graph, Kind, Op

KINDS = tuple(Kind)
_COLUMN = {kind: k for k, kind in enumerate(KINDS)}
_WORKSPACE = _COLUMN[Kind.ACTIVATION]


Change = tuple[int, int, int, int]
"""From which step on, the number of the block, its bytes (negative: given back), and its kind.

A block is taken once and given back once. The kind is an index into ``KINDS``.
"""


class MemoryModel(Protocol):
    """What a device needs for a sequence of changes."""

    @property
    def name(self) -> str:
        """What plan files call it."""

    @property
    def version(self) -> int:
        """Rises with every change of what ``held`` returns; files say which one judged them."""

    def held(self, changes: Sequence[Change], count: int) -> NDArray[np.int64]:
        """Return for each of ``count`` steps the bytes held of every one of ``KINDS``.

        What is needed beyond the values themselves counts as ``Kind.RESERVE``.
        """


@dataclass(frozen=True)
class ExactBytes:
    """The bytes of the values and workspaces, and nothing else.

    >>> ExactBytes().held([(0, 0, 5, 0), (1, 0, -5, 0)], 2).sum(axis=1).tolist()
    [5, 0]
    """

    name: str = "exact bytes"
    version: int = 1

    def held(self, changes: Sequence[Change], count: int) -> NDArray[np.int64]:
        """Add the changes up."""
        delta = np.zeros((count + 1, len(KINDS)), dtype=np.int64)
        rows = np.array(changes, dtype=np.int64).reshape(-1, 4)
        np.add.at(delta, (rows[:, 0], rows[:, 3]), rows[:, 2])
        return np.cumsum(delta, axis=0)[:count]


EXACT = ExactBytes()
MEMORY_MODELS: dict[str, MemoryModel] = {EXACT.name: EXACT}
"""By name, as plan files have it. A test or a target may add a row."""


class Holding:
    """Which values are live on the device, and what was taken and given back so far."""

    def __init__(self, graph: Graph) -> None:
        self.live = set(graph.resident)
        self.changes: list[Change] = []
        self._size = [v.size_bytes for v in graph.values]
        self._kind = [_COLUMN[v.kind] for v in graph.values]
        self._block = [0] * len(graph.values)
        self._count = 0
        for v in sorted(graph.resident):
            self.take(0, v)

    def compute(self, step: int, op: Op) -> None:
        """Hold what an op makes, and its workspace for this step alone."""
        for v in op.outputs:
            if v in self.live:
                self._give(step + 1, v)
            self.take(step, v)
        if op.workspace_bytes:
            self._count += 1
            block, size = self._count, op.workspace_bytes
            self.changes.append((step, block, size, _WORKSPACE))
            self.changes.append((step + 1, block, -size, _WORKSPACE))

    def take(self, step: int, v: int) -> None:
        """Hold a value from this step on."""
        self.live.add(v)
        self._count += 1
        self._block[v] = self._count
        self.changes.append((step, self._count, self._size[v], self._kind[v]))

    def give_back(self, step: int, v: int) -> None:
        """Hold a value no more, from this step on."""
        self.live.discard(v)
        self._give(step, v)

    def _give(self, step: int, v: int) -> None:
        self.changes.append((step, self._block[v], -self._size[v], self._kind[v]))
