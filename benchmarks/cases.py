"""A zoo model captured once, to be planned at many budgets and run in processes of its own.

Knows how the benchmarks call the planner. Knows nothing of what they ask.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from benchmarks.models import ZOO, Factory
from planner import Limits, Plan
from planner.graphs import Graph, plain_schedule, simulate
from planner.graphs.capture.training_step import Captured
from planner.planning import plan_captured
from planner.request import Request, request_of
from planner.solvers import minimum_budget
from planner.step_variants import captured_step
from planner.verification.training_run import Trial

LIMITS = Limits(seconds=60)


@dataclass(frozen=True)
class Least:
    """The least budget known to work, and the time it took to find."""

    budget_bytes: int
    seconds: float


@dataclass(frozen=True)
class Case:
    """A captured model, and what its plans are made with."""

    name: str
    captured: Captured
    request: Request
    capture_seconds: float

    @property
    def graph(self) -> Graph:
        """The training step."""
        return self.captured.graph

    @cached_property
    def least(self) -> Least:
        """Search for the least budget, once."""
        start = time.perf_counter()
        found = minimum_budget(self.graph, limits=LIMITS)
        return Least(found.least_bytes, time.perf_counter() - start)

    @property
    def least_bytes(self) -> int:
        """The least budget known to work."""
        return self.least.budget_bytes

    @cached_property
    def most_bytes(self) -> int:
        """What the step needs when nothing is recomputed."""
        return simulate(self.graph, plain_schedule(self.graph)).peak_bytes

    def budget_at(self, fraction: float) -> int:
        """Return a budget between the least (0) and what plain training needs (1)."""
        return round(self.least_bytes + fraction * (self.most_bytes - self.least_bytes))

    def plan(self, budget_bytes: int, method: str = "auto") -> Plan:
        """Plan the step within a budget."""
        asked = replace(self.request, method=method)
        return Plan.of(plan_captured(self.captured, asked, budget_bytes))

    def trial(
        self, plan: Plan | None = None, *, factory: Factory | None = None, steps: int = 5
    ) -> Trial:
        """Return the trial of a plan, of another model in its place, or of plain training."""
        return Trial(
            model=factory or ZOO[self.name],
            inputs=None,
            loss=None,
            targets=None,
            optimizer=self.request.optimizer,
            plan=plan,
            steps=steps,
            seed=0,
            threads=torch.get_num_threads(),
        )


def capture_zoo(name: str, *, optimizer: str | None = "adamw", costs: str = "roofline") -> Case:
    """Capture a model of the zoo."""
    return capture_case(name, *ZOO[name](), optimizer=optimizer, costs=costs)


def capture_case(
    name: str,
    model: nn.Module,
    inputs: dict[str, Tensor],
    *,
    optimizer: str | None = "adamw",
    costs: str = "roofline",
) -> Case:
    """Capture a training step for planning."""
    start = time.perf_counter()
    said = {"inputs": inputs, "optimizer": optimizer, "device": "cpu", "costs": costs}
    request = request_of(model, said | {"limits": LIMITS, "progress": "off"})
    return Case(name, captured_step(request), request, time.perf_counter() - start)
