"""The plan: a schedule for one training step, and everything that can be read from it.

Knows the graph, the schedule, the budget and what was proved. It reads cost and memory from
``graphs.simulate`` alone. Knows nothing of how it was found.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.graphs import (
    Action,
    Graph,
    Kind,
    Phase,
    Schedule,
    Trace,
    phase_peaks,
    simulate,
    store_all,
)
from planner.graphs.binding import Binding, binding
from planner.solvers import Limits, Status

if TYPE_CHECKING:
    from torch import nn

    from planner.analysis.compare import Comparison


@dataclass(frozen=True, slots=True)
class Recomputed:
    """An op that runs more than once, what that costs, and the bytes it saves holding."""

    index: int
    extra_runs: int
    extra_seconds: float
    saved_bytes: int


@dataclass(frozen=True)
class Plan:
    """A schedule for a captured training step under a budget.

    ``bound_seconds`` is proved: no schedule of this graph whose first computations keep its order
    fits the budget in less; nor, if the plan is ``reordered``, any in another order. ``signature``
    says what the plan is for. ``message``, the seconds spent capturing and solving, and ``loss``
    (the callable given to ``fit``, which no file can hold) do not count for equality.

    Raises:
        ValueError: a graph without ops, a budget that is not positive, a bound that is not a finite
            time, or a signature that is not JSON.
    """

    graph: Graph
    schedule: Schedule
    budget_bytes: int
    status: Status
    bound_seconds: float
    method: str
    signature: Mapping[str, Any] = field(hash=False)
    device: str = "cpu"
    optimizer: str | None = None
    costs: str = "roofline"
    message: str = field(default="", compare=False)
    loss: Callable[..., Any] | None = field(default=None, compare=False, repr=False)
    capture_seconds: float = field(default=0.0, compare=False)
    solve_seconds: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        if not self.graph.ops:
            raise ValueError("the graph has no ops, so there is nothing to plan")
        if self.budget_bytes <= 0:
            raise ValueError(f"budget_bytes is {self.budget_bytes}, expected a positive size")
        if not 0 <= self.bound_seconds < float("inf"):
            raise ValueError(f"bound_seconds is {self.bound_seconds}, expected a finite time")
        if json.loads(json.dumps(self.signature)) != self.signature:
            raise ValueError("the signature does not survive JSON: use lists, not tuples")

    @cached_property
    def trace(self) -> Trace:
        """What the schedule costs and holds, step by step."""
        return simulate(self.graph, self.schedule)

    @cached_property
    def baseline(self) -> Schedule:
        """The schedule of plain training: every op once, freed after its last use."""
        return store_all(self.graph)

    @cached_property
    def baseline_trace(self) -> Trace:
        """What plain training costs and holds, step by step."""
        return simulate(self.graph, self.baseline)

    @property
    def peak_bytes(self) -> int:
        """The most the plan holds at any step."""
        return self.trace.peak_bytes

    @property
    def baseline_peak_bytes(self) -> int:
        """The most plain training holds at any step."""
        return self.baseline_trace.peak_bytes

    @property
    def seconds(self) -> float:
        """Time of a step, recomputations included."""
        return self.trace.seconds

    @property
    def baseline_seconds(self) -> float:
        """Time of a step of plain training."""
        return self.baseline_trace.seconds

    @property
    def overhead(self) -> float:
        """Extra time as a fraction of the plain step."""
        return self._over_baseline(self.seconds - self.baseline_seconds)

    @property
    def bound_overhead(self) -> float:
        """The extra time that is proved necessary, as a fraction of the plain step."""
        return self._over_baseline(max(0.0, self.bound_seconds - self.baseline_seconds))

    @property
    def gap(self) -> float:
        """How much faster a better plan could at most be, as a fraction of the plain step."""
        return self._over_baseline(max(0.0, self.seconds - self.bound_seconds))

    def _over_baseline(self, seconds: float) -> float:
        return seconds / self.baseline_seconds if self.baseline_seconds else 0.0

    @property
    def fits(self) -> bool:
        """Whether the peak is within the budget."""
        return self.peak_bytes <= self.budget_bytes

    @property
    def reordered(self) -> bool:
        """Whether ops first run in another order than the model's."""
        return self.schedule.is_reordered

    @property
    def stage(self) -> int:
        """The ZeRO stage: 0, every rank holds everything."""
        return 0

    @cached_property
    def memory(self) -> dict[Phase, dict[Kind, int]]:
        """Bytes of every category at the step where each phase holds most."""
        trace = self.trace
        return {
            phase: {k: int(n) for k, n in zip(trace.kinds, trace.by_kind[step], strict=True) if n}
            for phase, step in phase_peaks(self.graph, self.schedule, trace).items()
        }

    @cached_property
    def binding(self) -> Binding:
        """The op at the peak and what holds most there."""
        return binding(self.graph, self.schedule, self.trace)

    @cached_property
    def recomputed(self) -> tuple[Recomputed, ...]:
        """The ops that run more than once, in graph order."""
        runs, saved = Counter(self.schedule.order), _saved_bytes(self.graph, self.schedule)
        return tuple(
            Recomputed(i, n - 1, (n - 1) * self.graph.ops[i].seconds, saved[i])
            for i, n in sorted(runs.items())
            if n > 1
        )

    def apply(
        self,
        model: nn.Module,
        *,
        on_mismatch: str = "error",
        loss: Callable[..., Any] | None = None,
    ) -> nn.Module:
        """Return a model with the same parameters that runs this schedule.

        Args:
            model: the one the plan was made for.
            on_mismatch: what a call that is not the planned one does; see
                ``planner.running.apply.apply``.
            loss: the callable the plan was made with, needed if the plan comes from a file.

        Raises:
            PlanMismatch: the model is not the one the plan was made for.
        """
        from planner.running.apply import apply

        return apply(self, model, on_mismatch=on_mismatch, loss=loss)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; ``planner.load`` reads it back."""
        from planner.output.plan_files import save

        save(self, path)

    def export(self, path: str | Path, format: str | None = None) -> None:
        """Write the plan in a format of ``planner.output.export.FORMATS``, by default the suffix's.

        Raises:
            BadSpec: an unknown format; the message lists the valid ones.
        """
        from planner.output.export import export

        export(self, path, format)

    def report(self, path: str | Path) -> None:
        """Write a self-contained HTML page: memory over time, and everything ``str`` says."""
        from planner.output.page import write_page

        write_page(self, path)

    def compare(
        self, methods: Sequence[str] | None = None, *, limits: Limits | None = None
    ) -> Comparison:
        """Run other methods on the same graph and budget; all that are registered by default."""
        from planner.analysis.compare import compare_graph

        return compare_graph(self.graph, self.budget_bytes, methods, limits=limits or Limits())

    def __str__(self) -> str:
        """Answer first, explain after; see ``planner.output.plan_text``."""
        from planner.output.plan_text import render

        return render(self)


def _saved_bytes(graph: Graph, schedule: Schedule) -> Counter[int]:
    """For each recomputed op, count the bytes it made again because they had not been held."""
    live, seen, saved = set(graph.resident), set[int](), Counter[int]()
    remade: dict[int, int] = {}  # value -> the op that made it again, until something reads it
    counted = set[int]()
    for step in schedule.steps:
        if step.action is Action.FREE:
            live.discard(step.index)
            remade.pop(step.index, None)
            continue
        op = graph.ops[step.index]
        for v in op.inputs:
            if v in remade and v not in counted:
                counted.add(v)
                saved[remade[v]] += graph.values[v].size_bytes
        if step.index in seen:
            remade |= {v: step.index for v in op.outputs if v not in live}
        seen.add(step.index)
        live.update(op.outputs)
    return saved
