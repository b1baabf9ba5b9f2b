"""What a device's allocator takes from the driver to hand out blocks: PyTorch's caching allocator.

Own code from the rules of c10/cuda/CUDACachingAllocator.cpp (torch 2.13): sizes are rounded to 512
bytes; small blocks (up to 1 MiB) come from segments of 2 MiB, larger ones below 10 MiB from
segments of 20 MiB, others from segments of their own in multiples of 2 MiB. The smallest free block
that is large enough is taken and split. What is freed joins free neighbours in its segment. If the
driver has no more, segments that are wholly free go back to it. With expandable segments each of
the two pools is one range of addresses that grows by pages and gives free pages back. Knows nothing
of graphs.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass

SEGMENTS, EXPANDABLE = "segments", "expandable segments"
"""How the allocator may be set, as plans and people say it; the first is torch's default."""

ROUND = 512
SMALL = 2**20
SMALL_SEGMENT = 2 * 2**20
MEDIUM = 10 * 2**20
MEDIUM_SEGMENT = 20 * 2**20
LARGE_ROUND = 2 * 2**20


class OutOfMemory(MemoryError):
    """A block was asked for that the limit does not allow."""


@dataclass(eq=False, slots=True)
class Block:
    """A piece of a segment, in use or free, with its neighbours in the segment."""

    address: int
    size: int
    pool: int
    free: bool = True
    before: Block | None = None
    after: Block | None = None


class CachingAllocator:
    """The allocator of one device, empty at first.

    ``reserved`` is what it has of the driver now and ``allocated`` what of that is in use, in
    bytes; ``peak_reserved`` and ``peak_allocated`` are the most so far. ``retries`` counts how
    often it had to give segments back before it got more.

    >>> allocator = CachingAllocator()
    >>> block = allocator.allocate(700)
    >>> allocator.allocated, allocator.reserved
    (1024, 2097152)
    """

    def __init__(self, limit: int | None = None, *, expandable: bool = False) -> None:
        """Begin with nothing.

        Args:
            limit: the most bytes that the driver has; ``None`` for as many as are asked for.
            expandable: with expandable segments.
        """
        self.limit, self.expandable = limit, expandable
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self.retries = 0
        self._free: tuple[list[tuple[int, int, Block]], ...] = ([], [])
        self._next_address = 0
        self._ends: list[Block | None] = [None, None]

    def allocate(self, size: int) -> Block | None:
        """Hand out a block of at least so many bytes; of 0 bytes, none.

        Raises:
            OutOfMemory: neither a free block nor what the driver still has is large enough.
        """
        if size == 0:
            return None
        size = -(-size // ROUND) * ROUND
        pool = int(size > SMALL)
        block = self._take_free(size, pool)
        if block is None:
            block = self._extend(size, pool) if self.expandable else self._segment(size, pool)
        self._split(block, size)
        block.free = False
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def release(self, block: Block | None) -> None:
        """Take a block back, and join it with free neighbours."""
        if block is None:
            return
        self.allocated -= block.size
        block.free = True
        before, after = block.before, block.after
        if before is not None and before.free:
            self._forget(before)
            before.size += block.size
            self._join(before, after, gone=block)
            block = before
        if after is not None and after.free:
            self._forget(after)
            block.size += after.size
            self._join(block, after.after, gone=after)
        self._keep(block)

    def _join(self, block: Block, after: Block | None, *, gone: Block) -> None:
        block.after = after
        if after is not None:
            after.before = block
        if self._ends[block.pool] is gone:
            self._ends[block.pool] = block

    def _keep(self, block: Block) -> None:
        insort(self._free[block.pool], (block.size, block.address, block), key=_order)

    def _forget(self, block: Block) -> None:
        free = self._free[block.pool]
        del free[bisect_left(free, (block.size, block.address), key=_order)]

    def _take_free(self, size: int, pool: int) -> Block | None:
        """Take the smallest free block that is large enough; the growing end of a range last."""
        free = self._free[pool]
        index = bisect_left(free, (size, -1), key=_order)
        if index == len(free):
            return None
        if self.expandable and free[index][2] is self._ends[pool] and index + 1 < len(free):
            index += 1
        return free.pop(index)[2]

    def _split(self, block: Block, size: int) -> None:
        """Leave free what a block has beyond a size, if that is worth it."""
        left = block.size - size
        if left < ROUND or (block.pool and not self.expandable and left <= SMALL):
            return
        rest = Block(block.address + size, left, block.pool, before=block, after=block.after)
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, size
        if self._ends[block.pool] is block:
            self._ends[block.pool] = rest
        self._keep(rest)

    def _segment(self, size: int, pool: int) -> Block:
        """Get a segment of the driver."""
        if not pool:
            size = SMALL_SEGMENT
        elif size < MEDIUM:
            size = MEDIUM_SEGMENT
        else:
            size = -(-size // LARGE_ROUND) * LARGE_ROUND
        self._reserve(lambda: size, self._give_segments_back)
        block = Block(self._next_address, size, pool)
        self._next_address += size
        return block

    def _extend(self, size: int, pool: int) -> Block:
        """Grow the range of a pool until its free end is large enough."""
        page = MEDIUM_SEGMENT if pool else SMALL_SEGMENT

        def lacking() -> int:
            end = self._ends[pool]
            have = end.size if end is not None and end.free else 0
            return -(-(size - have) // page) * page

        grown = self._reserve(lacking, self._give_pages_back)
        end = self._ends[pool]
        if end is not None and end.free:
            self._forget(end)
            end.size += grown
            return end
        address = 0 if end is None else end.address + end.size
        block = Block(address, grown, pool, before=end)
        if end is not None:
            end.after = block
        self._ends[pool] = block
        return block

    def _reserve(self, wanted: Callable[[], int], give_back: Callable[[], None]) -> int:
        size = wanted()
        if self.limit is not None and self.reserved + size > self.limit:
            self.retries += 1
            give_back()
            size = wanted()
            if self.reserved + size > self.limit:
                raise OutOfMemory(f"{size} bytes beside {self.reserved} of {self.limit}")
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return size

    def _give_segments_back(self) -> None:
        for free in self._free:
            parts = [item for item in free if item[2].before or item[2].after]
            self.reserved -= sum(size for size, *_ in free) - sum(size for size, *_ in parts)
            free[:] = parts

    def _give_pages_back(self) -> None:
        """Unmap the whole pages of free blocks; what is left of a block on either side stays."""
        for pool, free in enumerate(self._free):
            page = MEDIUM_SEGMENT if pool else SMALL_SEGMENT
            for _, _, block in list(free):
                low = -(-block.address // page) * page
                high = (block.address + block.size) // page * page
                if low < high:
                    self._unmap(block, low, high)

    def _unmap(self, block: Block, low: int, high: int) -> None:
        self._forget(block)
        self.reserved -= high - low
        end, after = block.address + block.size, block.after
        last = self._ends[block.pool] is block
        rest: Block | None = None
        if high < end or last:
            rest = Block(high, end - high, block.pool, after=after)
            if rest.size:
                self._keep(rest)
            else:
                rest.free = False  # an end without bytes, for the range to grow from
            if last:
                self._ends[block.pool] = rest
        if after is not None:
            after.before = rest
        block.size, block.after = low - block.address, None
        if block.size:
            self._keep(block)
        elif block.before is not None:
            block.before.after = None


def _order(item: tuple[int, int, Block] | tuple[int, int]) -> tuple[int, int]:
    return item[:2]
