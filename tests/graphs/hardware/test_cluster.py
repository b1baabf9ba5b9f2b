"""Clusters: presets with a source each, links as users give them, and what does not divide."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import pytest

from planner.graphs.hardware.cluster import NETWORKS, Cluster, Link, cluster
from planner.graphs.hardware.devices import DEVICES, Device, Node, device


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_has_a_server_with_sourced_links(name: str) -> None:
    node = device(name).node
    assert node is not None
    made = cluster(name, 2 * node.devices)
    assert made.nodes == 2
    assert made.scale_out.bytes_per_second == node.network
    assert made.scale_out.assumed == node.source.startswith("assumed")
    for link in (made.scale_up, made.scale_out, made.host):
        assert link.source
        assert 0.5 < link.efficiency < 1
        assert 0 < link.latency_seconds < 1e-4
    assert made.scale_up.bytes_per_second == (device(name).scale_up or device(name).host_link)
    assert made.host.bytes_per_second == device(name).host_link


@pytest.mark.parametrize(
    ("name", "per_node", "peers", "network"),
    [
        ("V100-16GB", 8, 150e9, 6.25e9),
        ("A100-40GB", 8, 300e9, 25e9),
        ("A100-80GB", 8, 300e9, 25e9),
        ("H100-SXM", 8, 450e9, 50e9),
        ("H200", 8, 450e9, 50e9),
        ("B200", 8, 900e9, 50e9),
        ("MI300X", 8, 448e9, 50e9),
        ("L40S", 4, 31e9, 12.5e9),
        ("L4", 8, 31e9, 1.5625e9),
    ],
)
def test_published_links(name: str, per_node: int, peers: float, network: float) -> None:
    made = cluster(name, 64)
    assert made.devices_per_node == per_node
    assert (made.scale_up.bytes_per_second, made.scale_out.bytes_per_second) == (peers, network)


def test_networks() -> None:
    assert NETWORKS == {"HDR": 25e9, "NDR": 50e9, "XDR": 100e9}
    assert cluster("H100 SXM", 16, link="xdr").scale_out.bytes_per_second == 100e9


def test_a_rate_is_for_the_slowest_link() -> None:
    assert cluster("A100-40GB", 8, link=1e10).scale_up.bytes_per_second == 1e10
    assert cluster("A100-40GB", 8, link=1e10).scale_out.bytes_per_second == 25e9
    assert cluster("A100-40GB", 16, link=1e10).scale_out.bytes_per_second == 1e10
    assert cluster("A100-40GB", 16, link=1e10).scale_up.bytes_per_second == 300e9


def test_links_by_name() -> None:
    mine = Link(7e9, 1e-5, 0.5, "measured")
    made = cluster("L4", 16, link={"scale_up": mine, "scale_out": "NDR", "host": 16e9})
    assert made.scale_up is mine
    assert made.scale_out.bytes_per_second == 50e9
    assert made.host == replace(cluster("L4", 16).host, bytes_per_second=16e9, source="given")


def test_few_devices_fill_part_of_a_node() -> None:
    assert (cluster("A100-40GB", 1).nodes, cluster("A100-40GB", 4).devices_per_node) == (1, 4)
    assert str(cluster("A100-40GB", 12, devices_per_node=4)) == "12 x A100-40GB in 3 nodes of 4"
    assert cluster("cpu", 3).nodes == 1


MINE = Device("mine", {"float32": 1e12}, 2**34, 1e11)


@pytest.mark.parametrize("world_size", [2, 6, 8])
def test_devices_of_ones_own_hang_together_by_their_hosts(world_size: int) -> None:
    made = cluster(replace(MINE, host_link=31e9), world_size)
    assert (made.nodes, made.scale_up.bytes_per_second) == (1, 31e9)
    assert made.scale_up == made.host


@pytest.mark.parametrize(
    ("mine", "world_size", "per_node", "message"),
    [
        (MINE, 2, None, "the link between devices of one node of mine is not known: pass link="),
        (MINE, 4, 2, "the link between devices of one node of mine is not known"),
        (MINE, 2, 1, r"between nodes of mine is not known.*link=\{'scale_out': \.\.\.\}"),
        (replace(MINE, scale_up=3e11), 4, 2, "the link between nodes of mine is not known"),
        (replace(MINE, host_link=3e10), 16, None, "how many mine are in a node is not known"),
    ],
)
def test_a_link_nobody_knows_is_an_error_not_a_guess(
    mine: Device, world_size: int, per_node: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cluster(mine, world_size, devices_per_node=per_node)


def test_an_unknown_link_may_be_given() -> None:
    assert cluster(MINE, 1).host.assumed
    assert cluster(MINE, 2, link=3e11).scale_up.bytes_per_second == 3e11
    assert cluster(MINE, 2, link={"host": 16e9}).scale_up.bytes_per_second == 16e9
    both = cluster(MINE, 4, devices_per_node=2, link={"scale_up": 3e11, "scale_out": "NDR"})
    assert (both.scale_up.source, both.scale_out.bytes_per_second) == ("given", 50e9)
    assert cluster(MINE, 2, devices_per_node=1, link="HDR").scale_out.bytes_per_second == 25e9


def test_a_device_of_ones_own_may_have_a_node() -> None:
    mine = replace(MINE, scale_up=3e11, node=Node(4, 25e9, "mine"))
    made = cluster(mine, 16)
    assert (made.nodes, made.scale_out.bytes_per_second) == (4, 25e9)


def test_only_processes_of_a_cpu_are_taken_for_one_gigabyte_a_second() -> None:
    assert cluster("cpu", 2).scale_up.bytes_per_second == 1e9
    assert cluster("cpu", 2).scale_up.assumed
    for name in DEVICES:
        made = cluster(name, 144)
        assert min(made.scale_up.bytes_per_second, made.scale_out.bytes_per_second) > 1.5e9


@pytest.mark.parametrize(
    ("world_size", "per_node", "message"),
    [
        (12, None, "12 devices do not divide into nodes of 8: pass devices_per_node=6, or a world"),
        (12, 8, "or a world size of 8 or 16"),
        (4, 8, "pass devices_per_node=4, or a world size of 8"),
        (0, None, "a world size of 0: expected a whole number of devices"),
        (-8, None, "a world size of -8"),
        (2.0, None, "a world size of 2.0"),
        (True, None, "a world size of True"),
        (8, 0, "a world size of 8 with 0 devices a node"),
    ],
)
def test_what_does_not_divide(world_size: int, per_node: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster("A100-40GB", world_size, devices_per_node=per_node)


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("token ring", "unknown network 'token ring'; known: HDR, NDR, XDR, or a rate"),
        ({"nvlink": 1e9}, "unknown link 'nvlink'; the links are scale_up, scale_out, host"),
        ({"host": None}, "host is None: expected bytes/s"),
        ({"host": True}, "host is True: expected bytes/s"),
        (0, "a link of 0.0 bytes/s: expected more than 0"),
        (-1e9, "a link of -1000000000.0 bytes/s"),
        (math.nan, "a link of nan bytes/s"),
        (math.inf, "a link of inf bytes/s"),
    ],
)
def test_links_that_are_none(link: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster("A100-40GB", 8, link=link)  # type: ignore[arg-type]


def test_a_link_checks_its_parts() -> None:
    with pytest.raises(ValueError, match="a latency of -1 s"):
        Link(1e9, -1, 0.5, "")
    with pytest.raises(ValueError, match=r"an efficiency of 1\.1: expected a fraction up to 1"):
        Link(1e9, 0, 1.1, "")


def test_unknown_devices_list_the_known() -> None:
    with pytest.raises(ValueError, match="unknown device 'TPU'; known: cpu, V100-16GB"):
        cluster("TPU", 8)


def test_a_cluster_is_a_value() -> None:
    made: Cluster = cluster("A100-40GB", 16)
    assert pickle.loads(pickle.dumps(made)) == made
    assert len({made, cluster("A100-40GB", 16), cluster("A100-40GB", 8)}) == 2
