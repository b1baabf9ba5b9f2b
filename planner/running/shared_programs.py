"""Programs that layers of one model share: what one was traced to serves another that is alike.

Knows which program stands for which module. Knows nothing of how programs are written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from planner.graphs.capture.guards.paths import Path
from planner.graphs.capture.guards.twins import Make, is_twin, make_of
from planner.plan.step_plan import StepPlan
from planner.running.engines.engine import Sized
from planner.running.program import Program

P = TypeVar("P", Program, Sized)


@dataclass(frozen=True)
class _Written:
    program: Program | Sized
    plan: StepPlan
    make: Make
    lifted: tuple[Path, ...]

    def serves(self, plan: StepPlan, model: nn.Module, lifted: Sequence[Path]) -> bool:
        mine, other = self.plan, plan
        asked = mine.graph is other.graph and self.lifted == tuple(lifted)
        asked = asked and mine.schedule == other.schedule and mine.signature == other.signature
        made = self.program if isinstance(self.program, Program) else self.program.program
        return asked and not made.outputs.effects.items and is_twin(self.make, made.reads, model)


class SharedPrograms:
    """The programs that were written for the layers of one model.

    A program that leaves something in Python's state is not shared: what was there before it is
    part of what was traced.
    """

    def __init__(self) -> None:
        self._items: list[_Written] = []

    def of(
        self,
        plan: StepPlan,
        model: nn.Module,
        lifted: Sequence[Path],
        kind: type[P],
        write: Callable[[], P],
    ) -> P:
        """Return a program written for a module that is alike, or write one.

        Args:
            plan: whose program it is.
            model: the module that runs it, without its plan.
            lifted: where Python holds floats that are inputs of the program.
            kind: for these very sizes, or for smaller ones, too.
            write: writes one; what it raises comes through.
        """
        for item in self._items:
            if isinstance(item.program, kind) and item.serves(plan, model, lifted):
                return item.program
        made = write()
        self._items.append(_Written(made, plan, make_of(model), tuple(lifted)))
        return made
