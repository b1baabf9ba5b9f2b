"""What to train, as the user gave it, and the steps that can be assembled from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from planner.graphs import Phase
from planner.graphs.hardware.cluster import Cluster
from planner.plan.configuration import Configuration
from planner.request import Request
from planner.sharding.samples import samples_in, with_samples
from planner.sharding.search import Space
from planner.sharding.step_graph.assembly import assemble
from planner.sharding.step_graph.sharded_step import ShardedStep
from planner.sharding.wrapped.unit_captures import ModelCapture, capture_units


@dataclass(frozen=True)
class Captures:
    """What to train, as a person said it; captures and assembles what is asked for."""

    request: Request

    @cached_property
    def captured(self) -> Callable[[Configuration], ModelCapture]:
        """Capture the units that a configuration runs, each distinct ones once."""
        request = self.request
        samples = samples_in(request.inputs)

        @cache
        def capture(precision: str, micro_batch: int) -> ModelCapture:
            request.tell(f"capturing {micro_batch} samples in {precision}")
            inputs, targets = with_samples((request.inputs, request.targets), samples, micro_batch)
            return capture_units(
                request.model,
                inputs,
                loss=request.loss,
                targets=targets,
                device=request.hardware,
                costs=request.costs,
                dynamic=request.dynamic,
                precision=precision,
            )

        def of(c: Configuration) -> ModelCapture:
            return capture(c.computes_in, c.micro_batch)

        return of

    def step(self, c: Configuration, cluster: Cluster) -> ShardedStep:
        """Assemble one rank's step."""
        return assemble(self.captured(c), c, cluster, self.request.optimizer)

    def space(self, cluster: Cluster, among: Sequence[Configuration]) -> Space:
        """Return the search space of these configurations on a cluster."""
        return Space(
            tuple(among),
            lambda c: c.accumulation * compute_seconds(self.captured(c)),
            lambda c: self.step(c, cluster),
        )


def compute_seconds(captures: ModelCapture) -> float:
    """Return the time of forward and backward of one micro-step, nothing run again."""
    stubs = {op for call in captures.root.calls for op in (call.forward, call.backward)}
    ops = [op for i, op in enumerate(captures.root.graph.ops) if i not in stubs]
    units = [captures.kinds[kind] for kind in captures.kind_of]  # but a table need not be whole
    ops += [op for unit in units if not unit.table for op in unit.graph.ops]
    return sum(op.seconds for op in ops if op.phase in (Phase.FORWARD, Phase.BACKWARD))
