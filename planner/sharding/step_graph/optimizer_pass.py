"""The last op of a step: the optimizer on this rank's part, its state and its time."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from planner.graphs import Kind, Op, Phase
from planner.graphs.capture.optimizer_step import OptimizerLike, OptimizerStep, optimizer_step
from planner.graphs.hardware.cluster import Cluster
from planner.graphs.hardware.collectives import broadcast_seconds
from planner.plan.configuration import Configuration, Strategy
from planner.sharding.step_graph.builder import Draft
from planner.sharding.step_graph.parameter_groups import rows_of
from planner.sharding.wrapped.boundary import Parameter

HOST_BYTES_PER_SECOND = 20e9
"""What one rank gets of its host's memory, when the optimizer runs there: assumed, on the safe side
(eight channels of DDR4 or DDR5 move 200 GB/s and more, for eight ranks)."""


def add_optimizer(draft: Draft, optimizer: OptimizerLike | None) -> OptimizerStep:
    """Add the optimizer's step on this rank's part and the state it keeps."""
    parameters = [p for _, capture in draft.captures_by_index() for p in capture.parameters]
    step = optimizer_of(
        parameters,
        draft.configuration,
        optimizer,
        accelerated=draft.cluster.device.name != "cpu",
    )
    if optimizer is None:
        return step
    total = sum(group.shard for group in draft.groups.values())
    if step.state_bytes and not draft.elsewhere:
        draft.value(f"{step.name} state", step.state_bytes, Kind.OPTIMIZER)
    draft.ops.append(
        Op(
            "optimizer.step",
            step.name,
            tuple(draft.shards),
            (),
            optimizer_seconds(step, total, draft.configuration, draft.cluster),
            moved_bytes=step.moved_bytes,
            workspace_bytes=0 if draft.elsewhere else step.workspace_bytes,
            phase=Phase.OPTIMIZER,
            recomputable=False,
        )
    )
    return step


def optimizer_of(
    parameters: Sequence[Parameter],
    configuration: Configuration,
    optimizer: OptimizerLike | None,
    *,
    accelerated: bool,
) -> OptimizerStep:
    """Run the optimizer on fakes of the fullest rank's part.

    FSDP gives the first rank the most rows of every parameter. ``ZeroRedundancyOptimizer`` hands
    out whole parameters, the largest first, each to the rank that has least
    (``_partition_parameters``). An accelerator's default is foreach, also for ``DTensor``.
    """
    trained = [p for p in parameters if p.trainable]
    if configuration.strategy is Strategy.FSDP:
        ranks = configuration.shard_ranks
        shapes = [(rows_of(p, ranks), *p.shape[1:]) for p in trained]
    elif configuration.strategy is Strategy.ZERO1:
        loads = partition([math.prod(p.shape) for p in trained], configuration.world_size)
        fullest = max(loads, key=lambda part: sum(math.prod(trained[i].shape) for i in part))
        trained = [trained[i] for i in sorted(fullest)]
        shapes = [p.shape for p in trained]
    else:
        shapes = [p.shape for p in trained]
    if isinstance(optimizer, str) and accelerated and "_" not in optimizer:
        optimizer = f"{optimizer}_foreach"
    described = tuple((shape, p.itemsize) for shape, p in zip(shapes, trained, strict=True))
    return _optimizer_step(described, optimizer)  # type: ignore[arg-type] # all can be hashed


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


@functools.lru_cache(maxsize=64)
def _optimizer_step(
    described: tuple[tuple[tuple[int, ...], int], ...], optimizer: OptimizerLike | None
) -> OptimizerStep:
    import torch

    dtypes = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
    fakes = [torch.empty(s, dtype=dtypes[size], device="meta") for s, size in described]
    return optimizer_step(fakes, optimizer, device="cpu")


def optimizer_seconds(
    step: OptimizerStep, parameter_bytes: int, configuration: Configuration, cluster: Cluster
) -> float:
    """Return the time of the optimizer's step; ZeRO-1 then sends every rank's part to all."""
    if configuration.offload and cluster.device.name != "cpu":
        return step.moved_bytes / HOST_BYTES_PER_SECOND
    seconds = step.moved_bytes / cluster.device.bytes_per_second()
    if configuration.strategy is Strategy.ZERO1:
        seconds += broadcast_seconds(parameter_bytes, configuration.world_size, cluster)
    return seconds
