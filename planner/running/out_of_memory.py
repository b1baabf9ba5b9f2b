"""What an error says when a planned step runs out of memory: planned, held, and where they part.

Knows what an allocator tells of itself, and asks it when a step begins and when its backward pass
does. Knows nothing of programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch

from planner.byte_sizes import format_both, format_bytes
from planner.graphs import Kind, Phase, Subject
from planner.plan.step_plan import StepPlan


@dataclass(frozen=True)
class Held:
    """Bytes of tensors on a device, and what its allocator has taken for them."""

    allocated_bytes: int
    reserved_bytes: int


def held_on(device: torch.device) -> Held | None:
    """Return what is held on a device, ``None`` where no allocator counts."""
    if device.type in {"cpu", "meta"}:
        return None
    module = torch.get_device_module(device)
    return Held(module.memory_allocated(device), module.memory_reserved(device))


@dataclass
class Account:
    """What was planned for a step, and what its device held when its halves last began."""

    plan: StepPlan
    ask: Callable[[torch.device], Held | None] = held_on
    seen: dict[Phase, Held] = field(default_factory=dict)
    runs: int = 0
    """How often a planned step has begun."""

    @contextmanager
    def kept(self, device: torch.device, phase: Phase) -> Iterator[None]:
        """Note what is held when a half begins; if memory runs out in it, let the error say more.

        Args:
            device: that the step runs on.
            phase: the half, forward or backward.
        """
        if phase is Phase.FORWARD:
            self.runs += 1
            self.seen.clear()
        if phase not in self.seen and (held := self.ask(device)) is not None:
            self.seen[phase] = held
        try:
            yield
        except torch.OutOfMemoryError as error:
            error.args = (f"{error}\n{self._story(self.ask(device), phase)}",)
            raise

    def _story(self, held: Held | None, phase: Phase) -> str:
        plan = self.plan
        told = (
            f"This was the {phase.value} half of a planned step: planned are at most "
            f"{format_both(plan.peak_bytes)} of a budget of {format_both(plan.budget_bytes)}"
        )
        if held is None:
            return f"{told}."
        return (
            f"{told}; held were {format_both(held.allocated_bytes)}, for which the allocator "
            f"had taken {format_both(held.reserved_bytes)}. {self._where_they_part(held)}"
        )

    def _where_they_part(self, held: Held) -> str:
        for phase, when, advice in _MOMENTS:
            planned, found = self._planned[phase], self.seen.get(phase, Held(0, 0))
            if found.allocated_bytes > planned:
                return (
                    f"They first differ {when}: {format_bytes(found.allocated_bytes)} were held, "
                    f"{format_bytes(planned)} planned. {advice}"
                )
        if held.allocated_bytes > self.plan.peak_bytes - self._reserve:
            return "They first differ within this half: a kernel took more than was planned for it."
        lost = format_bytes(held.reserved_bytes - held.allocated_bytes)
        return (
            f"Tensors held no more than planned: {lost} lie in pieces in the allocator, or others "
            "hold the device. Set PYTORCH_ALLOC_CONF=expandable_segments:True, or plan with a "
            "smaller budget or reserve=."
        )

    @cached_property
    def _reserve(self) -> int:
        return sum(v.size_bytes for v in self.plan.graph.values if v.kind is Kind.RESERVE)

    @cached_property
    def _planned(self) -> dict[Phase, int]:
        """What the plan holds where a half begins, but for what is reserved."""
        plan = self.plan
        ops = plan.graph.ops
        steps = enumerate(plan.schedule.steps)
        ran = ((k, ops[s.index]) for k, s in steps if s.action.subject is Subject.OP)
        turn = next(k for k, op in ran if op.target == "tangent")
        return {
            Phase.FORWARD: plan.graph.resident_bytes - self._reserve,
            Phase.BACKWARD: int(plan.trace.live_bytes[turn]) - self._reserve,
        }


_MOMENTS = (
    (
        Phase.FORWARD,
        "before the step began",
        "Something else is on the device: another model (reserve= counts it), gradients that were "
        "kept, or an earlier step whose backward pass has not run.",
    ),
    (
        Phase.BACKWARD,
        "between forward and backward",
        "What is done with the output is not in the plan: make it part of the step with loss=.",
    ),
)
