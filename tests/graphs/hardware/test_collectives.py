"""Communication seconds against numbers worked out by hand, and what must hold of any."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from planner.graphs.hardware.cluster import Cluster, Link, cluster
from planner.graphs.hardware.collectives import (
    Algorithm,
    RankGroup,
    all_gather_seconds,
    all_reduce_seconds,
    all_to_all_seconds,
    broadcast_seconds,
    group,
    host_copy_seconds,
    reduce_scatter_seconds,
)

FUNCTIONS = (
    all_gather_seconds,
    reduce_scatter_seconds,
    all_reduce_seconds,
    all_to_all_seconds,
    broadcast_seconds,
)


def simple(world_size: int, per_node: int, *, latency: float = 0.0) -> Cluster:
    """100 B/s inside a node and 10 B/s between nodes, so that results are round."""
    up, out = Link(100, latency, 1.0, "test"), Link(10, 2 * latency, 1.0, "test")
    return Cluster(cluster("L4", 1).device, world_size, per_node, up, out, up, start_seconds=0.0)


def test_ring_in_a_node_by_hand() -> None:
    # 4 ranks, 400 B: 3 steps, each passing on 100 B at 100 B/s; latency is one hop a step
    assert all_gather_seconds(400, 4, simple(4, 4)) == pytest.approx(3)
    assert reduce_scatter_seconds(400, 4, simple(4, 4)) == pytest.approx(3)
    assert all_reduce_seconds(400, 4, simple(4, 4)) == pytest.approx(6)
    assert all_gather_seconds(400, 4, simple(4, 4, latency=0.1)) == pytest.approx(3.3)
    assert all_reduce_seconds(400, 4, simple(4, 4, latency=0.1)) == pytest.approx(6.6)
    assert broadcast_seconds(400, 4, simple(4, 4, latency=0.1)) == pytest.approx(4.3)


def test_ring_over_nodes_by_hand() -> None:
    # one device a node: the network's 10 B/s; 3 steps of 100 B and a hop of 0.2 s each
    assert all_gather_seconds(400, 4, simple(4, 1, latency=0.1)) == pytest.approx(30.6)
    # 2 nodes of 4, 800 B: 7/8 of them through 4 ports of 10 B/s; 6 hops inside, 1 between
    assert all_gather_seconds(800, 8, simple(8, 4)) == pytest.approx(17.5)
    assert all_gather_seconds(800, 8, simple(8, 4, latency=0.1)) == pytest.approx(17.5 + 0.8)
    assert all_reduce_seconds(800, 8, simple(8, 4)) == pytest.approx(35)
    # 16 ports outrun a device: 31/32 of 3200 B at 100 B/s
    assert all_gather_seconds(3200, 32, simple(32, 16)) == pytest.approx(31)


def test_two_levels_by_hand() -> None:
    two = Algorithm.HIERARCHICAL
    # 2 nodes of 4: a quarter crosses, 1 step of 100 B, 10 s; then 3 steps of 200 B inside, 6 s
    assert all_gather_seconds(800, 8, simple(8, 4), algorithm=two) == pytest.approx(16)
    assert reduce_scatter_seconds(800, 8, simple(8, 4), algorithm=two) == pytest.approx(16)
    assert all_reduce_seconds(800, 8, simple(8, 4), algorithm=two) == pytest.approx(32)
    # 8 nodes of 8: a ring would hop 63 times
    hops = all_gather_seconds(0, 64, simple(64, 8, latency=0.1), algorithm=two)
    assert hops == pytest.approx(7 * 0.1 + 7 * 0.2)
    # in one node both are a ring
    assert all_gather_seconds(400, 4, simple(4, 4), algorithm=two) == pytest.approx(3)


def test_all_to_all_by_hand() -> None:
    # 4 ranks of 400 B: three quarters go to the others, at 100 B/s
    assert all_to_all_seconds(400, 4, simple(4, 4)) == pytest.approx(3)
    # of 8 in two nodes: half goes to the other node at 10 B/s, while 3/8 stay at 100 B/s
    assert all_to_all_seconds(800, 8, simple(8, 4)) == pytest.approx(40)


def test_groups_across_nodes_by_hand() -> None:
    # one rank of each of 4 nodes: their rings run side by side, each over its own port
    assert all_reduce_seconds(100, 4, simple(32, 8), stride=8) == pytest.approx(2 * 3 * 25 / 10)


@pytest.mark.parametrize(
    ("ranks", "stride", "placed"),
    [
        (1, 1, RankGroup(1, 1)),
        (4, 1, RankGroup(4, 1)),
        (8, 1, RankGroup(8, 1)),
        (16, 1, RankGroup(8, 2)),
        (64, 1, RankGroup(8, 8)),
        (8, 8, RankGroup(1, 8)),
        (16, 4, RankGroup(2, 8)),
        (4, 16, RankGroup(1, 4)),
        (12, 1, RankGroup(4, 3)),  # of such groups one lies over three nodes
    ],
)
def test_places(ranks: int, stride: int, placed: RankGroup) -> None:
    assert group(simple(64, 8), ranks, stride) == placed


def test_a_part_of_one_node_is_one_node() -> None:
    assert group(simple(6, 6), 3) == RankGroup(3, 1)
    assert group(simple(6, 6), 2, stride=3) == RankGroup(2, 1)


@pytest.mark.parametrize(("ranks", "stride"), [(9, 1), (0, 1), (2, 8), (2, 0), (5, 2)])
def test_groups_larger_than_the_cluster(ranks: int, stride: int) -> None:
    with pytest.raises(ValueError, match=f"a group of {ranks} ranks at a stride of {stride} does"):
        all_gather_seconds(1, ranks, simple(8, 4), stride=stride)


@pytest.mark.parametrize("seconds", FUNCTIONS)
def test_one_rank_has_nobody_to_talk_to(seconds: object) -> None:
    assert seconds(1e9, 1, cluster("A100-40GB", 8)) == 0  # type: ignore[operator]


@pytest.mark.parametrize("seconds", FUNCTIONS)
@pytest.mark.parametrize("world_size", [2, 8, 16, 64])
def test_more_bytes_and_slower_links_never_take_less(seconds: object, world_size: int) -> None:
    fast = cluster("A100-80GB", world_size)
    slow = replace(fast, scale_up=replace(fast.scale_up, bytes_per_second=1e9))
    sizes = [0, 1, 10**3, 10**6, 10**9, 10**11]
    times = [seconds(size, world_size, fast) for size in sizes]  # type: ignore[operator]
    assert all(a < b for a, b in pairwise(times))
    assert all(
        seconds(size, world_size, slow) >= time  # type: ignore[operator]
        for size, time in zip(sizes, times, strict=True)
    )


def test_published_measurements() -> None:
    """Bus bandwidths of nccl-tests that NCCL's issue 1048 reports: 232.5 and 86 GB/s."""
    node = cluster("A100-80GB", 8)
    assert 2 * 7 / 8 * 4e9 / all_reduce_seconds(4e9, 8, node) / 1e9 == pytest.approx(
        232.5, rel=0.03
    )
    # there, eight devices share four ports of 200 Gb/s
    nodes = cluster("A100-80GB", 16, link=12.5e9)
    bus = 2 * 15 / 16 * 4e9 / all_reduce_seconds(4e9, 16, nodes) / 1e9
    assert bus == pytest.approx(86, rel=0.03)


def test_host_copies() -> None:
    node = cluster("A100-40GB", 8)
    assert host_copy_seconds(31e9 * 0.8, node) == pytest.approx(1, rel=1e-4)
