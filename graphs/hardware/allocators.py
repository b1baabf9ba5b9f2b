"""What a device's allocator takes from the driver to hand out blocks: PyTorch's caching allocator.

Own code from the rules of c10/cuda/CUDACachingAllocator.cpp (torch 2.13): sizes are rounded to 512
bytes; small blocks (up to 1 MiB) come from segments of 2 MiB, larger ones below 10 MiB from
segments of 20 MiB, others from segments of their own in multiples of 2 MiB. The smallest free block
that is large enough is taken and split. What is freed joins free neighbours in its segment. If the
driver has no more, segments that are wholly free go back to it. With expandable segments each of
the two pools is one range of addresses, where pages are put under the lowest addresses that have
room; if the driver has no more, all wholly free pages go back to it, wherever they lie. Knows
nothing of graphs.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

SEGMENTS, EXPANDABLE = "segments", "expandable segments"
"""How the allocator may be set, as plans and people say it; the first is torch's default."""

ROUND = 512
SMALL = 2**20
SMALL_SEGMENT = 2 * 2**20
MEDIUM = 10 * 2**20
MEDIUM_SEGMENT = 20 * 2**20
LARGE_ROUND = 2 * 2**20

_RANGE = 2**60  # the addresses of an expandable segment: more than any device has bytes


class OutOfMemory(MemoryError):
    """A block was asked for that the limit does not allow."""


@dataclass(eq=False, slots=True)
class Block:
    """A piece of a segment, in use or free, with its neighbours in the segment.

    A block that is not ``mapped`` is of addresses alone, without bytes.
    """

    address: int
    size: int
    pool: int
    free: bool = True
    mapped: bool = True
    before: Block | None = None
    after: Block | None = None


