"""ZeRO-1: DDP whose optimizer, ``ZeroRedundancyOptimizer``, keeps a part of the state a rank."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from planner.graphs.hardware.cluster import Cluster
from planner.graphs.hardware.collectives import broadcast_seconds
from planner.output.exporters.launch import Launch
from planner.plan.configuration import Configuration
from planner.plan.strategy import Spread, UnitStage, register_strategy
from planner.sharding.step_graph.step_rules import ModelStates
from planner.sharding.strategies.ddp import DDP, STEP, WEIGHT, WRAPPING

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from planner.sharding.wrapped.boundary import Parameter


def _spreads(world_size: int, devices_per_node: int) -> Iterator[Spread]:
    if world_size > 1:
        yield Spread(world_size)


def _check(spread: Spread) -> None:
    if spread.replicas > 1:
        raise ValueError("ZeroRedundancyOptimizer shards over all ranks: replicas must be 1")
    if spread.offload:
        raise ValueError("ZeRO-1 stays on the device: only FSDP offloads its shards to the host")


def _fullest(parameters: Sequence[Parameter], spread: Spread) -> list[Parameter]:
    """Hand out whole parameters as ``_partition_parameters`` does; return the fullest rank's."""
    sizes = [math.prod(p.shape) for p in parameters]
    parts = partition(sizes, spread.world_size)
    fullest = max(parts, key=lambda part: sum(sizes[i] for i in part))
    return [parameters[i] for i in sorted(fullest)]


def partition(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Hand out sizes, the largest first, each to the rank that has least.

    >>> partition([5, 9, 4, 3], 2)
    [[1, 3], [0, 2]]
    """
    parts: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        rank = loads.index(min(loads))
        parts[rank].append(i)
        loads[rank] += sizes[i]
    return parts


def _least_states(states: ModelStates, c: Configuration) -> int:
    """Count the fullest rank's part of the optimizer's state as no less than the mean."""
    return states.parameters + states.gradients + states.optimizer // c.data_ranks


def _broadcast_seconds(parameter_bytes: int, spread: Spread, cluster: Cluster) -> float:
    """Every rank sends its part of the parameters to all."""
    return broadcast_seconds(parameter_bytes, spread.world_size, cluster)


def _make_optimizer(
    model: nn.Module, optimizer: type[Optimizer], options: Mapping[str, Any]
) -> Optimizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing it compiles, which torch itself deprecates
        from torch.distributed.optim import ZeroRedundancyOptimizer
    return ZeroRedundancyOptimizer(model.parameters(), optimizer, **options)


_LAUNCH = replace(DDP.part(Launch), distributed_type="DEEPSPEED")

ZERO1 = register_strategy(
    replace(
        DDP,
        name="zero1",
        label="ZeRO-1",
        title="DDP + ZeroRedundancyOptimizer",
        stages=(UnitStage(1, "ZeRO-1", WEIGHT),),
        spreads=_spreads,
        check=_check,
        parts=(
            replace(
                STEP,
                optimizer_part=_fullest,
                after_update_seconds=_broadcast_seconds,
                least_states=_least_states,
            ),
            replace(WRAPPING, make_optimizer=_make_optimizer),
            _LAUNCH,
        ),
    )
)
