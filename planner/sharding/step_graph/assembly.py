"""One op-level graph of a whole sharded step on one rank, communication included.

The root's ops run in their order with every unit's own in the place of its opaque ones; around each
unit lie the ops that gather its weight and reduce its gradient. Ops that take no time ("anchors")
read a buffer where torch lets go of it, so that a value lives as long as it really does. Only a
unit's own ops and its gather may run again: every schedule is one schedule a unit. This is torch's
order of things; what is gathered and reduced is the strategy's.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from planner.graphs.capture.optimizer_step import OptimizerLike, OptimizerStep
from planner.graphs.hardware.cluster import Cluster
from planner.plan.configuration import Configuration
from planner.sharding.step_graph.backward_pass import backward
from planner.sharding.step_graph.builder import Draft
from planner.sharding.step_graph.forward_pass import forward
from planner.sharding.step_graph.movable import MovableStates, movable_states
from planner.sharding.step_graph.optimizer_pass import add_optimizer
from planner.sharding.step_graph.parameter_groups import GroupSeconds, group_of
from planner.sharding.step_graph.resident import reside
from planner.sharding.step_graph.sharded_step import ShardedStep
from planner.sharding.step_graph.step_rules import StepRules
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

    Args:
        captures: the root and the units, in the precision of the configuration.
        configuration: how the step is spread.
        cluster: on what it runs.
        optimizer: a name or a class; none leaves its state and step out.
    """
    return _assembled(captures, configuration, cluster, optimizer)[0]


def what_may_wait(
    captures: ModelCapture,
    configuration: Configuration,
    cluster: Cluster,
    optimizer: OptimizerLike | None = "adamw",
) -> MovableStates | None:
    """Assemble a step and return what of its states may be on the host, each by itself.

    Args:
        captures, configuration, cluster, optimizer: as for ``assemble``, on the device so far.
    """
    step, draft = _assembled(captures, configuration, cluster, optimizer)
    rules = configuration.strategy.part(StepRules)
    return movable_states(step, draft, rules, optimizer)


def _assembled(
    captures: ModelCapture,
    configuration: Configuration,
    cluster: Cluster,
    optimizer: OptimizerLike | None,
) -> tuple[ShardedStep, Draft]:
    draft = Draft(captures, configuration, cluster)
    rules = configuration.strategy.part(StepRules)
    _groups(draft, rules)
    reside(draft, rules)
    forward(draft, rules)
    backward(draft, rules)
    on_host = add_optimizer(draft, rules, optimizer)
    step = ShardedStep(
        graph=draft.graph(),
        configuration=configuration,
        cluster=cluster,
        units=captures.units,
        kind_of=captures.kind_of,
        kinds=tuple(kind.graph for kind in captures.kinds),
        layouts=tuple(draft.layouts),
        root_backward=draft.turn,
        host_bytes=_host_bytes(draft, on_host),
        row_wise=frozenset(draft.row_wise),
        padding_bytes=_padding_bytes(draft, rules),
    )
    return step, draft


def _groups(draft: Draft, rules: StepRules) -> None:
    spread, grain = draft.configuration.spread, draft.cluster.device.granularity_bytes
    ranks = rules.parameter_ranks(spread)
    for i, capture in draft.captures_by_index():
        group = group_of(capture.parameters, ranks, grain, elsewhere=draft.elsewhere(i))
        draft.groups[i] = group
        lies = replace(spread, offload=draft.on_host(i))
        draft.seconds[i] = rules.group_seconds(group, lies, draft.cluster)
    for i, capture in draft.captures_by_index():
        exchange = rules.row_wise_seconds(draft, i) if capture.table else None
        if exchange is not None:
            draft.row_wise[i], draft.seconds[i] = exchange, GroupSeconds(0.0, 0.0)
            draft.compute[i] = exchange


def _padding_bytes(draft: Draft, rules: StepRules) -> int:
    """Return what all buffers together hold more than they would if the ranks divided everything.

    Copies that are made of parameters parted otherwise than in rows are among it.
    """
    if rules.parameter_ranks(draft.configuration.spread) == 1:
        return 0
    grain, added = draft.cluster.device.granularity_bytes, 0
    whole = functools.cache(lambda parameters: group_of(parameters, 1, grain))
    for i, capture in draft.captures_by_index():
        group, least = draft.groups[i], whole(capture.parameters)
        buffers = group.flat + group.gathered + group.reduced + group.padded + group.rearranged
        added += max(0, buffers - least.flat - least.gathered - least.reduced)
    return added


def _host_bytes(draft: Draft, step: OptimizerStep) -> int:
    """Return what one rank keeps on its host: shards, gradients and state of what is there."""
    groups = [group for i, group in draft.groups.items() if draft.on_host(i)]
    shards = sum(group.shard + group.gradient_shard for group in groups)
    return shards + step.state_bytes + step.workspace_bytes
