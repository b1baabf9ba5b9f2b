"""How the layers of a plan's model are parted over ranks, as far as a plan knows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RefusedDegree:
    """A number of ranks over which layers cannot be parted, 0 for any, and why."""

    degree: int
    reason: str


@dataclass(frozen=True, slots=True)
class TensorParallelism:
    """What is known of tensor parallelism where it was looked at.

    ``styles`` are those of the chosen degree, by patterns of modules' paths, as texts; none if
    layers are whole. ``declared`` says that they are the model's own, so that ``apply`` finds them
    there. ``refused`` are degrees that were impossible.
    """

    styles: tuple[tuple[str, str], ...] = ()
    declared: bool = False
    refused: tuple[RefusedDegree, ...] = ()
