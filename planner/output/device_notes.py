"""What a plan says of a device and its links where the table has nothing, or only an assumption."""

from __future__ import annotations

from collections.abc import Iterator

from planner.byte_sizes import format_bytes
from planner.graphs.hardware.cluster import Cluster
from planner.graphs.hardware.columns import Device
from planner.graphs.hardware.devices import in_table
from planner.graphs.hardware.reserve import Part, reserve_parts


def device_notes(name: str) -> Iterator[str]:
    """Say what the times of a device that the table lacks rest on.

    >>> list(device_notes("A100-40GB"))
    []
    """
    if not in_table(name):
        yield (
            f"the device {name} is not in the table of devices: its speed is as given, or was "
            "estimated from what its driver reports"
        )


def reserve_note(device: Device) -> str:
    """Say what of the device's memory is gone before the first tensor, and what is not counted.

    >>> from planner.graphs.hardware.devices import device
    >>> reserve_note(device("H100-SXM")).split("; ")[-1]
    'not counted: workspaces of cuDNN, whose algorithms the card chooses'
    """
    parts = reserve_parts(device)
    said = [f"{p.name}{_sized(p)}" for p in parts if p.counted]
    text = f"reserve: {format_bytes(device.reserve_bytes)} are counted for {' and '.join(said)}"
    left_out = [f"{p.name}{_sized(p)}" for p in parts if not p.counted]
    return text + (f"; not counted: {'; '.join(left_out)}" if left_out else "")


def _sized(part: Part) -> str:
    return "" if part.size_bytes is None else f" {format_bytes(part.size_bytes)}"


def cluster_notes(cluster: Cluster) -> Iterator[str]:
    """Say where the figures of a device that the table lacks are from, and which links are assumed.

    >>> from planner.graphs.hardware.cluster import cluster
    >>> [note[:48] for note in cluster_notes(cluster("L40S", 8))]
    ['the 12.5 GB/s between nodes of 4 are assumed, as']
    """
    name, source = cluster.device.name, cluster.device.source
    if not in_table(name):
        yield f"the device {name} is not in the table of devices; its speed: {source}"
    if name == "cpu":
        return
    used = {
        "devices of a node": (cluster.scale_up, cluster.devices_per_node > 1),
        f"nodes of {cluster.devices_per_node}": (cluster.scale_out, cluster.nodes > 1),
    }
    for what, (link, passed) in used.items():
        if passed and link.assumed:
            yield (
                f"the {link.bytes_per_second / 1e9:g} GB/s between {what} are assumed, as servers "
                f"of the {name} differ: pass link= and devices_per_node="
            )
