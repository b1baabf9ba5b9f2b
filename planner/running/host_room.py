"""Places in a block of bytes: taken, and given back."""

from __future__ import annotations

from planner.graphs.host_memory import aligned


class Room:
    """Which bytes of a block are free: places of any size are taken, and given back."""

    def __init__(self, size_bytes: int) -> None:
        self.free = [(0, size_bytes)]

    def take(self, size_bytes: int) -> int | None:
        """Return where so many bytes begin, the first that are free; ``None`` if there are none.

        >>> room = Room(256)
        >>> room.take(100), room.take(100), room.take(1)
        (0, 128, None)
        >>> room.give_back(0, 100)
        >>> room.take(128), room.free
        (0, [])
        """
        wanted = aligned(size_bytes)
        for i, (begin, size) in enumerate(self.free):
            if wanted <= size:
                rest = (begin + wanted, size - wanted)
                self.free[i : i + 1] = [rest] if rest[1] else []
                return begin
        return None

    def give_back(self, begin: int, size_bytes: int) -> None:
        """Free what was taken, and join it with what is free beside it."""
        joined: list[tuple[int, int]] = []
        for at, size in sorted([*self.free, (begin, aligned(size_bytes))]):
            if joined and sum(joined[-1]) == at:
                joined[-1] = joined[-1][0], joined[-1][1] + size
            else:
                joined.append((at, size))
        self.free = joined
