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

from planner.graphs.hardware.cluster import Cluster
from planner.graphs.hardware.collectives import (
    all_gather_seconds,
    all_reduce_seconds,
    host_copy_seconds,
    reduce_scatter_seconds,
)
from planner.plan.configuration import Configuration, Strategy
from planner.sharding.wrapped.boundary import Parameter

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
    padded = [(p, rows_of(p, ranks) * ranks * _row(p)) for p in parameters]
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


def rows_of(p: Parameter, ranks: int) -> int:
    return -(-p.shape[0] // ranks) if p.shape else 1


def _row(p: Parameter) -> int:
    return math.prod(p.shape[1:])


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
