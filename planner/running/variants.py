"""The programs of one plan: the step as it was traced, and as what Python holds has changed it.

All run the same schedule. A value that the step read of Python's state (an annealed weight, a flag)
may be another at a later call: the step is traced again, and if it is the planned graph with other
constants, that is one more program. Knows how to tell which program a call is for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import nn

from planner.errors import PlanMismatch
from planner.graphs.capture.call_arguments import Arguments
from planner.graphs.capture.guards.call import differences, fingerprint, signature_of
from planner.graphs.capture.guards.checks import Check
from planner.graphs.capture.guards.modules import (
    Fixed,
    changes,
    fixed_in,
    hook_changes,
    quick_look,
    read_changes,
)
from planner.graphs.capture.guards.paths import Path
from planner.graphs.capture.guards.told_values import is_number
from planner.graphs.capture.step_function import unique_tensors
from planner.graphs.capture_error import CaptureError as GraphsCaptureError
from planner.graphs.served_sizes import too_large
from planner.plan.step_plan import StepPlan
from planner.progress import PlannerWarning
from planner.running.program import Program

MOST_VARIANTS = 16
"""Programs kept for one plan; the one used longest ago goes first."""
_MANY = 8
_MOST_KNOWN = 256

Trace = Callable[[nn.Module, Sequence[Path]], Program]
"""Traces the planned call of a model with floats of Python's as inputs, not constants.

Raises ``PlanMismatch`` if the model does something else than was planned.
"""


@dataclass(frozen=True)
class Departure:
    """Why a program is not for a call; ``in_reads`` if it is what it read, or hooks, alone.

    ``answers`` are what the call's data answer to the program's questions, if all but they is;
    ``failed`` is the check that fails for them, if the model's own code would raise. ``filled``
    says that the step itself put there what it found otherwise: a cache that it filled.
    """

    text: str
    in_reads: bool = False
    answers: tuple[Any, ...] | None = None
    failed: Check | None = None
    filled: bool = False


@dataclass(frozen=True)
class Variant:
    """A program, and what must hold for it to be a call's."""

    program: Program
    fixed: Fixed
    known: dict[tuple[Any, ...], Departure | None] = field(default_factory=dict)

    def difference(self, plan: StepPlan, model: nn.Module, call: Arguments) -> Departure | None:
        """Say why a call is not the one this program is for, or ``None`` if it is.

        Args:
            plan: whose program this is.
            model: as it is now.
            call: what it is called with.
        """
        modules = list(model.modules())
        try:
            look = quick_look(modules, self.fixed.reads)
            numbers = tuple(is_number(path.find(modules)) for path in self.program.lifted)
            seen = (fingerprint(modules, call), look, numbers)
        except GraphsCaptureError as error:
            return Departure(str(error))
        if seen not in self.known:
            if len(self.known) >= _MOST_KNOWN:
                self.known.clear()
            self.known[seen] = next(self._departures(plan, model, call), None)
        if (departure := self.known[seen]) is not None:
            return departure
        decisions = self.program.decisions
        known = [*call.tensors, *unique_tensors(model)[1].values()] if decisions.items else []
        if (broken := decisions.broken_by(known)) is not None:
            return Departure(
                f"the model asks for a value at {broken.source}; the plan was made for "
                f"{broken.answer}, these inputs give another",
                answers=decisions.answered_by(known),
                failed=broken.check if broken.check and broken.check.raises else None,
            )
        return None

    def _departures(self, plan: StepPlan, model: nn.Module, call: Arguments) -> Iterator[Departure]:
        """Yield what is otherwise, what tracing again cannot mend first."""
        found = signature_of(model, call, loss=bool(plan.signature["loss"]))
        yield from map(
            Departure,
            chain(
                too_large(plan.signature, found),
                differences(plan.signature, found, type(model).forward),
                changes(self.fixed, model),
            ),
        )
        for text in hook_changes(self.fixed, model):
            yield Departure(text, in_reads=True)
        made = {e.path for e in self.program.outputs.effects.items if e.has_tensors}
        for read in read_changes(self.fixed, model):
            yield Departure(read.text, in_reads=not read.constant, filled=read.path in made)
        modules = list(model.modules())
        for path in self.program.lifted:
            if not is_number(now := path.find(modules)):
                yield Departure(f"{path} is {now!r}, and was a number", in_reads=True)


class Variants:
    """The programs of a plan for one model, the last used first."""

    def __init__(self, plan: StepPlan, model: nn.Module, trace: Trace) -> None:
        self._plan, self._trace = plan, trace
        self._items = [self._traced(model, ())]
        self._again = 0
        self._refused: dict[tuple[Any, ...], Departure] = {}

    @property
    def last_used(self) -> Program:
        """The program that ran last, or will run first."""
        return self._items[0].program

    def key(self, model: nn.Module, call: Arguments) -> tuple[Any, ...]:
        """Return what tells one kind of call from another, quick enough for every step.

        Args:
            model: as it is now.
            call: what it is called with.
        """
        modules = list(model.modules())
        return fingerprint(modules, call), quick_look(modules, self._items[0].fixed.reads)

    def of(self, model: nn.Module, call: Arguments) -> Program | Departure:
        """Return the program that a call is for, or why there is none.

        Args:
            model: as it is now.
            call: what it is called with.
        """
        first: Departure | None = None
        for variant in list(self._items):
            difference = variant.difference(self._plan, model, call)
            if difference is None:
                self._items = [variant, *(v for v in self._items if v is not variant)]
                return variant.program
            first = first or difference
            if not difference.in_reads:
                return difference
        assert first is not None, "there is always one program"
        made = self._made(model, call, first)
        if isinstance(made, Departure):
            return made
        self._items = [made, *self._items[: MOST_VARIANTS - 1]]
        self._tell(first.text)
        return made.program

    def _made(self, model: nn.Module, call: Arguments, first: Departure) -> Variant | Departure:
        """Return a further program for a call, or why there is none, which is asked only once."""
        if (key := self.key(model, call)) in self._refused:
            return self._refused[key]
        try:
            made = self._traced_otherwise(model)
        except PlanMismatch as error:
            refused = Departure(f"{first.text}; with that, {error}", filled=first.filled)
            if len(self._refused) >= _MOST_KNOWN:
                self._refused.clear()
            return self._refused.setdefault(key, refused)
        if made.program.output_count != self.last_used.output_count:
            return Departure(f"{first.text}; with that, other tensors are handed out")
        return made.difference(self._plan, model, call) or made

    def _traced_otherwise(self, model: nn.Module) -> Variant:
        """Trace again; a float that has changed becomes an input if the step lets it.

        Raises:
            PlanMismatch: the model does something else than was planned.
        """
        modules = list(model.modules())
        last = self._items[0]
        changed = [path for read in last.fixed.reads for path in read.changed_floats(modules)]
        paths = (*last.program.lifted, *changed)
        if wanted := [path for path in paths if is_number(path.find(modules))]:
            try:
                return self._traced(model, wanted)
            except PlanMismatch:
                pass  # its code asks for the value: then it is a constant
        return self._traced(model, ())

    def _traced(self, model: nn.Module, lifted: Sequence[Path]) -> Variant:
        program = self._trace(model, lifted)
        return Variant(program, fixed_in(model, program.reads))

    def _tell(self, text: str) -> None:
        self._again += 1
        if self._again == _MANY:
            warnings.warn(
                f"the planned step was traced {_MANY} times again because what it reads changes "
                f"between calls: {text}; this takes time at each change: pass the value as a "
                "tensor input, or keep it in a buffer",
                PlannerWarning,
                stacklevel=6,
            )
