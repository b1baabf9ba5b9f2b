"""DDP: parameters, gradients and optimizer state are whole on every rank; gradients are reduced.

Sources: ``reducer.cpp`` of torch 2.13 (buckets, one view of them a gradient).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from planner.graphs import Kind
from planner.graphs.hardware.cluster import Cluster
from planner.graphs.hardware.collectives import all_reduce_seconds
from planner.output.exporters.launch import Launch
from planner.plan.configuration import Configuration, UnitPlan
from planner.plan.strategy import Spread, Strategy, UnitStage, register_strategy
from planner.sharding.step_graph.builder import ROOT, Draft
from planner.sharding.step_graph.parameter_groups import GroupSeconds, ParameterGroup
from planner.sharding.step_graph.step_rules import StepRules
from planner.sharding.wrapping import Wrapping, optimizer_of_all

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

WEIGHT = "whole on every rank"


def _spreads(world_size: int, devices_per_node: int) -> Iterator[Spread]:
    yield Spread(1, world_size)


def _check(spread: Spread) -> None:
    if not spread.is_whole:
        raise ValueError("DDP shards nothing: shard_ranks must be 1, replicas the world size")
    if spread.offload:
        raise ValueError("DDP stays on the device: only FSDP offloads its shards to the host")


def _mesh(spread: Spread) -> tuple[tuple[str, int], ...]:
    return (("replicate", spread.world_size),)


def _seconds(group: ParameterGroup, spread: Spread, cluster: Cluster) -> GroupSeconds:
    return GroupSeconds(0.0, all_reduce_seconds(group.reduced, spread.world_size, cluster))


def _reside(draft: Draft, i: int) -> None:
    size = draft.groups[i].shard
    draft.weights[i] = draft.value(f"parameters.{draft.name(i)}", size, Kind.PARAMETER)


def _hold(draft: Draft) -> None:
    """Add the buckets, and what micro-steps leave to the later ones.

    Gradients become views of the buckets in the last one: those of the others are gone before the
    optimizer's step.
    """
    size = sum(group.reduced for group in draft.groups.values())
    if draft.configuration.accumulation > 1:
        draft.reduced.append(draft.value("accumulated gradients", size, Kind.GRADIENT))
        draft.op("micro_steps", (), draft.reduced)
    draft.value("gradient buckets", size, Kind.GRADIENT)


def _gather(draft: Draft, i: int, before: int | None) -> tuple[int, ...]:
    return ()


def _reduce(draft: Draft, i: int, gradients: Sequence[int]) -> None:
    """Reduce in the last micro-step, behind the backward of the unit before.

    The root's gradients go into the buckets one by one, a unit's when its node ends.
    """
    behind = draft.backward_seconds(i - 1) if i != ROOT else 0.0
    exposed = max(0.0, draft.seconds[i].reduce - behind) / draft.configuration.accumulation
    reads = gradients if i != ROOT else ()
    draft.op(f"all_reduce.{draft.name(i)}", reads, seconds=exposed, module=draft.module(i))


def _wrap(
    model: nn.Module, configuration: Configuration, units: Sequence[UnitPlan], mesh: DeviceMesh
) -> nn.Module:
    from torch.nn.parallel import DistributedDataParallel

    group = mesh.get_group()
    return DistributedDataParallel(model, process_group=group, gradient_as_bucket_view=True)


def _unreduced(model: Any) -> AbstractContextManager[None]:
    context: AbstractContextManager[None] = model.no_sync()
    return context


STEP = StepRules(
    parameter_ranks=lambda spread: 1,
    group_seconds=_seconds,
    optimizer_part=lambda parameters, spread: parameters,
    after_update_seconds=lambda parameter_bytes, spread, cluster: 0.0,
    reside=_reside,
    hold=_hold,
    gather=_gather,
    reduce=_reduce,
    least_states=lambda states, c: states.parameters + states.gradients + states.optimizer,
    copies_gradients=True,
)

WRAPPING = Wrapping(_wrap, optimizer_of_all, _unreduced)

DDP = register_strategy(
    Strategy(
        name="ddp",
        label="DDP",
        title="DDP",
        stages=(UnitStage(0, "DDP", WEIGHT),),
        half="autocast",
        spreads=_spreads,
        check=_check,
        mesh=_mesh,
        parts=(
            STEP,
            WRAPPING,
            Launch(
                distributed_type="MULTI_GPU",
                model="model.train().to(DEVICE)",
                every_micro_step="model.require_backward_grad_sync = micro == ACCUMULATION - 1",
            ),
        ),
    )
)
