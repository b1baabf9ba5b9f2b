"""How a row of the table is written: figures as data sheets print them, names as people say them.

Rates are dense, without sparsity; where a sheet prints only the sparse rate, half of it. Memory is
the GiB that torch reports on the card, the least seen where reports differ; for cards of which no
report was seen, what others with such memory lose of it. On the card itself its own report counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner.graphs.hardware.columns import GIB, Device, Node
from planner.graphs.hardware.table.architectures import architecture_of

NO = None
"""No units for a dtype: it runs at float32's rate."""

ASSUMED = "assumed: servers of this card differ, pass link= and devices_per_node="
MACHINE = Node(8, 1.5625e9, ASSUMED)
"""A desktop or a rented machine: 100 Gb/s for eight cards."""

EFFICIENCY: Mapping[str, dict[str, Any]] = {
    "sm_80": {"convolution_efficiency": 0.35, "attention_efficiency": 0.55},
    "sm_90": {"compute_efficiency": 0.53},
}
"""What share of a sheet's rate kernels reach, by architecture, where it is not the usual 0.7.

Convolutions on A100: ResNet-50 in TF32 and under AMP (NVIDIA DeepLearningExamples), two rows of
``python -m benchmarks.published``. Attention on A100: "50-73% of the theoretical maximum" (Dao,
"FlashAttention-2", arXiv 2307.08691), forward and backward, what a causal mask hides not counted.
Products on Hopper: the median of nine published training runs over several devices (torchtitan,
llm-foundry); of eleven on A100 it is 0.7.
"""

_DTYPES = (
    ("float32",),
    ("tf32",),
    ("float16",),
    ("bfloat16",),
    ("float8_e4m3fn", "float8_e5m2"),
)


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device and the words, beside those of its name, that are true of it."""

    device: Device
    words: frozenset[str]


def row(  # noqa: PLR0917 - it is read like the line of a table that it is
    name: str,
    teraflops: tuple[float | None, ...],
    memory_gib: float,
    gigabytes_per_second: tuple[float, float, float],
    node: Node,
    source: str,
    also: str = "",
) -> DeviceRow:
    """Write a row.

    Args:
        name: what plans call it.
        teraflops: TFLOP/s of (float32, tf32, float16, bfloat16, 8 bit).
        memory_gib: GiB that torch reports.
        gigabytes_per_second: GB/s of (memory, peers in a node, host), one direction; 0 peers are
            reached over the host's link.
        node: its usual server.
        source: the vendor's paper that the figures are from; "{}" stands for the name.
        also: words that people or drivers add to the name: the form, its only capacity.

    >>> row("X", (10, NO, 20, NO, NO), 8, (300, 0, 31), MACHINE, "{} sheet").device.peak_flops
    {'float32': 10000000000000.0, 'float16': 20000000000000.0}
    """
    memory, peers, host = (rate * 1e9 for rate in gigabytes_per_second)
    peak = {
        dtype: rate * 1e12
        for dtypes, rate in zip(_DTYPES, teraflops, strict=True)
        for dtype in dtypes
        if rate is not None
    }
    said, capacity = source.format(name.replace("-", " ")), int(memory_gib * GIB)
    built_for = architecture_of(name)
    shares = EFFICIENCY.get(built_for or "", {})
    device = Device(
        name, peak, capacity, memory, peers, host, said, node=node, architecture=built_for, **shares
    )
    return DeviceRow(device, frozenset(also.split()))


def sheet(product: str) -> str:
    """Name the data sheet of a product of NVIDIA's data centers."""
    return (
        f"NVIDIA {product.upper()} data sheet, https://www.nvidia.com/en-us/data-center/{product}/"
    )
