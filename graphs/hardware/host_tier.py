"""Where a device's values may be moved to, and how fast: the host's memory, or files.

Knows which figures a plan assumes. How bytes are moved is the runtime's to know.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, replace

from planner.graphs.hardware.columns import Device
from planner.graphs.hardware.tiers import Tier, TierKind
from planner.graphs.schedule import Clock

LINK_EFFICIENCY = 0.8
"""What of a link's rate copies between pinned memory and a device reach: 25 GB/s of 31 over PCIe 4
and 50 to 55 of 63 over PCIe 5 are usual results of ``nvbandwidth``. Both directions at once, as a
step seldom needs, may reach less: then a step waits longer than planned, and holds no more."""
HOST_SHARE = 0.5
"""What of its part of the host's memory a device may pin; loaders and the system have the rest."""
FILE_RATE = 0.8e9
"""Bytes/s of a file that is written and read through the page cache of a shared machine, each way:
a plan for a CPU assumes it unless told, or ``costs="measured"`` measures."""
DISK_SHARE = 0.9
_PROBE_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class HostTier:
    """What a plan assumes of the way to the host and back.

    ``to_host`` and ``from_host`` are bytes/s, both at once; ``limit_bytes`` is the most that may be
    there, ``None`` if nothing limits it. A CPU moves values to a file in ``directory``. With
    ``states`` those of the optimizer may wait there, too.

    Raises:
        ValueError: a rate or a limit that is not positive.

    >>> HostTier(25e9, 25e9, 2**30).rates[Clock.TO_HOST]
    25000000000.0
    """

    to_host: float
    from_host: float
    limit_bytes: int | None = None
    directory: str | None = None
    states: bool = False

    def __post_init__(self) -> None:
        for rate in (self.to_host, self.from_host):
            if isinstance(rate, bool) or not 0 < rate < math.inf:
                raise ValueError(f"a link to the host of {rate!r} bytes/s: expected more than 0")
        limit = self.limit_bytes
        if limit is not None and (isinstance(limit, bool) or limit <= 0):
            raise ValueError(f"a limit of {limit!r} bytes on the host: expected some")

    @property
    def rates(self) -> dict[Clock, float]:
        """The rate of each direction, as ``simulate`` takes them."""
        return {Clock.TO_HOST: self.to_host, Clock.FROM_HOST: self.from_host}

    def admits(self, host_bytes: int) -> bool:
        """Tell whether so many bytes may be on the host."""
        return self.limit_bytes is None or host_bytes <= self.limit_bytes


def tier_of(
    device: Device,
    directory: str | None = None,
    *,
    measure: bool = False,
    behind: Tier | None = None,
) -> HostTier:
    """Return the host tier of a device by its row: pinned memory over its link; of a CPU, files.

    Args:
        device: whose values are to be moved.
        directory: of a CPU's files; by default that for temporary files.
        measure: time the files instead of assuming a rate, once a process.
        behind: the disk that the directory lies on, or the memory that is pinned, whose figures
            then are assumed, and the link's if those are lower.

    Raises:
        ValueError: the row has no link to the host, the directory is none, or the device cannot
            move values to what is behind.

    >>> from planner.graphs.hardware.devices import device
    >>> found = tier_of(device("A100-80GB"))
    >>> found.to_host / 1e9, found.limit_bytes / 1e9
    (24.8, 125.0)
    """
    if behind is not None:
        return _behind(tier_of(device, directory), behind)
    if device.name == "cpu":
        where = tempfile.gettempdir() if directory is None else os.path.abspath(directory)
        if not os.path.isdir(where):
            raise ValueError(f"{where!r} is no directory: expected one for the files of values")
        if not os.access(where, os.W_OK | os.X_OK):
            raise ValueError(f"no files can be made in {where!r}: expected a directory to write to")
        out, back = file_rates(where) if measure else (FILE_RATE, FILE_RATE)
        return HostTier(out, back, int(DISK_SHARE * shutil.disk_usage(where).free), where)
    if directory is not None:
        raise ValueError(
            f"a directory is for steps on a CPU, and {device.name} moves values to the host's "
            "memory: leave it out"
        )
    if not device.host_link:
        raise ValueError(
            f"the rate of {device.name}'s link to the host is not known: pass a Device with "
            "host_link="
        )
    node = device.node
    host = None if node is None or node.host_memory_bytes is None else node.host_memory_bytes
    limit = None if host is None or node is None else int(HOST_SHARE * host / node.devices)
    rate = LINK_EFFICIENCY * device.host_link
    return HostTier(rate, rate, limit)


def _behind(tier: HostTier, behind: Tier) -> HostTier:
    """Return a tier with the figures of what is behind it."""
    files = tier.directory is not None
    if files is not (behind.kind is TierKind.DISK):
        has = "files, which a disk holds" if files else "pinned memory of the host"
        raise ValueError(f"this device moves values to {has}, and {behind.name!r} is none of that")
    out, back = behind.write_bytes_per_second, behind.read_bytes_per_second
    if not files:
        out, back = min(out, tier.to_host), min(back, tier.from_host)
    limits = (tier.limit_bytes, behind.size_bytes)
    return replace(
        tier,
        to_host=out,
        from_host=back,
        limit_bytes=min(limit for limit in limits if limit is not None) if files else limits[1],
    )


def lies_in_memory(directory: str, mounts: str = "/proc/self/mounts") -> bool:
    """Tell whether files in a directory take the machine's memory: on tmpfs or ramfs.

    Args:
        directory: there is one of this name.
        mounts: what is mounted where; without such a file nothing is known, and it is no.

    >>> lies_in_memory("/", "/nowhere")
    False
    """
    try:
        with open(mounts, encoding="utf-8") as file:
            found = [line.split()[1:3] for line in file]
    except OSError:
        return False
    path = os.path.join(os.path.realpath(directory), "")
    over = [(where, kind) for where, kind in found if path.startswith(os.path.join(where, ""))]
    return max(over, key=lambda m: len(m[0]), default=("", ""))[1] in {"tmpfs", "ramfs"}


@functools.cache
def file_rates(directory: str) -> tuple[float, float]:
    """Measure how fast a file in a directory is written and read, in bytes/s; once a process.

    Args:
        directory: where the file is made; it is gone afterwards.
    """
    block = bytearray(_PROBE_BYTES)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        spent: list[float] = []
        for transfer in (file.write, file.readinto, file.write, file.readinto):
            file.seek(0)
            start = time.perf_counter()
            moved = transfer(block)
            spent.append((time.perf_counter() - start) / moved)
    return 1 / max(spent[0], spent[2]), 1 / max(spent[1], spent[3])
