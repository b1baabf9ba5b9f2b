"""The stage of ZeRO that a plan amounts to: one for all units, or two where units differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """From the least to the most that is sharded, in the words of ZeRO (arXiv 1910.02054).

    A stage equals the whole number that it is, and the text that it prints as.

    >>> print(Stage(2, 3)), Stage(3, 3) == 3, Stage(2, 3) == 3
    2/3
    (None, True, False)
    """

    least: int
    most: int

    @property
    def mixed(self) -> bool:
        """Whether units differ."""
        return self.least != self.most

    def to_json(self) -> int | str:
        """Return the number, or the text of a mix."""
        return str(self) if self.mixed else self.least

    def __str__(self) -> str:
        return f"{self.least}/{self.most}" if self.mixed else str(self.least)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Stage):
            return (self.least, self.most) == (other.least, other.most)
        return other == self.to_json() or other == str(self)

    def __hash__(self) -> int:
        return hash(self.to_json())
