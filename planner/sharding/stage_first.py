"""The usual order, for comparison: first a ZeRO stage by its model states, then checkpointing.

Knows the rule that guides recommend: take the lowest stage whose states fit, since it communicates
least; then make the activations fit. Its second half is as good as can be (every micro-batch, and
the op-level solver), so that whatever a joint plan wins it wins by choosing together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.graphs import Graph, Kind, Phase
from planner.plan.configuration import Configuration, Strategy
from planner.sharding.pricing import (
    CanRealize,
    Planned,
    keeping_gathered,
    plan_step,
)
from planner.sharding.search import Space
from planner.sharding.step_graph.sharded_step import Realized
from planner.solvers import Limits

_STAGES = (
    (0, Strategy.DDP, False),
    (1, Strategy.ZERO1, False),
    (2, Strategy.FSDP, False),
    (3, Strategy.FSDP, False),
    (2, Strategy.FSDP, True),
    (3, Strategy.FSDP, True),
)


@dataclass(frozen=True)
class StageFirst:
    """What the usual order ends with; ``stage`` and ``planned`` are ``None`` where nothing fits."""

    stage: int | None
    offload: bool
    state_bytes: int
    planned: Planned | None


def stage_first(space: Space, budget_bytes: int, *, limits: Limits | None = None) -> StageFirst:
    """Choose the lowest stage whose states fit, sharded over all ranks, and then the rest."""
    limits = limits or Limits()
    least = 0
    for stage, strategy, offload in _STAGES:
        among = [
            c
            for c in space.configurations
            if (c.strategy, c.offload) == (strategy, offload)
            and (strategy is Strategy.DDP or c.replicas == 1)
        ]
        small = [c for c in among if c.micro_batch == 1]
        if not small:
            continue
        least = min(state_bytes(space.open(c).graph, stage) for c in small)
        if least <= budget_bytes:
            plans = (_checkpointed(space, c, stage, budget_bytes, limits) for c in among)
            fitting = [planned for planned in plans if planned is not None]
            best = min(fitting, key=lambda planned: planned.seconds, default=None)
            return StageFirst(stage, offload, least, best)
    return StageFirst(stage=None, offload=True, state_bytes=least, planned=None)


def _checkpointed(
    space: Space, configuration: Configuration, stage: int, budget_bytes: int, limits: Limits
) -> Planned | None:
    """Make the activations fit at a stage, with as little recomputation as there is.

    At stage 3 the solver may even keep some weights gathered, which is more than the order has.
    """
    step: CanRealize = space.open(configuration)
    if stage == 2:
        step = _Kept(step, keeping_gathered(step.graph))
    return plan_step(configuration, step, budget_bytes, limits=limits)


@dataclass(frozen=True)
class _Kept:
    """A step whose weights stay gathered."""

    step: CanRealize
    graph: Graph

    @property
    def host_bytes(self) -> int:
        return self.step.host_bytes

    def realize(self, order: Sequence[int]) -> Realized:
        return self.step.realize(order)


def state_bytes(graph: Graph, stage: int) -> int:
    """Return what the model's states hold at a stage: what is chosen by where stage comes first.

    Residents, gradients where the optimizer reads them, and at stage 2 the gathered weights.
    """
    step = [op for op in graph.ops if op.phase is Phase.OPTIMIZER]
    read = {v for op in step for v in op.inputs if v not in graph.resident}
    held = graph.resident_bytes + sum(graph.values[v].size_bytes for v in read)
    if stage == 2:
        late = {v for op in graph.ops if op.phase is Phase.BACKWARD for v in op.inputs}
        weights = (graph.values[v] for v in late if graph.values[v].kind is Kind.GATHERED)
        held += sum(weight.size_bytes for weight in weights)
    return held
