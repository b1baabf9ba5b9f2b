"""The device of this machine that a training step would run on.

Knows how to ask torch what there is. A card that is not in the table is described by what its
driver reports: multiprocessors, clocks and the width of its memory, times what a multiprocessor of
its architecture does in a cycle. What a driver leaves out is assumed on the safe side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from planner.graphs.hardware.columns import Device
from planner.graphs.hardware.devices import cpu, reported

ESTIMATED = "estimated from what the driver reports"

# Float32 multiply-adds of a multiprocessor in a cycle, and how many times as many its tensor units
# do of other types. NVIDIA: CUDA C++ Programming Guide, "Throughput of Native Arithmetic
# Instructions", and the white paper of each architecture; where GeForce and workstation cards of
# one architecture differ (float32 accumulation), the slower. They give the rates of the table
# within 10%.
_Speed = tuple[int, Mapping[str, float]]
_HALF_8 = {"float16": 8.0}
_GEFORCE = {"tf32": 1.0, "float16": 2.0, "bfloat16": 2.0}
_WITH_8_BIT = _GEFORCE | {"float8_e4m3fn": 4.0, "float8_e5m2": 4.0}


def _tensor(half: float) -> dict[str, float]:
    """Return multiples of an architecture that halves its rate with every doubling of bits."""
    eighth = dict.fromkeys(("float8_e4m3fn", "float8_e5m2"), 2 * half)
    return {"tf32": half / 2, "float16": half, "bfloat16": half} | eighth


_CUDA: Mapping[tuple[int, int], _Speed] = {
    (3, 0): (128, {}),
    (6, 0): (64, {"float16": 2.0}),
    (6, 1): (128, {}),
    (7, 0): (64, _HALF_8),
    (7, 5): (64, {"float16": 4.0}),
    (8, 0): (64, {"tf32": 8.0, "float16": 16.0, "bfloat16": 16.0}),
    (8, 6): (128, _GEFORCE),
    (8, 9): (128, _WITH_8_BIT),
    (9, 0): (128, _tensor(16)),
    (10, 0): (128, _tensor(32)),
    (12, 0): (128, _WITH_8_BIT),
}
# AMD: the white papers of CDNA 1 to 4 and RDNA 3; float32 is the matrix units'.
_AMD: Mapping[str, _Speed] = {
    "gfx908": (128, {"float16": 4.0, "bfloat16": 2.0}),
    "gfx90a": (128, {"float16": 4.0, "bfloat16": 4.0}),
    "gfx942": (128, _tensor(8)),
    "gfx950": (128, {k: v for k, v in _tensor(16).items() if k != "tf32"}),
    "gfx11": (128, {"float16": 2.0, "bfloat16": 2.0}),
    "gfx12": (128, {"float16": 2.0, "bfloat16": 2.0}),
    "gfx": (64, {"float16": 1.0}),
}
# What is assumed where a driver says nothing: a slow clock, a small card, PCIe 3 with 16 lanes.
_CLOCK_HZ = 1.2e9
_FLOAT32 = 5e12
_BANDWIDTH = 150e9
_HOST_LINK = 16e9


def local_device(index: int = 0) -> Device:
    """Describe an accelerator that torch sees, by default the first; the CPU if there is none.

    >>> local_device().memory_bytes > 0
    True
    """
    if not torch.cuda.is_available():
        return cpu()
    return described(torch.cuda.get_device_properties(index))


def device_at(kind: str, index: int = 0) -> Device:
    """Describe the device of this machine that torch calls by a kind ("cuda") and an index.

    Raises:
        ValueError: the machine has none of the kind or of the index, or torch does not describe it.

    >>> device_at("cpu").name
    'cpu'
    """
    if kind == "cpu":
        return cpu()
    module = torch.get_device_module(kind)
    if not module.is_available():
        raise ValueError(f"this machine has no {kind!r}")
    if not hasattr(module, "get_device_properties"):
        raise ValueError(f"torch does not describe {kind!r}")
    if not 0 <= index < (count := module.device_count()):
        raise ValueError(f"this machine has {count} of {kind!r}, counted from 0: none is {index}")
    return described(module.get_device_properties(index))


def described(properties: Any) -> Device:
    """Return the row of a card, or an estimate, from what torch reports of it.

    ``properties`` are those of ``torch.cuda.get_device_properties``: name, total_memory,
    multi_processor_count, and whatever there is of major, minor, gcnArchName, clock_rate,
    memory_clock_rate (both kHz) and memory_bus_width (bits).

    >>> from types import SimpleNamespace
    >>> card = SimpleNamespace(name="Some Card", total_memory=8 * 2**30)
    >>> described(card).peak_flops
    {'float32': 5000000000000.0}
    """
    try:
        return reported(properties.name, properties.total_memory)
    except ValueError:  # not in the table
        return _estimate(properties)


def _estimate(properties: Any) -> Device:
    lanes, multiples = _speed(properties)
    units = getattr(properties, "multi_processor_count", 0)
    clock = getattr(properties, "clock_rate", 0) * 1e3
    bits = getattr(properties, "memory_bus_width", 0)
    memory_clock = getattr(properties, "memory_clock_rate", 0) * 1e3 if units else 0
    float32 = units * lanes * 2 * (clock or _CLOCK_HZ) or _FLOAT32
    assumed = ["PCIe 3 to the host"]
    assumed += [] if units else [f"{_FLOAT32 / 1e12:g} TFLOP/s"]
    assumed += [] if clock or not units else [f"a clock of {_CLOCK_HZ / 1e9:g} GHz"]
    bandwidth = 2 * memory_clock * bits / 8
    assumed += [] if bandwidth else [f"memory of {_BANDWIDTH / 1e9:g} GB/s"]
    return Device(
        name=properties.name.strip() or "unnamed device",
        peak_flops={"float32": float32, **{k: m * float32 for k, m in multiples.items()}},
        memory_bytes=properties.total_memory,
        bandwidth=bandwidth or _BANDWIDTH,
        host_link=_HOST_LINK,
        source=f"{ESTIMATED}; assumed: {', '.join(assumed)}",
        reserve_bytes=min(2**30, properties.total_memory // 8),
        architecture=_architecture(properties),
    )


def _architecture(properties: Any) -> str | None:
    if name := getattr(properties, "gcnArchName", ""):
        return str(name).partition(":")[0]
    major = getattr(properties, "major", None)
    return None if major is None else f"sm_{major}{getattr(properties, 'minor', 0)}"


def _speed(properties: Any) -> _Speed:
    """Look up what a multiprocessor does; of an architecture not listed, what older ones do."""
    name = getattr(properties, "gcnArchName", "").partition(":")[0]
    for architecture, speed in _AMD.items():
        if name.startswith(architecture):
            return speed
    capability = (getattr(properties, "major", 0), getattr(properties, "minor", 0))
    older = [known for known in _CUDA if known <= capability]
    return _CUDA[max(older)] if older else (64, {})
