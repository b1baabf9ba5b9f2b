"""Which states of an optimizer wait on the host between its steps, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from planner.graphs.host_memory import ALIGNMENT

_MOST_STATES = 4
"""Tensors of state that a parameter may have: places are aligned, and each may waste some."""


def room_bytes(moved_bytes: int, parameters: int) -> int:
    """Return what states may take on the host, each at a place of its own.

    Args:
        moved_bytes: of the states.
        parameters: whose they are.

    >>> room_bytes(1000, 2)
    1512
    """
    return moved_bytes + ALIGNMENT * _MOST_STATES * parameters


@dataclass(frozen=True)
class StatesOnHost:
    """The parts in which the optimizer takes its step, of which the first few have states there.

    Attributes:
        parts: the names of the parameters of each part, in the order of the parts.
        moved_parts: how many of them, the first ones, have their states on the host.
        moved_bytes: of those states, which go there and back in every step.
        kept_seconds: of the plain step with all states on the device.
        kept_peak_bytes: what that holds.
    """

    parts: tuple[tuple[str, ...], ...]
    moved_parts: int
    moved_bytes: int
    kept_seconds: float
    kept_peak_bytes: int

    @property
    def room_bytes(self) -> int:
        """What the states may take on the host, each at a place of its own."""
        return room_bytes(self.moved_bytes, sum(map(len, self.parts[: self.moved_parts])))

    def __post_init__(self) -> None:
        if not 0 < self.moved_parts <= len(self.parts):
            raise ValueError(
                f"states of {self.moved_parts} of {len(self.parts)} parts are on the host: "
                "expected at least one, and no more than there are"
            )
