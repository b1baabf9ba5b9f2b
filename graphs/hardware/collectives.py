"""Seconds of collective communication: latency and bandwidth over a ``Cluster``.

Knows two algorithms:

- *ring*: n ranks in a circle, n - 1 steps, in each of which a rank passes on 1/n of the data
  (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations",
  2009). Over several nodes there are as many rings as network ports, each crossing between nodes
  at another port, so that they go at the speed of a device or of all the ports of its node,
  whichever is slower; every node but one adds a hop over the network. This is NCCL's own model
  (``src/graph/tuning.cc``; bus bandwidth as in nccl-tests' ``doc/PERFORMANCE.md``) and what torch
  runs, so it is the default.
- *hierarchical*: first among the devices with the same place in every node, then within the node:
  fewer hops, and less over the network, but one level waits for the other (the two levels of
  DeepSpeed's hpZ and qgZ, ZeRO++, arXiv 2306.10209).

All-reduce is a reduce-scatter and an all-gather. The arithmetic of a reduction is not counted: it
runs while bytes move. Every function takes the bytes of the whole, unsharded tensor. Knows nothing
of overlap with compute.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from planner.graphs.hardware.cluster import Cluster, Link


class Algorithm(enum.Enum):
    """How a collective goes about it."""

    RING = "ring"
    HIERARCHICAL = "hierarchical"


@dataclass(frozen=True, slots=True)
class RankGroup:
    """How the ranks of a process group lie: ``local`` of them in each of ``nodes`` nodes."""

    local: int
    nodes: int

    @property
    def ranks(self) -> int:
        """Return the size of the group."""
        return self.local * self.nodes


def group(cluster: Cluster, ranks: int, stride: int = 1) -> RankGroup:
    """Place ``ranks`` ranks, each ``stride`` after the one before it.

    Where groups lie unevenly over the nodes the worst of them counts: all wait for it.

    Args:
        cluster: where the ranks are.
        ranks: how many.
        stride: from one to the next, in ranks of the cluster.

    Raises:
        ValueError: more ranks than the cluster has.

    >>> from planner.graphs.hardware.cluster import cluster
    >>> group(cluster("A100-40GB", 32), 16), group(cluster("A100-40GB", 32), 4, stride=8)
    (RankGroup(local=8, nodes=2), RankGroup(local=1, nodes=4))
    """
    if ranks < 1 or stride < 1 or (ranks - 1) * stride >= cluster.world_size:
        raise ValueError(
            f"a group of {ranks} ranks at a stride of {stride} does not lie in "
            f"{cluster.world_size} devices"
        )
    local = math.gcd(ranks, max(1, cluster.devices_per_node // stride))
    if cluster.nodes == 1:
        local = ranks
    return RankGroup(local, ranks // local)


def all_gather_seconds(
    total_bytes: float,
    ranks: int,
    cluster: Cluster,
    *,
    stride: int = 1,
    algorithm: Algorithm = Algorithm.RING,
) -> float:
    """Return the time until every rank holds all of a tensor of which each had 1/ranks.

    Args:
        total_bytes: of the whole tensor.
        ranks: how many take part.
        cluster: where they are.
        stride: from one rank of the group to the next.
        algorithm: how the collective goes about it.

    >>> from planner.graphs.hardware.cluster import cluster
    >>> round(all_gather_seconds(1e9, 8, cluster("A100-40GB", 8)) * 1e3, 3)
    3.772
    """
    where = group(cluster, ranks, stride)
    if where.ranks == 1:
        return 0.0
    return cluster.start_seconds + _SECONDS[algorithm](total_bytes, where, cluster)


def reduce_scatter_seconds(
    total_bytes: float,
    ranks: int,
    cluster: Cluster,
    *,
    stride: int = 1,
    algorithm: Algorithm = Algorithm.RING,
) -> float:
    """Return the time until each rank holds the sum of its 1/ranks of a tensor.

    An all-gather run backwards: the same steps and bytes.

    Args:
        total_bytes: of the whole tensor.
        ranks: how many take part.
        cluster: where they are.
        stride: from one rank of the group to the next.
        algorithm: how the collective goes about it.
    """
    return all_gather_seconds(total_bytes, ranks, cluster, stride=stride, algorithm=algorithm)


def all_reduce_seconds(
    total_bytes: float,
    ranks: int,
    cluster: Cluster,
    *,
    stride: int = 1,
    algorithm: Algorithm = Algorithm.RING,
) -> float:
    """Return the time until every rank holds the sum of all of a tensor.

    Args:
        total_bytes: of the whole tensor.
        ranks: how many take part.
        cluster: where they are.
        stride: from one rank of the group to the next.
        algorithm: how the collective goes about it.

    >>> from planner.graphs.hardware.cluster import cluster
    >>> round(all_reduce_seconds(1e9, 8, cluster("A100-40GB", 8)) * 1e3, 3)
    7.535
    """
    where = group(cluster, ranks, stride)
    if where.ranks == 1:
        return 0.0
    return cluster.start_seconds + 2 * _SECONDS[algorithm](total_bytes, where, cluster)


def all_to_all_seconds(
    local_bytes: float, ranks: int, cluster: Cluster, *, stride: int = 1
) -> float:
    """Return the time until every rank has sent each other rank its part of what it has.

    Of what a device has, (n - l)/n leaves its node through its own port, and (l - 1)/n stays in it:
    both at once, the slower counts. NCCL sends to all peers together, with one start.

    Args:
        local_bytes: what each rank has, and what each has afterwards.
        ranks: how many take part.
        cluster: where they are.
        stride: from one rank of the group to the next.

    >>> from planner.graphs.hardware.cluster import cluster
    >>> round(all_to_all_seconds(1e9, 8, cluster("A100-40GB", 8)) * 1e3, 3)
    3.772
    """
    where = group(cluster, ranks, stride)
    if where.ranks == 1:
        return 0.0
    inside = (where.local - 1) / where.ranks * local_bytes / cluster.scale_up.achieved
    outside = (where.ranks - where.local) / where.ranks * local_bytes / cluster.scale_out.achieved
    return cluster.start_seconds + _hop_seconds(where, cluster) + max(inside, outside)


def broadcast_seconds(
    total_bytes: float, ranks: int, cluster: Cluster, *, stride: int = 1
) -> float:
    """Return the time until every rank holds what one rank had: a pipeline along the ring.

    Args:
        total_bytes: of the whole tensor.
        ranks: how many take part.
        cluster: where they are.
        stride: from one rank of the group to the next.

    >>> from planner.graphs.hardware.cluster import cluster
    >>> round(broadcast_seconds(1e9, 8, cluster("A100-40GB", 8)) * 1e3, 3)
    4.306
    """
    where = group(cluster, ranks, stride)
    if where.ranks == 1:
        return 0.0
    hops = _hop_seconds(where, cluster)
    return cluster.start_seconds + hops + total_bytes / _ring_rate(where, cluster)


def host_copy_seconds(size_bytes: float, cluster: Cluster) -> float:
    """Return the time one device takes to copy to or from its host, all devices at once."""
    return cluster.host.latency_seconds + size_bytes / cluster.host.achieved


def _ring_seconds(total_bytes: float, where: RankGroup, cluster: Cluster) -> float:
    share = (where.ranks - 1) / where.ranks
    return _hop_seconds(where, cluster) + share * total_bytes / _ring_rate(where, cluster)


def _hop_seconds(where: RankGroup, cluster: Cluster) -> float:
    outer = where.nodes - 1
    inner = where.ranks - 1 - outer
    return inner * cluster.scale_up.latency_seconds + outer * cluster.scale_out.latency_seconds


def _ring_rate(where: RankGroup, cluster: Cluster) -> float:
    """Return the bytes/s that pass each device of the rings together."""
    if where.nodes == 1:
        return cluster.scale_up.achieved
    ports = where.local * cluster.scale_out.achieved
    return ports if where.local == 1 else min(cluster.scale_up.achieved, ports)


def _hierarchical_seconds(total_bytes: float, where: RankGroup, cluster: Cluster) -> float:
    """Gather 1/local of the tensor across the nodes, then all of it within each node."""
    outer = _circle(total_bytes / where.local, where.nodes, cluster.scale_out)
    return outer + _circle(total_bytes, where.local, cluster.scale_up)


def _circle(total_bytes: float, ranks: int, link: Link) -> float:
    return (ranks - 1) * (link.latency_seconds + total_bytes / ranks / link.achieved)


_SECONDS = {Algorithm.RING: _ring_seconds, Algorithm.HIERARCHICAL: _hierarchical_seconds}
