"""Turn what a person says of a cluster into a ``Cluster``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.byte_sizes import parse_rate
from planner.errors import BadCluster, UnknownDevice
from planner.graphs.hardware.cluster import NETWORKS, Cluster, LinkSpec
from planner.graphs.hardware.cluster import cluster as build
from planner.graphs.hardware.devices import DeviceSpec, device


def make_cluster(
    kind: DeviceSpec,
    world_size: int,
    *,
    devices_per_node: int | None = None,
    link: LinkSpec = None,
) -> Cluster:
    """Describe ``world_size`` devices; rates may be texts such as "300GB/s" or "400Gb/s".

    Args:
        kind: a device, its name, or the path of its JSON file.
        world_size: devices in all.
        devices_per_node: by default what the usual server of the device has.
        link: see ``graphs.hardware.cluster.cluster``.

    Raises:
        UnknownDevice: no device has this name.
        BadCluster: the devices do not divide into nodes, or a link is not a rate, or is neither
            given nor known.

    >>> print(make_cluster("A100-40GB", 16, link="200Gb/s"))
    16 x A100-40GB in 2 nodes of 8
    >>> make_cluster("A100-40GB", 16, link={"scale_up": "fast"})
    Traceback (most recent call last):
    planner.errors.BadCluster: 'fast' is not a rate: write '300GB/s' (bytes) or '400Gb/s' (bits)...
    """
    try:
        row = device(kind)
    except ValueError as error:
        raise UnknownDevice(str(error)) from error
    try:
        rates = {k: _rate(v) for k, v in link.items()} if isinstance(link, Mapping) else _rate(link)
        return build(row, world_size, devices_per_node=devices_per_node, link=rates)
    except ValueError as error:
        raise BadCluster(str(error)) from error


def _rate(rate: Any) -> Any:
    """Turn a text into bytes/s unless it is a network's name."""
    if not isinstance(rate, str) or rate.upper() in NETWORKS:
        return rate
    try:
        return parse_rate(rate)
    except ValueError as error:
        raise ValueError(f"{error}, or one of {', '.join(NETWORKS)}") from error
