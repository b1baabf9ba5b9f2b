"""Several devices as one machine: how many, how they hang together, and how fast.

Knows the links that data sheets and reference systems give, each with its source, and what share
of them a collective reaches. Knows nothing of collectives (see ``graphs.hardware.collectives``), of
models or of torch. Rates are bytes/s for one device and one direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from planner.graphs.hardware.devices import Device, device

_MICRO = 1e-6


@dataclass(frozen=True, slots=True)
class Link:
    """A way for bytes to leave or reach one device.

    ``bytes_per_second`` is the data sheet's, one direction; ``efficiency`` the share of it that
    large messages reach; ``latency_seconds`` what each hop of a ring costs whatever its size.

    >>> Link(25e9, 10e-6, 0.8, "mine").achieved
    20000000000.0
    """

    bytes_per_second: float
    latency_seconds: float
    efficiency: float
    source: str

    def __post_init__(self) -> None:
        if not 0 < self.bytes_per_second < float("inf"):
            raise ValueError(f"a link of {self.bytes_per_second!r} bytes/s: expected more than 0")
        if not 0 <= self.latency_seconds < 1:
            raise ValueError(f"a latency of {self.latency_seconds!r} s: expected 0 to 1 second")
        if not 0 < self.efficiency <= 1:
            raise ValueError(f"an efficiency of {self.efficiency!r}: expected a fraction up to 1")

    @property
    def achieved(self) -> float:
        """Return the bytes/s that large messages reach."""
        return self.bytes_per_second * self.efficiency


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equal devices in equal nodes.

    ``scale_up`` joins the devices of a node, ``scale_out`` is one device's share of what leaves
    the node, ``host`` one device's way to its host's memory. ``start_seconds`` is what any
    collective costs before its first byte.
    """

    device: Device
    world_size: int
    devices_per_node: int
    scale_up: Link
    scale_out: Link
    host: Link
    start_seconds: float = 8.4e-6

    def __post_init__(self) -> None:
        if self.world_size < 1 or self.devices_per_node < 1:
            raise ValueError(
                f"a world size of {self.world_size} with {self.devices_per_node} devices a node: "
                "expected 1 or more of each"
            )
        if self.world_size % self.devices_per_node:
            raise ValueError(_uneven(self.world_size, self.devices_per_node))

    @property
    def nodes(self) -> int:
        """Return how many nodes there are."""
        return self.world_size // self.devices_per_node

    def __str__(self) -> str:
        """Name the devices and how they are spread.

        >>> print(cluster("A100-80GB", 64))
        64 x A100-80GB in 8 nodes of 8
        """
        if self.nodes == 1:
            return f"{self.world_size} x {self.device.name} in 1 node"
        return (
            f"{self.world_size} x {self.device.name} "
            f"in {self.nodes} nodes of {self.devices_per_node}"
        )


def _uneven(world_size: int, per_node: int) -> str:
    fitting = [n for n in range(min(world_size, per_node), 0, -1) if world_size % n == 0]
    below, above = world_size - world_size % per_node, world_size + -world_size % per_node
    sizes = " or ".join(str(n) for n in (below, above) if n)
    return (
        f"{world_size} devices do not divide into nodes of {per_node}: "
        f"pass devices_per_node={fitting[0]}, or a world size of {sizes}"
    )


@dataclass(frozen=True, slots=True)
class _Node:
    """What a common server of a device looks like: devices, bytes/s of network for each."""

    devices: int
    network: float
    source: str


_DGX = "NVIDIA {} data sheet: {}"
_ASSUMED = "assumed: servers of this card differ, pass link= and devices_per_node="
_V100_NODE = _Node(8, 6.25e9, _DGX.format("DGX-1", "4 x EDR InfiniBand of 100 Gb/s for 8 GPUs"))
_A100_NODE = _Node(8, 25e9, _DGX.format("DGX A100", "8 x HDR InfiniBand of 200 Gb/s for 8 GPUs"))
_H100_NODE = _Node(8, 50e9, _DGX.format("DGX H100", "8 x NDR InfiniBand of 400 Gb/s for 8 GPUs"))
_NODES: Mapping[str, _Node] = {
    "V100-16GB": _V100_NODE,
    "V100-32GB": _V100_NODE,
    "A100-40GB": _A100_NODE,
    "A100-80GB": _A100_NODE,
    "H100-SXM": _H100_NODE,
    "H100-PCIe": _Node(8, 25e9, _ASSUMED),
    "H200": replace(_H100_NODE, source=_DGX.format("DGX H200", "8 x NDR of 400 Gb/s for 8 GPUs")),
    "B200": replace(_H100_NODE, source=_DGX.format("DGX B200", "8 x NDR of 400 Gb/s for 8 GPUs")),
    "MI300X": _Node(8, 50e9, "Azure ND MI300X v5 documentation: 400 Gb/s InfiniBand a GPU"),
    "L40S": _Node(4, 12.5e9, _ASSUMED),
    "L4": _Node(8, 1.5625e9, "AWS g6.48xlarge documentation: 100 Gb/s for 8 GPUs"),
    "RTX-4090": _Node(8, 1.5625e9, _ASSUMED),
}

