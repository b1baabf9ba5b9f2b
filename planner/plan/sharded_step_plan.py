"""A plan for several ranks as a value: what is decided, what one rank's step costs, and why.

Knows the decisions, the whole step of one rank as a ``StepPlan`` (communication included), and the
alternatives that were rejected. What a person does with it is in ``planner.plans``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.byte_sizes import format_bytes, format_percent
from planner.graphs import Graph, Kind, Phase, Schedule
from planner.graphs.binding import Binding
from planner.graphs.hardware.cluster import Cluster
from planner.plan.configuration import Configuration, UnitPlan
from planner.plan.stage import Stage
from planner.plan.step_plan import Recomputed, StepPlan
from planner.plan.tensor_parallelism import TensorParallelism
from planner.solvers import Status

_SETTLED = 0.99
"""How near a bound has to be to a time for the two to be taken for the same."""


@dataclass(frozen=True)
class UnitKind:
    """The graph of a unit, or of the root, by itself, and what that capture is valid for."""

    graph: Graph
    signature: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Alternative:
    """What was not chosen: a configuration, or a fixed ``recipe`` of one.

    ``fits`` says that some schedule of it is known to fit; ``peak_bytes`` is that schedule's, or
    the least that is known, ``None`` if it was ruled out before its memory was looked at.
    ``planned`` says that ``seconds_per_sample`` is what that schedule takes, and none takes less
    than ``bound_seconds_per_sample`` (``None`` in files of before 0.3); otherwise no schedule takes
    less than ``seconds_per_sample`` (``inf``: none fits).
    """

    configuration: Configuration
    recipe: str
    fits: bool
    planned: bool
    peak_bytes: int | None
    seconds_per_sample: float
    reason: str
    bound_seconds_per_sample: float | None = None

    @property
    def is_settled(self) -> bool:
        """Whether nothing says that a better plan of this configuration could be faster."""
        bound = self.bound_seconds_per_sample
        return bound is None or bound >= self.seconds_per_sample * _SETTLED


@dataclass(frozen=True, repr=False)
class ShardedStepPlan:
    """One configuration, and a schedule for every unit, under a budget for each rank.

    ``step`` is one rank's whole optimizer step as it is executed; its bound holds for every
    schedule of every configuration that was allowed. ``kinds`` are the graphs of the units,
    ``host_bytes`` what offloading takes on the host of one node. ``margin_bytes`` of the budget are
    kept free beside the tensors, ``nccl_bytes`` of them for NCCL, the others for the allocator.
    ``tensor`` says how layers are parted over ranks, ``None`` where that was not looked at.
    ``root`` is the program that calls the units, ``None`` where torch runs what is around them.

    Raises:
        ValueError: the cluster has another number of devices than the configuration, or a unit
            names a kind that is not there.
    """

    step: StepPlan
    configuration: Configuration
    cluster: Cluster
    units: tuple[UnitPlan, ...]
    kinds: tuple[UnitKind, ...]
    alternatives: tuple[Alternative, ...] = ()
    host_bytes: int = 0
    margin_bytes: int = 0
    nccl_bytes: int = 0
    tensor: TensorParallelism | None = None
    root: UnitKind | None = None

    def __post_init__(self) -> None:
        if self.cluster.world_size != self.configuration.world_size:
            raise ValueError(
                f"the configuration is for {self.configuration.world_size} ranks, the cluster has "
                f"{self.cluster.world_size}"
            )
        if bad := [u.path for u in self.units if not 0 <= u.kind < len(self.kinds)]:
            raise ValueError(f"unit {bad[0]!r} names a kind that is not there")

    def part(self, kind: UnitKind, schedule: Schedule, held_bytes: int | None = None) -> StepPlan:
        """Return a schedule of a unit, or of the root, as a plan of its own, good for running it.

        Args:
            kind: whose step it is.
            schedule: of its graph.
            held_bytes: what it may hold; the whole budget if that is not known.
        """
        return StepPlan(
            graph=kind.graph,
            schedule=schedule,
            budget_bytes=self.budget_bytes if held_bytes is None else held_bytes,
            status=Status.FEASIBLE,
            bound_seconds=0.0,
            method=self.step.method,
            signature=kind.signature,
            device=self.step.device,
            costs=self.step.costs,
            engine=self.step.engine,
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.step.signature.get('model', 'a step')} on "
            f"{self.cluster}: {'fits' if self.fits else 'DOES NOT FIT'}, {self.configuration}, "
            f"stage {self.stage}, peak {format_bytes(self.peak_bytes)} of "
            f"{format_bytes(self.budget_bytes)} a rank, gap {format_percent(self.gap)})"
        )

    @property
    def budget_bytes(self) -> int:
        """What each device may hold."""
        return self.step.budget_bytes

    @property
    def peak_bytes(self) -> int:
        """The most one rank holds at any moment."""
        return self.step.peak_bytes

    @property
    def reserve_bytes(self) -> int:
        """The part of the peak that is set aside for the device and for late releases."""
        values = self.step.graph.values
        return sum(v.size_bytes for v in values if v.kind is Kind.RESERVE)

    @property
    def fits(self) -> bool:
        """Whether the peak is within the budget."""
        return self.step.fits

    @property
    def status(self) -> Status:
        """How the search ended."""
        return self.step.status

    @property
    def seconds(self) -> float:
        """Time of one optimizer step: all its micro-steps, and what communication costs."""
        return self.step.seconds

    @property
    def seconds_per_sample(self) -> float:
        """Time of one optimizer step for each sample of the global batch."""
        return self.step.seconds / self.configuration.global_batch

    @property
    def bound_seconds_per_sample(self) -> float:
        """What is proved: no allowed configuration takes less, whatever it recomputes."""
        return self.step.bound_seconds / self.configuration.global_batch

    @property
    def plain_peak_bytes(self) -> int:
        """The most one rank holds with the same configuration if nothing runs again."""
        return self.step.plain_peak_bytes

    @property
    def plain_seconds(self) -> float:
        """Time of one optimizer step with the same configuration if nothing runs again."""
        return self.step.plain_seconds

    @property
    def overhead(self) -> float:
        """Extra time as a fraction of the plain step."""
        return self.step.overhead

    @property
    def bound_seconds(self) -> float:
        """What is proved: no optimizer step of an allowed configuration takes less."""
        return self.step.bound_seconds

    @property
    def bound_overhead(self) -> float:
        """The extra time that is proved necessary, as a fraction of the plain step."""
        return self.step.bound_overhead

    @property
    def binding(self) -> Binding:
        """The op at the peak of one rank and what holds most there."""
        return self.step.binding

    @property
    def recomputed(self) -> tuple[Recomputed, ...]:
        """The ops of one rank's step that run more than once, in graph order."""
        return self.step.recomputed

    @property
    def gap(self) -> float:
        """How much faster a better plan could at most be, as a fraction of the plain step."""
        return self.step.gap

    @property
    def recomputed_seconds(self) -> float:
        """What running ops again costs in one optimizer step, gathering again included."""
        return sum(r.extra_seconds for r in self.step.recomputed)

    @property
    def kept(self) -> int:
        """How many units keep their gathered weight from forward to backward."""
        return sum(u.keep_gathered for u in self.units)

    @property
    def stage(self) -> Stage:
        """The stage of ZeRO, from the least to the most that a unit is in."""
        strategy = self.configuration.strategy
        gathered = [u for u in self.units if not u.row_wise]
        stages = [strategy.stage(keep_gathered=u.keep_gathered).number for u in gathered]
        most = strategy.stages[-1].number
        return Stage(min(stages, default=most), max(stages, default=most))

    @property
    def memory(self) -> dict[Phase, dict[Kind, int]]:
        """Bytes of every category at the step where each phase holds most, on one rank."""
        return self.step.memory
