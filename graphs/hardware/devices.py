"""What a device can do: peak speed, memory, links, and what it keeps for itself.

Knows data-sheet figures, each with its source, and a conservative guess of the CPU it runs on.
Knows nothing of operators or of torch; what a device really achieves is measured elsewhere.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """One device. Rates are the data sheet's, dense; the efficiencies say what is achieved.

    ``peak_flops`` maps a dtype's name ("float32", "bfloat16", ...) to FLOP/s; "tf32" is float32
    on tensor cores, which torch leaves off by default. ``memory_bytes`` is what the driver
    reports, below the number on the box. ``scale_up`` and ``host_link`` are bytes/s in one
    direction, 0 for no such link. ``reserve_bytes`` is the context and the segments' rounding,
    gone before the first tensor; fragmentation is not in it.
    """

    name: str
    peak_flops: Mapping[str, float] = field(hash=False)
    memory_bytes: int
    bandwidth: float
    scale_up: float
    host_link: float
    source: str
    reserve_bytes: int = _GIB
    granularity_bytes: int = 512
    compute_efficiency: float = 0.7
    bandwidth_efficiency: float = 0.75
    launch_seconds: float = 5e-6

    def __post_init__(self) -> None:
        if "float32" not in self.peak_flops or min(self.peak_flops.values()) <= 0:
            raise ValueError(f"{self.name}: peak_flops needs a positive rate for float32 at least")
        if self.bandwidth <= 0 or self.memory_bytes <= self.reserve_bytes:
            raise ValueError(f"{self.name}: bandwidth or memory is not positive")

    def flops_per_second(self, dtype: str) -> float:
        """Return the rate a matrix product reaches; an unlisted dtype runs at float32's.

        >>> round(device("A100-80GB").flops_per_second("bfloat16") / 1e12, 1)
        218.4
        """
        return self.peak_flops.get(dtype, self.peak_flops["float32"]) * self.compute_efficiency

    def bytes_per_second(self) -> float:
        """Return the memory rate that is reached."""
        return self.bandwidth * self.bandwidth_efficiency


def _sheet(product: str) -> str:
    return (
        f"NVIDIA {product.upper()} data sheet, https://www.nvidia.com/en-us/data-center/{product}/"
    )


def _accelerator(
    name: str,
    teraflops: tuple[float, float | None, float, float | None],
    memory_gib: float,
    gigabytes_per_second: tuple[float, float, float],
    source: str,
) -> Device:
    """Build a row: TFLOP/s of (float32, tf32, 16 bit, 8 bit) and GB/s of (memory, peers, host)."""
    single, tf32, half, eighth = teraflops
    rates = {"float32": single, "tf32": tf32, "float16": half, "bfloat16": half}
    if name.startswith("V100"):  # no bfloat16 units: it runs at float32's rate
        del rates["bfloat16"]
    rates |= {"float8_e4m3fn": eighth, "float8_e5m2": eighth}
    peak = {dtype: rate * 1e12 for dtype, rate in rates.items() if rate is not None}
    memory, peers, host = (rate * 1e9 for rate in gigabytes_per_second)
    capacity = int(memory_gib * _GIB)
    return Device(name, peak, capacity, memory, peers, host, source)


# Memory is the GiB that torch reports on the card, the least seen where reports differ.
_TABLE = (
    _accelerator("V100-16GB", (15.7, None, 125, None), 15.77, (900, 150, 16), _sheet("v100")),
    _accelerator("V100-32GB", (15.7, None, 125, None), 31.73, (900, 150, 16), _sheet("v100")),
    _accelerator("A100-40GB", (19.5, 156, 312, None), 39.39, (1555, 300, 31), _sheet("a100")),
    _accelerator("A100-80GB", (19.5, 156, 312, None), 79.15, (2039, 300, 31), _sheet("a100")),
    _accelerator("H100-SXM", (67, 494.5, 989, 1979), 79.1, (3350, 450, 63), _sheet("h100")),
    _accelerator("H100-PCIe", (51, 378, 756, 1513), 79.1, (2000, 0, 63), _sheet("h100")),
    _accelerator("H200", (67, 494.5, 989, 1979), 139.72, (4800, 450, 63), _sheet("h200")),
    _accelerator("B200", (80, 1125, 2250, 4500), 178.35, (8000, 900, 63), _sheet("hgx")),
    _accelerator(
        "MI300X",
        (163.4, 653.7, 1307.4, 2614.9),
        191.69,
        (5300, 448, 63),
        "AMD MI300X data sheet, https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html",
    ),
    _accelerator("L40S", (91.6, 183, 362, 733), 44.32, (864, 0, 31), _sheet("l40s")),
    _accelerator("L4", (30.3, 60, 121, 242), 21.95, (300, 0, 31), _sheet("l4")),
    _accelerator(
        "RTX-4090",
        (82.6, 82.6, 165.2, 330.3),
        23.53,
        (1008, 0, 31),
        "NVIDIA Ada GPU architecture white paper, appendix A",
    ),
)
DEVICES: Mapping[str, Device] = {row.name: row for row in _TABLE}

# What else is true of a row, and people say: its form, its only capacity.
_MAKERS = frozenset({"nvidia", "amd", "tesla", "geforce", "instinct"})
_ALSO: Mapping[str, frozenset[str]] = {
    "V100-16GB": frozenset({"sxm"}),
    "V100-32GB": frozenset({"sxm"}),
    "A100-40GB": frozenset({"sxm"}),
    "A100-80GB": frozenset({"sxm"}),
    "H100-SXM": frozenset({"80gb", "hbm3"}),
    "H100-PCIe": frozenset({"80gb"}),
    "H200": frozenset({"141gb", "sxm"}),
    "B200": frozenset({"180gb", "sxm"}),
    "MI300X": frozenset({"192gb", "oam"}),
    "L40S": frozenset({"48gb", "pcie"}),
    "L4": frozenset({"24gb", "pcie"}),
    "RTX-4090": frozenset({"24gb", "pcie"}),
}


def device(name: str = "cpu") -> Device:
    """Look a device up by name, in any case and the forms in which people write it.

    Raises:
        ValueError: no such device, or one of several; the message lists those there are.

    >>> device("h100 sxm").memory_bytes // 2**30
    79
    >>> device("NVIDIA A100-SXM4-40GB").name
    'A100-40GB'
    >>> device("TPU")
    Traceback (most recent call last):
    ValueError: unknown device 'TPU'; known: cpu, V100-16GB, ...
    """
    if _plain(name) == "cpu":
        return cpu()
    for row in _TABLE:
        if _plain(row.name) == _plain(name):
            return row
    said = _words(name)
    rows = [row for row in _TABLE if _main_word(row) in said and said <= _known_words(row)]
    if len(rows) == 1:
        return rows[0]
    which = f"; {name!r} may be {' or '.join(row.name for row in rows)}" if rows else ""
    raise ValueError(f"unknown device {name!r}; known: {', '.join(('cpu', *DEVICES))}{which}")


def _words(name: str) -> set[str]:
    """Split a name into words; "80 GB", "80g" and "80gib" are all "80gb", SXM4 is SXM."""
    text = re.sub(r"(?<![a-z0-9])(\d+)\s*g(i?b)?(?![a-z])", r"\1gb", name.lower())
    words = re.findall(r"[a-z0-9]+", text)
    return {"sxm" if re.fullmatch(r"sxm\d?", word) else word for word in words}


def _main_word(row: Device) -> str:
    return _plain(row.name.removeprefix("RTX-").partition("-")[0])


def _known_words(row: Device) -> set[str]:
    return _words(row.name) | _ALSO[row.name] | _MAKERS


def reported(name: str, memory_bytes: int) -> Device:
    """Return the row of a card as its driver names it, with the memory that it reports.

    Raises:
        ValueError: a card that the table does not have.

    >>> reported("NVIDIA A100-SXM4-80GB", 85_000_000_000).name
    'A100-80GB'
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    rows = [row for row in _TABLE if words >= _driver_words(row.name)]
    if not rows or words & {"nvl", "laptop"}:
        raise ValueError(
            f"no figures for {name!r}; name the nearest of {', '.join(DEVICES)}, or pass a Device"
        )
    # The more words a row asks for the better it fits: "H100 PCIe" before "H100".
    best = max(len(_driver_words(row.name)) for row in rows)
    rows = [row for row in rows if len(_driver_words(row.name)) == best]
    nearest = min(rows, key=lambda row: abs(row.memory_bytes - memory_bytes))
    return replace(nearest, memory_bytes=memory_bytes)


def _driver_words(name: str) -> set[str]:
    """Return the words a driver uses for a row: the form SXM and the capacity go unsaid."""
    words = name.lower().split("-")
    return {word for word in words if word != "sxm" and not word.endswith("gb")}


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
