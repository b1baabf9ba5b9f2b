"""What torch's sharding holds and moves: sizes of shards, gathered weights and reductions.

Each rule was read in the sources named at it, in torch 2.13, and checked on gloo by
``python -m benchmarks.sharding``. What accelerators do beside it (streams that hold a block a
little longer, NCCL's own buffers) was read and not measured. Knows nothing of graphs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from planner.graphs.capture.optimizer_step import OptimizerLike, OptimizerStep, optimizer_step
from planner.graphs.hardware.cluster import Cluster
from planner.graphs.hardware.collectives import (
    all_gather_seconds,
    all_reduce_seconds,
    broadcast_seconds,
    host_copy_seconds,
    reduce_scatter_seconds,
)
from planner.plan.configuration import Configuration, Strategy
from planner.sharding.wrapped.boundary import Parameter

HOST_BYTES_PER_SECOND = 20e9
"""What one rank gets of its host's memory, when the optimizer runs there: assumed, on the safe side
(eight channels of DDR4 or DDR5 move 200 GB/s and more, for eight ranks)."""

GLOO_COPIES = 1
"""How many further copies of the flat buffer are held while gloo gathers or reduces: measured. NCCL
works in buffers of its own: the device's reserve."""


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that are gathered and reduced together, as bytes on one rank.

    ``shard`` is what stays: rows of dimension 0, as many on every rank (``FSDPParam`` pads).
    ``flat`` is the buffer an all-gather writes, ``gathered`` the parameters copied out of it.
    ``staged`` is the copy of the shard that an all-gather reads, where it computes in another dtype
    or the shard is on the host. ``reduced`` is the buffer a reduce-scatter reads,
    ``gradient_shard`` what it writes. ``padded`` are the copies that a CPU makes of gradients whose
    rows the ranks cannot share evenly, before it writes them there.
    """

    shard: int
    flat: int
    gathered: int
    staged: int
    reduced: int
    gradient_shard: int
    padded: int = 0


def group_of(
    parameters: Sequence[Parameter],
    configuration: Configuration,
    granularity: int,
    *,
    elsewhere: bool = False,
) -> ParameterGroup:
    """Add up a group's parameters, whose shards may be ``elsewhere``: on the host.

    Sources: ``_fsdp_param.py`` (padding, ``all_gather_outputs``), ``_fsdp_collectives.py``
    (``_get_param_all_gather_inputs``, ``foreach_all_gather``, ``foreach_reduce``), ``reducer.cpp``
    (one bucket view a gradient), ATen's ``_pad_chunk``.

    >>> weight = Parameter("w", (3, 10), 4, 2, True, 0, 1)
    >>> c = Configuration(Strategy.FSDP, shard_ranks=2, precision="bfloat16")
    >>> group = group_of([weight], c, 1)
    >>> group.shard, group.flat, group.staged, group.reduced, group.gradient_shard, group.padded
    (80, 80, 40, 160, 80, 80)
    """
    ranks = configuration.shard_ranks if configuration.strategy is Strategy.FSDP else 1
    up = functools.partial(_round_up, granularity)
    padded = [(p, _rows(p, ranks) * ranks * _row(p)) for p in parameters]
    reduced = sum(n * p.itemsize for p, n in padded if p.trainable)
    staged = [p for p in padded if elsewhere or p[0].compute_itemsize != p[0].itemsize]
    uneven = [(p, n) for p, n in padded if p.trainable and n != math.prod(p.shape)]
    return ParameterGroup(
        shard=sum(up(n // ranks * p.itemsize) for p, n in padded),
        flat=up(sum(n * p.compute_itemsize for p, n in padded)),
        gathered=sum(up(n * p.compute_itemsize) for p, n in padded),
        staged=up(sum(n // ranks * p.compute_itemsize for p, n in staged)),
        reduced=up(reduced),
        gradient_shard=up(reduced // ranks),
        padded=sum(n * p.compute_itemsize for p, n in uneven),
    )


def gloo_reserve_bytes(units: Sequence[ParameterGroup], root: ParameterGroup) -> int:
    """Return what gloo's threads may hold longer than torch does: measured, now and then.

    A step was seen to hold two flat buffers of units more than usual, or one and the root's. When
    is up to the threads, so it is a reserve: within the budget, but not expected.
    """
    flats = sorted([*(max(g.flat for g in units),) * 2, root.flat]) if units else [root.flat]
    return sum(flats[-2:])


def _round_up(granularity: int, size: int) -> int:
    return -(-size // granularity) * granularity


def _rows(p: Parameter, ranks: int) -> int:
    return -(-p.shape[0] // ranks) if p.shape else 1


def _row(p: Parameter) -> int:
    return math.prod(p.shape[1:])


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
        shapes = [(_rows(p, ranks), *p.shape[1:]) for p in trained]
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


@dataclass(frozen=True, slots=True)
class GroupSeconds:
    """How long a group's communication takes, if nothing hides it."""

    gather: float
    reduce: float


def seconds_of(
    group: ParameterGroup, configuration: Configuration, cluster: Cluster
) -> GroupSeconds:
    """Return the times of gathering and reducing a group.

    HSDP reduces within a group of ranks, then all-reduces the shard across the groups. Offloaded
    shards travel from the host, their gradients back.
    """
    ranks, replicas = configuration.shard_ranks, configuration.replicas
    if configuration.strategy is not Strategy.FSDP:
        return GroupSeconds(0.0, all_reduce_seconds(group.reduced, ranks * replicas, cluster))
    gather = all_gather_seconds(group.flat, ranks, cluster)
    reduce = reduce_scatter_seconds(group.reduced, ranks, cluster)
    if replicas > 1:
        reduce += all_reduce_seconds(group.gradient_shard, replicas, cluster, stride=ranks)
    if configuration.offload:
        gather += host_copy_seconds(group.shard, cluster)
        reduce += host_copy_seconds(group.gradient_shard, cluster)
    return GroupSeconds(gather, reduce)


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
