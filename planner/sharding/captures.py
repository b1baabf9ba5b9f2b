"""What to train, as the user gave it, and the steps that can be assembled from it.

Knows which regions a configuration runs and captures each distinct one once. Searches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from planner.graphs import Phase
from planner.graphs.hardware.cluster import Cluster
from planner.graphs.hardware.devices import DeviceSpec
from planner.plan.configuration import Configuration, Strategy
from planner.progress import Progress, silent
from planner.sharding.pricing import ShardedStep
from planner.sharding.samples import samples_in, with_samples
from planner.sharding.search import Space
from planner.sharding.step_graph.assembly import assemble
from planner.sharding.wrapped.unit_captures import Regions, capture_regions

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Workshop:
    """What to train, as ``planner.fit`` was given it; captures and assembles what is asked for."""

    model: nn.Module
    inputs: Any
    loss: Callable[..., Any] | None = None
    targets: Any = None
    optimizer: Any = "adamw"
    device: DeviceSpec = "cpu"
    costs: str = "roofline"
    tell: Progress = silent

    @cached_property
    def regions(self) -> Callable[[Configuration], Regions]:
        """Capture the regions that a configuration runs, each distinct ones once."""
        samples = samples_in(self.inputs)

        @cache
        def captured(precision: str, micro_batch: int) -> Regions:
            self.tell(f"capturing {micro_batch} samples in {precision}")
            inputs, targets = with_samples((self.inputs, self.targets), samples, micro_batch)
            return capture_regions(
                self.model,
                inputs,
                loss=self.loss,
                targets=targets,
                device=self.device,
                costs=self.costs,
                precision=precision,
            )

        def of(c: Configuration) -> Regions:
            cast = c.precision == "bfloat16" and c.strategy is not Strategy.FSDP
            return captured("autocast" if cast else c.precision, c.micro_batch)

        return of

    def step(self, c: Configuration, cluster: Cluster) -> ShardedStep:
        """Assemble one rank's step."""
        return assemble(self.regions(c), c, cluster, self.optimizer)

    def space(self, cluster: Cluster, among: Sequence[Configuration]) -> Space:
        """Return the search space of these configurations on a cluster."""
        return Space(
            tuple(among),
            lambda c: c.accumulation * compute_seconds(self.regions(c)),
            lambda c: self.step(c, cluster),
        )


def compute_seconds(regions: Regions) -> float:
    """Return the time of forward and backward of one micro-step, nothing run again."""
    stubs = {op for call in regions.root.calls for op in (call.forward, call.backward)}
    ops = [op for i, op in enumerate(regions.root.graph.ops) if i not in stubs]
    ops += [op for kind in regions.kind_of for op in regions.kinds[kind].graph.ops]
    return sum(op.seconds for op in ops if op.phase in (Phase.FORWARD, Phase.BACKWARD))