# bytes/s of one network port, as users name them
NETWORKS: Mapping[str, float] = {"HDR": 25e9, "NDR": 50e9, "XDR": 100e9}

# Latencies: the ring's "Simple" protocol in NCCL's own model, src/graph/tuning.cc, in which a
# collective costs 8.4 us and a hop 3.4 (NVLink), 5.7 (PCIe) or 9.6 us (network).
# Efficiencies: an all-reduce of 8 A100s moves 232.5 of 300 GB/s, one over two nodes 86 of 100
# (github.com/NVIDIA/nccl/issues/1048; NCCL's model caps the former at 235); PCIe 4 x16 copies
# about 25 of its 31.
_NCCL = "NCCL src/graph/tuning.cc and issue 1048"
_PEERS = (3.4 * _MICRO, 0.78)
_PCIE = (5.7 * _MICRO, 0.8)
_PCIE_3 = 16e9
_NETWORK = (9.6 * _MICRO, 0.86)
# Between processes of one machine (gloo), nobody's data sheet: a guess on the safe side.
_PROCESSES = Link(1e9, 100 * _MICRO, 1.0, "assumed: gloo between processes")
_LINKS = ("scale_up", "scale_out", "host")

LinkSpec = float | str | Mapping[str, float | str | Link] | None


def cluster(
    kind: str | Device,
    world_size: int,
    *,
    devices_per_node: int | None = None,
    link: LinkSpec = None,
) -> Cluster:
    """Put a common server of a device in as many nodes as the world size asks for.

    Args:
        kind: a device, or its name in the table.
        world_size: devices in all.
        devices_per_node: by default what the usual server has, or fewer if there are fewer.
        link: bytes/s of one device in one direction, or a network's name ("HDR", "NDR", "XDR"),
            for the slowest link between devices (between nodes if there are several); or a
            mapping from "scale_up", "scale_out" and "host" to such a number, name or ``Link``.

    Raises:
        ValueError: unknown names, rates that are not positive, or devices that do not divide.

    >>> print(cluster("A100-40GB", 8))
    8 x A100-40GB in 1 node
    >>> cluster("H100 SXM", 16, link="HDR").scale_out.bytes_per_second
    25000000000.0
    >>> cluster("A100-40GB", 12)
    Traceback (most recent call last):
    ValueError: 12 devices do not divide into nodes of 8: pass devices_per_node=6, or a world ...
    """
    row = device(kind) if isinstance(kind, str) else kind
    if isinstance(world_size, bool) or not isinstance(world_size, int) or world_size < 1:
        raise ValueError(f"a world size of {world_size!r}: expected a whole number of devices")
    node = _NODES.get(row.name, _Node(world_size, _PROCESSES.bytes_per_second, _ASSUMED))
    per_node = min(node.devices, world_size) if devices_per_node is None else devices_per_node
    links = _presets(row, node)
    made = Cluster(row, world_size, per_node, *links)
    if link is None:
        return made
    if not isinstance(link, Mapping):
        link = {"scale_out" if made.nodes > 1 else "scale_up": link}
    given: dict[str, Any] = {name: _link(made, name, rate) for name, rate in link.items()}
    return replace(made, **given)


def _presets(row: Device, node: _Node) -> tuple[Link, Link, Link]:
    """Return the links within a node, between nodes, and to the host."""
    host = Link(row.host_link or _PCIE_3, *_PCIE, row.source if row.host_link else _ASSUMED)
    if row.name == "cpu":
        return _PROCESSES, _PROCESSES, host
    up = Link(row.scale_up, *_PEERS, f"{row.source}; {_NCCL}") if row.scale_up else host
    return up, Link(node.network, *_NETWORK, f"{node.source}; {_NCCL}"), host


def _link(made: Cluster, name: str, rate: float | str | Link) -> Link:
    if name not in _LINKS:
        raise ValueError(f"unknown link {name!r}; the links are {', '.join(_LINKS)}")
    if isinstance(rate, Link):
        return rate
    if isinstance(rate, str):
        if rate.upper() not in NETWORKS:
            known = ", ".join(NETWORKS)
            raise ValueError(f"unknown network {rate!r}; known: {known}, or a rate in bytes/s")
        return Link(NETWORKS[rate.upper()], *_NETWORK, f"{rate.upper()}; {_NCCL}")
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise ValueError(f"{name} is {rate!r}: expected bytes/s, a network's name or a Link")  # noqa: TRY004
    preset: Link = getattr(made, name)
    return replace(preset, bytes_per_second=float(rate), source="given")