class CachingAllocator:
    """The allocator of one device, empty at first.

    ``reserved`` is what it has of the driver now and ``allocated`` what of that is in use, in
    bytes; ``peak_reserved`` and ``peak_allocated`` are the most so far. ``retries`` counts how
    often it had to give segments back before it got more; ``lacked`` adds up by how much a lenient
    one was beyond its limit each time that even this was not enough.

    >>> allocator = CachingAllocator()
    >>> block = allocator.allocate(700)
    >>> allocator.allocated, allocator.reserved
    (1024, 2097152)
    """

    def __init__(
        self, limit: int | None = None, *, expandable: bool = False, lenient: bool = False
    ) -> None:
        """Begin with nothing.

        Args:
            limit: the most bytes that the driver has; ``None`` for as many as are asked for.
            expandable: with expandable segments.
            lenient: go beyond the limit where nothing else helps.
        """
        self.limit, self.expandable, self.lenient = limit, expandable, lenient
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self.retries = self.lacked = 0
        self._free: tuple[list[tuple[int, int]], ...] = ([], [])  # sizes and addresses, sorted
        self._at: tuple[dict[int, Block], ...] = ({}, {})  # the free blocks by their addresses
        self._next_address = 0
        self._unmapped: tuple[list[Block], ...] = ([], [])  # by address; the last has no end
        if expandable:
            for pool, blocks in enumerate(self._unmapped):
                blocks.append(Block(0, _RANGE, pool, mapped=False))

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
            block = self._extend(size, pool) or self._retry(size, pool)
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
        self._keep(self._joined(block))

    def _joined(self, block: Block) -> Block:
        """Return a block as one with those free neighbours that have bytes as it has."""
        before, after = block.before, block.after
        if before is not None and before.free and before.mapped is block.mapped:
            self._forget(before)
            before.size += block.size
            before.after = after
            if after is not None:
                after.before = before
            block = before
        if after is not None and after.free and after.mapped is block.mapped:
            self._forget(after)
            block.size += after.size
            block.after = after.after
            if after.after is not None:
                after.after.before = block
        return block

    def _keep(self, block: Block) -> None:
        if block.mapped:
            insort(self._free[block.pool], (block.size, block.address))
            self._at[block.pool][block.address] = block
        else:
            insort(self._unmapped[block.pool], block, key=_address)

    def _forget(self, block: Block) -> None:
        if block.mapped:
            free = self._free[block.pool]
            del free[bisect_left(free, (block.size, block.address))]
            del self._at[block.pool][block.address]
        else:
            self._unmapped[block.pool].remove(block)

    def _take_free(self, size: int, pool: int) -> Block | None:
        """Take the smallest free block that is large enough, counting what it could grow by."""
        free, at = self._free[pool], self._at[pool]
        index = bisect_left(free, (size, -1))
        if index == len(free):
            return None
        block = at[free[index][1]]
        if self.expandable:
            while index + 1 < len(free):
                following = at[free[index + 1][1]]
                if _could_be(following) >= _could_be(block):
                    break
                index, block = index + 1, following
        del free[index], at[block.address]
        return block

    def _split(self, block: Block, size: int) -> None:
        """Leave free what a block has beyond a size, if that is worth it."""
        left = block.size - size
        if left < ROUND or (block.pool and not self.expandable and left <= SMALL):
            return
        self._keep(_cut(block, size))

    def _extend(self, size: int, pool: int) -> Block | None:
        """Get what is needed for a block of the driver, if that has it."""
        return self._put_pages(size, pool) if self.expandable else self._segment(size, pool)

    def _retry(self, size: int, pool: int) -> Block:
        """Give back what is free, and try again."""
        self.retries += 1
        if self.expandable:
            self._give_pages_back()
        else:
            self._give_segments_back()
        if (block := self._extend(size, pool)) is not None:
            return block
        if self.limit is None or not self.lenient:
            raise OutOfMemory(f"{size} bytes beside {self.reserved} of {self.limit}")
        limit, self.limit = self.limit, None
        block = self._extend(size, pool)
        assert block is not None, "nothing limits it"
        self.limit = limit
        self.lacked += self.reserved - limit
        return block

    def _reserve(self, size: int) -> bool:
        if self.limit is not None and self.reserved + size > self.limit:
            return False
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return True

    def _segment(self, size: int, pool: int) -> Block | None:
        if not pool:
            size = SMALL_SEGMENT
        elif size < MEDIUM:
            size = MEDIUM_SEGMENT
        else:
            size = -(-size // LARGE_ROUND) * LARGE_ROUND
        if not self._reserve(size):
            return None
        block = Block(self._next_address, size, pool)
        self._next_address += size
        return block

    def _put_pages(self, size: int, pool: int) -> Block | None:
        """Put pages where free addresses, some of which may have pages, first are enough."""
        block = next(b for b in map(_with_free_before, self._unmapped[pool]) if _room(b, size))
        if not block.mapped:
            grown = self._map(block, min(size, block.size))
            if grown is None:
                return None
            block = grown
        while block.size < size:
            following = block.after
            assert following is not None, "there was room"
            grown = self._map(following, min(size - block.size, following.size))
            if grown is None:
                return None
            block = grown
        self._forget(block)
        return block

    def _map(self, block: Block, size: int) -> Block | None:
        """Put pages under the first bytes of a block; return the free block that these are in."""
        page = MEDIUM_SEGMENT if block.pool else SMALL_SEGMENT
        size = -(-size // page) * page
        if not self._reserve(size):
            return None
        self._forget(block)
        if size < block.size:
            self._keep(_cut(block, size))
        block.mapped = True
        block = self._joined(block)
        self._keep(block)
        return block

    def _give_segments_back(self) -> None:
        for at in self._at:
            for block in [b for b in at.values() if b.before is None and b.after is None]:
                self._forget(block)
                self.reserved -= block.size

    def _give_pages_back(self) -> None:
        """Unmap the whole pages of free blocks; what is left of a block on either side stays."""
        for pool, at in enumerate(self._at):
            page = MEDIUM_SEGMENT if pool else SMALL_SEGMENT
            for block in list(at.values()):
                low = -(-block.address // page) * page
                high = (block.address + block.size) // page * page
                if low < high:
                    self._unmap(block, low, high)

    def _unmap(self, block: Block, low: int, high: int) -> None:
        self._forget(block)
        self.reserved -= high - low
        if high < block.address + block.size:
            self._keep(_cut(block, high - block.address))
        if block.address < low:
            rest = _cut(block, low - block.address)
            self._keep(block)
            block = rest
        block.mapped = False
        self._keep(self._joined(block))


def _address(block: Block) -> int:
    return block.address


def _cut(block: Block, size: int) -> Block:
    """Cut a block after so many bytes; return the second, free piece."""
    rest = Block(block.address + size, block.size - size, block.pool, mapped=block.mapped,
                 before=block, after=block.after)  # fmt: skip
    if block.after is not None:
        block.after.before = rest
    block.after, block.size = rest, size
    return rest


def _could_be(block: Block) -> int:
    """Return the size that a free block could grow to."""
    after = block.after
    return block.size + (after.size if after is not None and not after.mapped else 0)


def _with_free_before(block: Block) -> Block:
    before = block.before
    return before if before is not None and before.free else block


def _room(block: Block | None, size: int) -> bool:
    """Tell whether a block and the free ones after it have so many addresses."""
    while block is not None and block.free and size > 0:
        size -= block.size
        block = block.after
    return size <= 0
