"""Which device a name means: a row of the table, a file, or the CPU this runs on.

Knows how people and drivers write names, and a conservative guess of the CPU. The figures are in
``graphs.hardware.table``, one row a device with its node and links; a card that is in no row is
described by ``graphs.hardware.detect``. Knows nothing of operators or of torch.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from planner.graphs.hardware.columns import Device, Kernel, Node
from planner.graphs.hardware.device_files import load_device
from planner.graphs.hardware.table.amd_devices import AMD
from planner.graphs.hardware.table.nvidia_cards import CARDS
from planner.graphs.hardware.table.nvidia_servers import SERVERS
from planner.graphs.hardware.table.row import DeviceRow

__all__ = [
    "DEVICES",
    "ROWS",
    "Device",
    "DeviceSpec",
    "Kernel",
    "Node",
    "cpu",
    "device",
    "in_table",
    "reported",
]

ROWS: tuple[DeviceRow, ...] = (*SERVERS, *CARDS, *AMD)
DEVICES: Mapping[str, Device] = {row.device.name: row.device for row in ROWS}

DeviceSpec = str | Path | Device
"""What stands for a device: its name, the path of a JSON file, or the device itself."""

# Words that say who made a card, or what it is, but not which.
_MAKERS = frozenset({"nvidia", "amd", "tesla", "geforce", "instinct", "radeon", "gpu"})
_FORMS = frozenset({"sxm", "pcie", "nvl"})
_SERIES = ("RTX-", "RX-")


def device(kind: DeviceSpec = "cpu") -> Device:
    """Look a device up by name, in any case and the forms in which people and drivers write it.

    A name that leaves the form open means the SXM module, if there is one: an H100 is an H100-SXM.
    A name that leaves the memory open is refused, because that decides what fits. A path that ends
    in .json is read as a device's file; a ``Device`` is returned as it is.

    Raises:
        ValueError: no such device, one of several, or a file that is not one; the message lists
            the devices there are.

    >>> device("h100 sxm").memory_bytes // 2**30
    79
    >>> device("NVIDIA A100-PCIE-40GB").name, device("H100").name
    ('A100-PCIe-40GB', 'H100-SXM')
    >>> device("TPU")
    Traceback (most recent call last):
    ValueError: unknown device 'TPU'; known: cpu, V100-16GB, ...
    """
    if isinstance(kind, Device):
        return kind
    name = str(kind)
    if name.lower().endswith(".json"):
        return load_device(name)
    if _plain(name) == "cpu":
        return cpu()
    rows = _rows(name)
    modules = [row for row in rows if "sxm" in _words(row.name)]
    if len(rows) == 1 or len(modules) == 1:
        return (modules or rows)[0]
    if rows:
        *names, last = (row.name for row in rows)
        raise ValueError(
            f"unknown device {name!r}; it may be {', '.join(names)} or {last}: say which"
        )
    raise ValueError(
        f"unknown device {name!r}; known: {', '.join(('cpu', *DEVICES))}; or pass a Device, or the "
        "path of a JSON file that describes one"
    )


def reported(name: str, memory_bytes: int) -> Device:
    """Return the row of a card as its driver names it, with the memory that it reports.

    Raises:
        ValueError: a card that the table does not have.

    >>> reported("NVIDIA A100-SXM4-80GB", 85_000_000_000).name
    'A100-80GB'
    """
    # A card of a known name with other memory (an RTX 3060 of 8 GB) is another card.
    rows = [r for r in _rows(name) if 0.85 < memory_bytes / r.memory_bytes < 1.15]
    if not rows:
        raise ValueError(
            f"no figures for {name!r} with {memory_bytes / 2**30:.1f} GiB in the table; name the "
            "nearest device of it, or pass a Device"
        )
    nearest = min(rows, key=lambda r: (abs(r.memory_bytes - memory_bytes), r.bandwidth))
    return replace(nearest, memory_bytes=memory_bytes)


def in_table(name: str) -> bool:
    """Tell whether a device's figures are the table's, or those of the CPU.

    >>> in_table("A100-40GB"), in_table("mine")
    (True, False)
    """
    return name == "cpu" or name in DEVICES


def _rows(name: str) -> Sequence[Device]:
    """Return what a name may mean: devices whose whole name is in it, else all that it fits."""
    said = _words(name)
    for row in ROWS:
        if _plain(row.device.name) == _plain(name):
            return (row.device,)
    fits = [row for row in ROWS if _needed(row.device.name) <= said <= _known(row)]
    whole = [row for row in fits if _words(row.device.name) <= said]
    return [row.device for row in whole or fits]


def _words(name: str) -> set[str]:
    """Split a name into words; "80 GB", "80g" and "80gib" are all "80gb", SXM4 is SXM."""
    text = re.sub(r"(?<![a-z0-9])(\d+)\s*g(i?b)?(?![a-z])", r"\1gb", name.lower())
    words = re.findall(r"[a-z0-9]+", text)
    return {"sxm" if re.fullmatch(r"sxm\d?", word) else word for word in words}


def _needed(name: str) -> set[str]:
    """Return the words that tell a device from others: not its form, capacity or series."""
    for series in _SERIES:
        name = name.removeprefix(series)
    words = _words(name) - _FORMS - _MAKERS
    return {word for word in words if not re.fullmatch(r"\d+gb", word)}


def _known(row: DeviceRow) -> set[str]:
    return _words(row.device.name) | row.words | _MAKERS


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def cpu() -> Device:
    """Describe the CPU this runs on, on the safe side.

    One multiply-add of a full vector a cycle on each core at 2.5 GHz; 4 GB/s of memory for each
    core up to eight, since fresh outputs cost page faults. No clock is read, so that the same
    machine always gives the same plan; measured mode exists for those who need better. The
    reserve is 0: the process shares the machine's memory.
    """
    cores = _cores()
    float32 = cores * 2.5e9 * 2 * _float32_lanes()
    return Device(
        name="cpu",
        peak_flops={"float32": float32, "float64": float32 / 2},
        memory_bytes=psutil.virtual_memory().total,
        bandwidth=4e9 * min(cores, 8),
        scale_up=0,
        host_link=8e9,
        source=f"estimated: {cores} cores of {platform.processor() or platform.machine()}",
        reserve_bytes=0,
        granularity_bytes=1,
        compute_efficiency=1.0,
        bandwidth_efficiency=1.0,
        launch_seconds=2e-6,
        issue_seconds=0.0,
    )


def _cores() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(physical, usable or physical))


def _float32_lanes() -> int:
    """Return how many float32 one instruction handles, as far as the system says."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    return 16 if "avx512f" in flags else 8 if "avx2" in flags else 4
