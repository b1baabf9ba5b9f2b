"""Programs written once for all smaller sizes, kept for as long as the model is as it was.

Knows which of them serves a model as it is now. Knows nothing of how they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from planner.errors import PlanMismatch
from planner.graphs.capture.guards.modules import (
    Fixed,
    changes,
    fixed_in,
    hook_changes,
    read_changes,
)
from planner.graphs.capture.guards.paths import Path
from planner.graphs.capture.guards.told_values import is_number
from planner.running.engines.engine import Sized

MOST = 2
"""Programs kept; the one written longest ago goes first."""

Write = Callable[[nn.Module, Sequence[Path]], Sized]
"""Writes a program of any size for a model with floats of Python's as inputs."""


@dataclass(frozen=True)
class _Written:
    sized: Sized
    fixed: Fixed

    def serves(self, model: nn.Module, lifted: Collection[Path]) -> bool:
        own = self.sized.program.lifted
        modules = list(model.modules())
        if not set(lifted) <= set(own) or not all(is_number(p.find(modules)) for p in own):
            return False
        looks: Any = (changes, hook_changes, read_changes)
        return not any(any(look(self.fixed, model)) for look in looks)


class AnySize:
    """The programs of any size of one plan, the last written first."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._items: list[_Written] = []
        self._failed: set[tuple[Path, ...]] = set()

    def of(self, model: nn.Module, lifted: Sequence[Path]) -> Sized | None:
        """Return a program for a model as it is now, ``None`` if its sizes cannot be symbols.

        Args:
            model: as it is now.
            lifted: floats that are inputs of it; others may be, too.
        """
        for item in self._items:
            if item.serves(model, lifted):
                return item.sized
        if tuple(lifted) in self._failed:
            return None
        try:
            sized = self._write(model, lifted)
        except PlanMismatch:
            self._failed.add(tuple(lifted))
            return None
        self._items = [_Written(sized, fixed_in(model, sized.program.reads)), *self._items][:MOST]
        return sized
