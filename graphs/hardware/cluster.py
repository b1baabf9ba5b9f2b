"""Several devices as one machine: how many, how they hang together, and how fast.

A device's row has its node and its links; this file knows what share of them a collective reaches,
and how a row and what a person says make a ``Cluster``. A link that nobody gave is an error, never
a guess in silence. Knows nothing of collectives (see ``graphs.hardware.collectives``), of models or
of torch. Rates are bytes/s for one device and one direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.graphs.hardware.devices import Device, DeviceSpec, device
from planner.graphs.hardware.table.row import ASSUMED

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

    @property
    def assumed(self) -> bool:
        """Tell whether nobody's documentation says so: a guess, to be replaced by ``link=``."""
        return self.source.startswith("assumed")


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
# Latency and efficiency of a link that is given as a rate and that the device's row lacks.
_UNKNOWN = {"scale_up": _PCIE, "scale_out": _NETWORK}
# Beyond this many, devices of which no server is known do not sit in one.
_LARGEST_UNKNOWN_NODE = 8

LinkSpec = float | str | Mapping[str, float | str | Link] | None


def cluster(
    kind: DeviceSpec,
    world_size: int,
    *,
    devices_per_node: int | None = None,
    link: LinkSpec = None,
) -> Cluster:
    """Put a common server of a device in as many nodes as the world size asks for.

    Args:
        kind: a device, its name in the table, or the path of its JSON file.
        world_size: devices in all.
        devices_per_node: by default what the usual server has, or fewer if there are fewer.
        link: bytes/s of one device in one direction, or a network's name ("HDR", "NDR", "XDR"),
            for the slowest link between devices (between nodes if there are several); or a
            mapping from "scale_up", "scale_out" and "host" to such a number, name or ``Link``.

    Raises:
        ValueError: unknown names, rates that are not positive, devices that do not divide, or a
            link that is neither given nor known.

    >>> print(cluster("A100-40GB", 8))
    8 x A100-40GB in 1 node
    >>> cluster("H100 SXM", 16, link="HDR").scale_out.bytes_per_second
    25000000000.0
    >>> cluster("A100-40GB", 12)
    Traceback (most recent call last):
    ValueError: 12 devices do not divide into nodes of 8: pass devices_per_node=6, or a world ...
    """
    row = device(kind)
    if isinstance(world_size, bool) or not isinstance(world_size, int) or world_size < 1:
        raise ValueError(f"a world size of {world_size!r}: expected a whole number of devices")
    per_node = _per_node(row, world_size) if devices_per_node is None else devices_per_node
    several = per_node < world_size
    if not isinstance(link, Mapping):
        link = {} if link is None else {"scale_out" if several else "scale_up": link}
    links = _known_links(row)
    links |= {name: _link(name, rate, links.get(name)) for name, rate in link.items()}
    if "host" in link:  # devices of a node that have no link of their own pass over it
        links.setdefault("scale_up", links["host"])
    passed = {"scale_up": world_size > 1 and per_node > 1, "scale_out": several}
    if lacking := [name for name in passed if passed[name] and name not in links]:
        raise ValueError(_unknown_link(row, lacking[0]))
    up, out = (links.get(name, links["host"]) for name in passed)
    return Cluster(row, world_size, per_node, up, out, links["host"])


def _per_node(row: Device, world_size: int) -> int:
    if row.node is not None:
        return min(row.node.devices, world_size)
    if row.name == "cpu" or world_size <= _LARGEST_UNKNOWN_NODE:
        return world_size
    raise ValueError(
        f"how many {row.name} are in a node is not known, and {world_size} are too many to take "
        "them for one: pass devices_per_node= and link="
    )


def _known_links(row: Device) -> dict[str, Link]:
    """Return the links that a device's row has; the host's is there in any case."""
    if row.name == "cpu":
        host = Link(row.host_link, *_PCIE, row.source)
        return {"scale_up": _PROCESSES, "scale_out": _PROCESSES, "host": host}
    known = {
        "host": Link(row.host_link or _PCIE_3, *_PCIE, row.source if row.host_link else ASSUMED)
    }
    if row.scale_up:
        known["scale_up"] = Link(row.scale_up, *_PEERS, f"{row.source}; {_NCCL}")
    elif row.host_link:
        known["scale_up"] = known["host"]
    if row.node is not None:
        known["scale_out"] = Link(row.node.network, *_NETWORK, f"{row.node.source}; {_NCCL}")
    return known


def _unknown_link(row: Device, name: str) -> str:
    where = "devices of one node" if name == "scale_up" else "nodes"
    return (
        f"the link between {where} of {row.name} is not known: pass link= its bytes/s for one "
        f"device in one direction, or a network's name ({', '.join(NETWORKS)}), or "
        f"link={{{name!r}: ...}}; devices_per_node= says how many are in a node"
    )


def _link(name: str, rate: float | str | Link, known: Link | None) -> Link:
    if name not in _LINKS:
        raise ValueError(f"unknown link {name!r}; the links are {', '.join(_LINKS)}")
    if isinstance(rate, Link):
        return rate
    if isinstance(rate, str):
        if rate.upper() not in NETWORKS:
            names = ", ".join(NETWORKS)
            raise ValueError(f"unknown network {rate!r}; known: {names}, or a rate in bytes/s")
        return Link(NETWORKS[rate.upper()], *_NETWORK, f"{rate.upper()}; {_NCCL}")
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise ValueError(f"{name} is {rate!r}: expected bytes/s, a network's name or a Link")  # noqa: TRY004
    if known is None:
        return Link(float(rate), *_UNKNOWN[name], "given")
    return replace(known, bytes_per_second=float(rate), source="given")
