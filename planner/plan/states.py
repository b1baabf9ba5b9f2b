"""Which states of an optimizer wait on the host between its steps, as a value."""

from __future__ import annotations

from dataclasses import dataclass


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

    def __post_init__(self) -> None:
        if not 0 < self.moved_parts <= len(self.parts):
            raise ValueError(
                f"states of {self.moved_parts} of {len(self.parts)} parts are on the host: "
                "expected at least one, and no more than there are"
            )
