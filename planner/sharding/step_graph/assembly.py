"""One op-level graph of a whole sharded step on one rank, communication included.

The root's ops run in their order with every unit's own in the place of its opaque ones; around each
unit lie the ops that gather its weight and reduce its gradient. Ops that take no time ("anchors")
read a buffer where torch lets go of it, so that a value lives as long as it really does. Only a
unit's own ops and its gather may run again: every schedule is one schedule a unit. Knows torch's
order of things; sizes and times are the rules'.
"""

from __future__ import annotations

from planner.graphs.capture.optimizer_step import OptimizerLike, OptimizerStep
from planner.graphs.hardware.cluster import Cluster
from planner.plan.configuration import Configuration
from planner.sharding.step_graph.backward_pass import backward
from planner.sharding.step_graph.builder import Draft
from planner.sharding.step_graph.forward_pass import forward
from planner.sharding.step_graph.optimizer_pass import add_optimizer
from planner.sharding.step_graph.resident import reside
from planner.sharding.step_graph.sharded_step import ShardedStep
from planner.sharding.wrapped.unit_captures import ModelCapture


def assemble(
    captures: ModelCapture,
    configuration: Configuration,
    cluster: Cluster,
    optimizer: OptimizerLike | None = "adamw",
) -> ShardedStep:
    """Assemble the step that every rank runs under a configuration.

    Seconds are those of the whole optimizer step: what each micro-step does counts
    ``accumulation`` times. Communication costs what compute beside it cannot hide: the gather of a
    unit hides behind the forward of the unit before it, a gather in backward and the reduction of
    a gradient behind the backward of the unit between. Recomputation hides nothing.
    """
    draft = Draft(captures, configuration, cluster)
    reside(draft)
    forward(draft)
    backward(draft)
    step = add_optimizer(draft, optimizer)
    return ShardedStep(
        graph=draft.graph(),
        configuration=configuration,
        cluster=cluster,
        units=captures.units,
        kind_of=captures.kind_of,
        kinds=tuple(kind.graph for kind in captures.kinds),
        layouts=tuple(draft.layouts),
        root_backward=draft.turn,
        host_bytes=_host_bytes(draft, step),
    )


def _host_bytes(draft: Draft, step: OptimizerStep) -> int:
    """Return what one rank keeps on its host: shards, gradients and state if offloaded."""
    if not draft.configuration.offload:
        return 0
    shards = sum(group.shard + group.gradient_shard for group in draft.groups.values())
    return shards + step.state_bytes + step.workspace_bytes
