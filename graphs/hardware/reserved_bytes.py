"""A memory model: what PyTorch's caching allocator has of the driver while a step runs.

For ``simulate(graph, schedule, memory=ReservedBytes())``, one step on a device that had nothing
before. What several steps need of a device is ``graphs.allocation``'s to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.graphs.graph import Kind
from planner.graphs.hardware.allocators import EXPANDABLE, SEGMENTS, Block, CachingAllocator
from planner.graphs.memory import EXACT, KINDS, Change

_RESERVE = KINDS.index(Kind.RESERVE)


@dataclass(frozen=True)
class ReservedBytes:
    """The bytes that a caching allocator has reserved; those it does not use count as a reserve.

    Args:
        expandable: with expandable segments.

    >>> blocks = [(0, 0, 3 << 20, 0), (1, 1, 30 << 20, 0), (2, 1, -30 << 20, 0)]
    >>> (ReservedBytes().held(blocks, 3).sum(axis=1) >> 20).tolist()
    [20, 50, 50]
    >>> (ReservedBytes(expandable=True).held(blocks, 3).sum(axis=1) >> 20).tolist()
    [20, 40, 40]
    """

    expandable: bool = False
    version: int = 1

    @property
    def name(self) -> str:
        """What plan files call it."""
        return f"bytes reserved in {EXPANDABLE if self.expandable else SEGMENTS}"

    def held(self, changes: Sequence[Change], count: int) -> NDArray[np.int64]:
        """Hand the changes to an allocator, in the order of the steps.

        What the device keeps for itself is none of the allocator's.
        """
        allocator = CachingAllocator(expandable=self.expandable)
        blocks: dict[int, Block | None] = {}
        reserved = np.zeros(count, dtype=np.int64)
        at = 0
        for step, block, size, kind in sorted(changes, key=lambda change: change[0]):
            reserved[at:step] = allocator.reserved
            at = step
            if kind == _RESERVE:
                continue
            if size >= 0:
                blocks[block] = allocator.allocate(size)
            else:
                allocator.release(blocks.pop(block))
        reserved[at:] = allocator.reserved
        held = EXACT.held(changes, count)
        held[:, _RESERVE] += reserved - np.delete(held, _RESERVE, axis=1).sum(axis=1)
        return held
