"""The usual order, for comparison: first a ZeRO stage by its model states, then checkpointing.

Guides recommend: take the lowest stage whose states fit, since it communicates
least; then make the activations fit. Its second half is as good as can be (every micro-batch, and
the op-level solver), so that whatever a joint plan wins it wins by choosing together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.graphs import Graph, Kind, Phase
from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy, UnitStage
from planner.sharding.pricing import (
    CanRealize,
    Planned,
    keeping_gathered,
    plan_step,
)
from planner.sharding.space import Space
from planner.sharding.step_graph.sharded_step import Realized
from planner.solvers import Limits


@dataclass(frozen=True)
class StageFirst:
    """What the usual order ends with; ``stage`` and ``planned`` are ``None`` where nothing fits."""

    stage: int | None
    offload: bool
    state_bytes: int
    planned: Planned | None


def stage_first(space: Space, budget_bytes: int, *, limits: Limits | None = None) -> StageFirst:
    """Choose the lowest stage whose states fit, sharded over all ranks, and then the rest.

    Args:
        space: what there is to choose from.
        budget_bytes: of each rank.
        limits: of each solve.
    """
    limits = limits or Limits()
    least = 0
    for offload, stage, among in _stages(space.configurations):
        kept = stage is among[0].strategy.stages[0]
        small = [c for c in among if c.micro_batch == 1]
        least = min(state_bytes(space.open(c).graph, keep_gathered=kept) for c in small)
        if least <= budget_bytes:
            plans = (
                _checkpointed(space, c, budget_bytes, limits, keep_gathered=kept) for c in among
            )
            fitting = [planned for planned in plans if planned is not None]
            best = min(fitting, key=lambda planned: planned.seconds, default=None)
            return StageFirst(stage.number, offload, least, best)
    return StageFirst(stage=None, offload=True, state_bytes=least, planned=None)


def _stages(
    configurations: Sequence[Configuration],
) -> list[tuple[bool, UnitStage, list[Configuration]]]:
    """Return offload, stage and what shards most, the lowest stage first, offloaded ones last."""
    ways: dict[tuple[bool, Strategy], list[Configuration]] = {}
    for c in configurations:
        ways.setdefault((c.offload, c.strategy), []).append(c)
    found = [
        (offload, stage, [c for c in among if c.shard_ranks == max(c.shard_ranks for c in among)])
        for (offload, strategy), among in ways.items()
        for stage in strategy.stages
    ]
    return sorted(found, key=lambda way: (way[0], way[1].number))


def _checkpointed(
    space: Space,
    configuration: Configuration,
    budget_bytes: int,
    limits: Limits,
    *,
    keep_gathered: bool,
) -> Planned | None:
    """Make the activations fit at a stage, with as little recomputation as there is.

    Where weights are gathered again the solver may even keep some, which is more than the order
    has.
    """
    step: CanRealize = space.open(configuration)
    if step.host_bytes > space.host_bytes:
        return None
    if keep_gathered:
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

    def floor_bytes(self) -> int:
        return self.step.floor_bytes()

    @property
    def padding_bytes(self) -> int:
        return self.step.padding_bytes

    def realize(self, order: Sequence[int]) -> Realized:
        return self.step.realize(order)


def state_bytes(graph: Graph, *, keep_gathered: bool) -> int:
    """Return what the model's states hold: what is chosen by where the stage comes first.

    Residents, gradients where the optimizer reads them, and the gathered weights if they are kept.
    """
    step = [op for op in graph.ops if op.phase is Phase.OPTIMIZER]
    read = {v for op in step for v in op.inputs if v not in graph.resident}
    held = graph.resident_bytes + sum(graph.values[v].size_bytes for v in read)
    if keep_gathered:
        late = {v for op in graph.ops if op.phase is Phase.BACKWARD for v in op.inputs}
        weights = (graph.values[v] for v in late if graph.values[v].kind is Kind.GATHERED)
        held += sum(weight.size_bytes for weight in weights)
    return held
