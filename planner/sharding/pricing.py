"""What a schedule of a sharded step really costs, holds, and spends its time on.

Here an order of ops is carried out and judged, and a solver asked for one. What is compared is in
``planner.sharding.search``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from planner.byte_sizes import format_bytes
from planner.graphs import Graph, Kind, Phase, Schedule, Trace, simulate
from planner.graphs.binding import binding
from planner.plan.advice import tightest
from planner.plan.configuration import Configuration, UnitPlan
from planner.sharding.recipes import Recipe, recipes
from planner.sharding.step_graph.sharded_step import Realized
from planner.solvers import Limits, solve

TRIES = 6
"""How often the solver is asked for less than the budget because what runs holds more."""


class CanRealize(Protocol):
    """One rank's whole step under a configuration, as far as it is priced: a ``ShardedStep``."""

    @property
    def graph(self) -> Graph:
        """Everything that runs and is held, communication included."""

    @property
    def host_bytes(self) -> int:
        """What one rank holds on its host."""

    def floor_bytes(self) -> int:
        """Return what all that really runs holds at some moment."""

    @property
    def padding_bytes(self) -> int:
        """By how much less a step may hold, beside its states, that shards over fewer ranks."""

    def realize(self, order: Sequence[int]) -> Realized:
        """Return what an order decides for each unit, and the schedule that then really runs."""


@dataclass(frozen=True)
class Planned:
    """A schedule that really runs under a configuration, and what it costs."""

    configuration: Configuration
    graph: Graph
    host_bytes: int
    units: tuple[UnitPlan, ...]
    schedule: Schedule
    trace: Trace
    recipe: Recipe | None = None

    @property
    def seconds(self) -> float:
        """Of a whole optimizer step."""
        return self.trace.seconds

    @property
    def peak_bytes(self) -> int:
        """The most one rank holds."""
        return self.trace.peak_bytes


Needs = Callable[[Planned], int]
"""Bytes that a rank needs in order to run a plan: its tensors, and what an allocator loses."""


def peak_of(planned: Planned) -> int:
    """Return the bytes of the tensors alone: all that is needed on a CPU."""
    return planned.peak_bytes


def price(
    configuration: Configuration,
    step: CanRealize,
    order: Sequence[int],
    recipe: Recipe | None = None,
) -> Planned:
    """Return what really runs when an order is carried out, and what it costs.

    Args:
        configuration: what the step was assembled for.
        step: one rank's.
        order: of the ops of its graph.
        recipe: what the order is called, if it is a fixed one.
    """
    real = step.realize(order)
    trace = simulate(step.graph, real.schedule)
    return Planned(
        configuration, step.graph, step.host_bytes, real.units, real.schedule, trace, recipe
    )


def price_recipes(configuration: Configuration, step: CanRealize) -> Iterator[Planned]:
    """Yield what every fixed recipe costs under a configuration, the one that holds least first."""
    for recipe, order in recipes(configuration, step.graph):
        yield price(configuration, step, order, recipe)


def plan_step(
    configuration: Configuration,
    step: CanRealize,
    budget_bytes: int,
    *,
    needs: Needs = peak_of,
    bound_seconds: float = 0.0,
    method: str = "auto",
    limits: Limits | None = None,
) -> Planned | None:
    """Schedule the ops of a step so that what really runs fits; ``None`` if nothing was found.

    What runs may hold more than the solver's order: a weight that is gathered again is fetched one
    unit ahead. So the solver is first asked for that much less than the budget; then, unless that
    is within the gap of ``bound_seconds``, for all of it with weights gathered once, in which case
    nothing is fetched ahead; then for all of it, and for as much less as turns out to be lacking.
    What an allocator needs beyond the tensors of one answer is taken off what is asked for next.

    Args:
        configuration: what the step was assembled for.
        step: one rank's.
        budget_bytes: what really runs may hold.
        needs: how much of it a plan takes, no less than its tensors.
        bound_seconds: no schedule takes less, as far as is known.
        method: of the solver.
        limits: of all its calls together.
    """
    limits = replace(limits or Limits(), reorder=False)  # units run one after another
    deadline, found = time.monotonic() + limits.seconds, list[Planned]()

    def ask(graph: Graph, target: int) -> tuple[int, int] | None:
        left = replace(limits, seconds=max(1.0, deadline - time.monotonic()))
        schedule = solve(graph, target, method=method, limits=left).schedule
        if schedule is None:
            return None
        planned = price(configuration, step, schedule.order)
        needed = needs(planned)
        found.extend([planned] if needed <= budget_bytes else [])
        return needed - budget_bytes, needed - planned.peak_bytes

    ahead, lost = _ahead_bytes(step.graph), 0
    for graph, less in ((step.graph, ahead), (keeping_gathered(step.graph), 0)):
        if ahead and (answer := ask(graph, budget_bytes - less - lost)):
            _, lost = answer
        if found and found[0].seconds * (1 - limits.gap) <= bound_seconds:
            return found[0]
    target = budget_bytes - lost
    for _ in range(TRIES):
        answer = ask(step.graph, target)
        if answer is None or answer[0] <= 0:
            break
        target -= answer[0]
    return min(found, key=lambda planned: planned.seconds, default=None)


def _ahead_bytes(graph: Graph) -> int:
    """Return the largest value that can be gathered again: what is fetched ahead."""
    gathered = (v for op in graph.ops if op.recomputable for v in op.outputs)
    sizes = (graph.values[v].size_bytes for v in gathered if graph.values[v].kind is Kind.GATHERED)
    return max(sizes, default=0)


def keeping_gathered(graph: Graph) -> Graph:
    """Return the graph in which a gathered weight cannot be gathered again: stage 2 for good."""
    gathers = {graph.producer[v] for v, x in enumerate(graph.values) if x.kind is Kind.GATHERED}
    ops = (
        replace(op, recomputable=False) if i in gathers else op for i, op in enumerate(graph.ops)
    )
    return replace(graph, ops=tuple(ops))


def what_fills(planned: Planned, budget_bytes: int) -> str:
    """Say what fills the device where a schedule holds most."""
    found = binding(planned.graph, planned.schedule, planned.trace)
    tight = tightest(planned.graph, planned.schedule, found)
    if tight.reserve_bytes >= budget_bytes:
        return f"the device keeps {format_bytes(tight.reserve_bytes)} for itself"
    if tight.fixed_bytes + tight.reserve_bytes >= budget_bytes:
        return f"model states alone hold {format_bytes(tight.fixed_bytes)}"
    if found.phase is Phase.OPTIMIZER:
        return "peak is in optimizer.step; recomputation cannot help"
    where = f" of {found.module}" if found.module else ""
    share = f"{format_bytes(found.category_bytes)} of it {found.category.value}"
    return f"peak is in the {found.phase.value} phase{where}, {share}; recomputation is used up"
