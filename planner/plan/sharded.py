"""The plan for several ranks: what is decided, what one rank's step then costs, and why.

Knows the decisions, the whole step of one rank as a ``Plan`` of its own (communication included),
and the alternatives that were rejected. Knows nothing of how they were found or are carried out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.graphs import Graph, Kind, Phase
from planner.graphs.hardware.cluster import Cluster
from planner.plan.configuration import Configuration, Strategy, UnitPlan
from planner.plan.single import Plan
from planner.solvers import Status

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh
    from torch.optim import Optimizer


@dataclass(frozen=True)
class UnitKind:
    """The graph of a unit captured by itself, and what that capture is valid for."""

    graph: Graph
    signature: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Alternative:
    """What was not chosen: a configuration, or a fixed ``recipe`` of one.

    ``fits`` says that some schedule of it is known to fit; ``peak_bytes`` is that schedule's, or
    the least that is known, ``None`` if it was ruled out before its memory was looked at.
    ``planned`` says that ``seconds_per_sample`` is what it really takes; otherwise no schedule of
    it takes less (``inf``: none fits).
    """

    configuration: Configuration
    recipe: str
    fits: bool
    planned: bool
    peak_bytes: int | None
    seconds_per_sample: float
    reason: str


@dataclass(frozen=True)
class ShardedPlan:
    """One configuration, and a schedule for every unit, under a budget for each rank.

    ``step`` is one rank's whole optimizer step as it is executed; its bound holds for every
    schedule of every configuration that was allowed. ``kinds`` are the graphs of the units,
    ``host_bytes`` what offloading takes on the host of one node.

    Raises:
        ValueError: the cluster has another number of devices than the configuration, or a unit
            names a kind that is not there.
    """

    step: Plan
    configuration: Configuration
    cluster: Cluster
    units: tuple[UnitPlan, ...]
    kinds: tuple[UnitKind, ...]
    alternatives: tuple[Alternative, ...] = ()
    host_bytes: int = 0

    def __post_init__(self) -> None:
        if self.cluster.world_size != self.configuration.world_size:
            raise ValueError(
                f"the configuration is for {self.configuration.world_size} ranks, the cluster has "
                f"{self.cluster.world_size}"
            )
        if bad := [u.path for u in self.units if not 0 <= u.kind < len(self.kinds)]:
            raise ValueError(f"unit {bad[0]!r} names a kind that is not there")

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
    def gap(self) -> float:
        """How much faster a better plan could at most be, as a fraction of this one's time."""
        return max(0.0, 1 - self.step.bound_seconds / self.seconds) if self.seconds else 0.0

    @property
    def recomputed_seconds(self) -> float:
        """What running ops again costs in one optimizer step, gathering again included."""
        return sum(r.extra_seconds for r in self.step.recomputed)

    @property
    def kept(self) -> int:
        """How many units keep their gathered weight from forward to backward."""
        return sum(u.keep_gathered for u in self.units)

    @property
    def stage(self) -> str:
        """The stage of ZeRO: "0", "1", "2", "3", or "2/3" where units differ."""
        if self.configuration.strategy is not Strategy.FSDP:
            return {Strategy.DDP: "0", Strategy.ZERO1: "1"}[self.configuration.strategy]
        return "2" if self.kept == len(self.units) else "2/3" if self.kept else "3"

    @property
    def memory(self) -> dict[Phase, dict[Kind, int]]:
        """Bytes of every category at the step where each phase holds most, on one rank."""
        return self.step.memory

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; ``planner.load`` reads it back."""
        from planner.output.sharded_plan_files import save

        save(self, path)

    def apply(
        self, model: nn.Module, *, mesh: DeviceMesh | None = None, on_mismatch: str = "error"
    ) -> nn.Module:
        """Return the model wrapped as the plan says, on this rank.

        Raises:
            PlanMismatch: another model, another number of ranks, or no process group.
        """
        from planner.sharding.apply_sharded import apply

        return apply(self, model, mesh=mesh, on_mismatch=on_mismatch)

    def make_optimizer(
        self, model: nn.Module, optimizer: type[Optimizer] | None = None, **options: Any
    ) -> Optimizer:
        """Make an optimizer (AdamW unless another is given) for an applied model.

        Under ZeRO-1 it keeps this rank's part of the state only.
        """
        import torch

        from planner.sharding.apply_sharded import make_optimizer

        return make_optimizer(self.configuration, model, optimizer or torch.optim.AdamW, **options)

    def export(self, path: str | Path, format: str | None = None) -> tuple[str, ...]:
        """Write the plan for another program; return what that one cannot do.

        Args:
            path: where to.
            format: "fsdp2", "deepspeed", "accelerate", "html", "json" or "txt"; by default the
                path's suffix.

        Raises:
            BadSpec: an unknown format; the message lists the valid ones.
        """
        from planner.output.exporters.launchers import export

        return export(self, path, format)

    def report(self, path: str | Path) -> None:
        """Write a self-contained HTML page: one rank's memory over time, and what ``str`` says."""
        from planner.output.page import write_page

        write_page(self.step, path, str(self))

    def explain(self) -> str:
        """Say why: every alternative with its peak, its time and its reason."""
        from planner.output.sharded_plan_text import explain

        return explain(self)

    def __str__(self) -> str:
        """Answer first, explain after."""
        from planner.output.sharded_plan_text import render

        return render(self)
