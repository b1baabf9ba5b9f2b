"""A plan as a value: a schedule for one training step, and everything that can be read from it.

Knows the graph, the schedule, the budget and what was proved; reads cost and memory from
``graphs.simulate`` alone. What a person does with a plan (apply, save) is in ``planner.plans``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, assert_never

from planner.byte_sizes import format_bytes, format_percent
from planner.graphs import (
    EXACT,
    MEMORY_MODELS,
    Clock,
    Copy,
    Graph,
    Kind,
    Phase,
    Schedule,
    Subject,
    Trace,
    phase_peaks,
    plain_schedule,
    simulate,
)
from planner.graphs.allocation import ALIKE, CHANGING, Needs, needs, runs_within
from planner.graphs.binding import Binding, binding
from planner.graphs.hardware.allocators import EXPANDABLE
from planner.graphs.hardware.columns import Device
from planner.graphs.hardware.devices import device
from planner.graphs.hardware.host_tier import HostTier
from planner.plan.stage import Stage
from planner.plan.states import StatesOnHost
from planner.solvers import Status


@dataclass(frozen=True, slots=True)
class Recomputed:
    """An op that runs more than once, what that costs, and the bytes it saves holding."""

    index: int
    extra_runs: int
    extra_seconds: float
    saved_bytes: int


@dataclass(frozen=True, repr=False)
class StepPlan:
    """A schedule for a captured training step under a budget.

    ``bound_seconds`` is proved: no schedule of this graph whose first computations keep its order
    fits the budget in less; nor, if the plan is ``reordered``, any in another order. ``signature``
    says what the plan is for; ``engine`` carries the schedule out, ``rewrite`` is the variant of
    the captured step that the graph is of, ``memory_model`` judged the bytes; with an ``allocator``
    ("segments", "expandable segments") the budget is kept for what that needs. ``host`` is where
    values may move to, ``states`` what of the optimizer's waits there. ``held_bytes`` is the peak
    where a compiler's code holds less than the schedule's values add up to. ``hardware`` has the
    figures of the device, ``loss`` is the callable given to ``fit``, which no file can hold; like
    ``message``, ``remarks`` and the seconds spent they do not count for equality.

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
    engine: str = "op_by_op"
    rewrite: str = "as_captured"
    memory_model: str = EXACT.name
    allocator: str | None = None
    host: HostTier | None = None
    states: StatesOnHost | None = None
    held_bytes: int | None = None
    message: str = field(default="", compare=False)
    hardware: Device | None = field(default=None, compare=False, repr=False)
    loss: Callable[..., Any] | None = field(default=None, compare=False, repr=False)
    remarks: tuple[str, ...] = field(default=(), compare=False)
    eager_peak_bytes: int | None = field(default=None, compare=False)
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

    def __eq__(self, other: object) -> bool:
        """Compare what counts, whether the plan has its verbs or not."""
        if not isinstance(other, StepPlan):
            return NotImplemented
        names = [f.name for f in fields(StepPlan) if f.compare]
        return all(getattr(self, n) == getattr(other, n) for n in names)

    def __hash__(self) -> int:
        return hash((self.graph, self.schedule, self.budget_bytes))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.signature.get('model', 'a step')}: "
            f"{'fits' if self.fits else 'DOES NOT FIT'}, peak {format_bytes(self.peak_bytes)} of "
            f"{format_bytes(self.budget_bytes)}, time +{format_percent(self.overhead)}, "
            f"gap {format_percent(self.gap)})"
        )

    def with_remark(self, remark: str) -> StepPlan:
        """Return the plan with one more sentence among its notes."""
        return replace(self, remarks=(*self.remarks, remark))

    @cached_property
    def trace(self) -> Trace:
        """What the schedule costs and holds, step by step."""
        return self._simulated(self.schedule)

    @cached_property
    def plain(self) -> Schedule:
        """The schedule of plain training: every op once, freed after its last use."""
        return plain_schedule(self.graph)

    @cached_property
    def plain_trace(self) -> Trace:
        """What plain training costs and holds, step by step."""
        return self._simulated(self.plain)

    def _simulated(self, schedule: Schedule) -> Trace:
        memory = MEMORY_MODELS[self.memory_model]
        rates: dict[Clock, float] = {}
        if schedule.moves:
            link = (self.hardware or device(self.device)).host_link
            rates = {Clock.TO_HOST: link, Clock.FROM_HOST: link} if link else {}
        rates = rates if self.host is None else self.host.rates
        return simulate(self.graph, schedule, memory=memory, link_bytes_per_second=rates)

    @property
    def peak_bytes(self) -> int:
        """The most the plan holds at any step."""
        return self.trace.peak_bytes if self.held_bytes is None else self.held_bytes

    @property
    def plain_peak_bytes(self) -> int:
        """The most the step holds when every op runs once; see ``eager_peak_bytes``, too."""
        return self.plain_trace.peak_bytes if self.states is None else self.states.kept_peak_bytes

    @property
    def seconds(self) -> float:
        """Time of a step, recomputations included."""
        return self.trace.seconds

    @property
    def plain_seconds(self) -> float:
        """Time of a step of plain training."""
        return self.plain_trace.seconds if self.states is None else self.states.kept_seconds

    @property
    def overhead(self) -> float:
        """Extra time as a fraction of the plain step."""
        return self._over_plain(self.seconds - self.plain_seconds)

    @property
    def bound_overhead(self) -> float:
        """The extra time that is proved necessary, as a fraction of the plain step."""
        return self._over_plain(max(0.0, self.bound_seconds - self.plain_seconds))

    @property
    def gap(self) -> float:
        """How much faster a better plan could at most be, as a fraction of the plain step."""
        return self._over_plain(max(0.0, self.seconds - self.bound_seconds))

    def _over_plain(self, seconds: float) -> float:
        return seconds / self.plain_seconds if self.plain_seconds else 0.0

    @cached_property
    def fits(self) -> bool:
        """Whether the peak is within the budget, and the step runs in it through its allocator."""
        return self.peak_bytes <= self.budget_bytes and (
            self.allocator is None
            or runs_within(
                self.graph,
                self.schedule,
                self.budget_bytes,
                expandable=self.allocator == EXPANDABLE,
            )
        )

    @cached_property
    def needs(self) -> Needs | None:
        """What the device needs through its allocator, ``None`` where tensors' bytes are all."""
        if self.allocator is None:
            return None
        found = self.needs_with(expandable=self.allocator == EXPANDABLE)
        least = min(found.needed_bytes, self.budget_bytes) if self.fits else found.needed_bytes
        return replace(found, needed_bytes=least)  # which is found to 0.2%

    @cached_property
    def needed_bytes_at_sizes(self) -> int | None:
        """What the device needs if smaller calls come in an unlucky order, ``None`` if none may."""
        if self.allocator is None or not self.signature.get("dynamic"):
            return None
        expandable, orders = self.allocator == EXPANDABLE, (ALIKE, *CHANGING)
        return needs(self.graph, self.schedule, expandable=expandable, orders=orders).needed_bytes

    def needs_with(self, *, expandable: bool) -> Needs:
        """Return what the device would need with or without expandable segments."""
        return needs(self.graph, self.schedule, expandable=expandable)

    @property
    def reordered(self) -> bool:
        """Whether ops first run in another order than the model's."""
        return self.schedule.is_reordered

    @property
    def stage(self) -> Stage:
        """The ZeRO stage: 0, every rank holds everything."""
        return Stage(0, 0)

    @property
    def capacity_factor(self) -> float | None:
        """How many times the even share of rows a rank's experts may receive in a step.

        ``None`` where no tokens are sent to experts of other ranks. More raise in the step.
        """
        return self.signature.get("capacity_factor")

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


def _saved_bytes(graph: Graph, schedule: Schedule) -> Counter[int]:
    """For each recomputed op, count the bytes it made again because they had not been held."""
    live, seen, saved = set(graph.resident), set[int](), Counter[int]()
    remade: dict[int, int] = {}  # value -> the op that made it again, until something reads it
    counted = set[int]()
    for step in schedule.steps:
        match step.action.subject:
            case Subject.VALUE:
                if step.action.device is Copy.DROPPED:
                    live.discard(step.index)
                    remade.pop(step.index, None)
                elif step.action.device is Copy.TAKEN:
                    live.add(step.index)
                continue
            case Subject.OP:
                op = graph.ops[step.index]
            case _:
                assert_never(step.action.subject)
        for v in op.inputs:
            if v in remade and v not in counted:
                counted.add(v)
                saved[remade[v]] += graph.values[v].size_bytes
        if step.index in seen:
            remade |= {v: step.index for v in op.outputs if v not in live}
        seen.add(step.index)
        live.update(op.outputs)
    return saved
