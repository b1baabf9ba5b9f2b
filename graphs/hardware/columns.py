"""The columns of a device's row: ``Device``, and ``Node``, the server it usually sits in.

Knows what a row may say and which figures make no sense. Knows no device: the rows are in
``graphs.hardware.table``, and ``graphs.hardware.devices`` looks them up.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

GIB = 2**30


class Kernel(enum.Enum):
    """What bounds a kernel, and so which share of a data sheet's rate it reaches."""

    PRODUCT = "product"
    CONVOLUTION = "convolution"
    ATTENTION = "attention"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Node:
    """The usual server of a device: how many it has, and what they share.

    ``devices`` is how many the scale-up link joins, ``network`` one device's share of what leaves
    the node, in bytes/s and one direction. ``host_memory_bytes`` is the memory of the whole host,
    ``disk_bytes_per_second`` what its disks read together. ``None`` is unknown.

    >>> Node(8, 25e9, "mine").host_memory_bytes is None
    True
    """

    devices: int
    network: float
    source: str
    host_memory_bytes: int | None = None
    disk_bytes_per_second: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.devices, bool) or not isinstance(self.devices, int) or self.devices < 1:
            raise ValueError(f"a node of {self.devices!r} devices: expected a whole number from 1")
        if not 0 < self.network < math.inf:
            raise ValueError(f"a network of {self.network!r} bytes/s: expected more than 0")
        for column in ("host_memory_bytes", "disk_bytes_per_second"):
            value = getattr(self, column)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{column} of a node is {value!r}: expected more than 0, or None")


@dataclass(frozen=True, slots=True)
class Device:
    """One device. Rates are the data sheet's, dense; the efficiencies say what is achieved.

    ``peak_flops`` maps a dtype's name ("float32", "bfloat16", ...) to FLOP/s; "tf32" is float32
    on tensor cores, which torch leaves off by default. ``memory_bytes`` is what the driver
    reports, below the number on the box, and ``bandwidth`` its bytes/s. ``scale_up`` joins devices
    of a node and ``host_link`` leads to the host, in bytes/s and one direction, 0 if there is none
    or it is not known. ``source`` says where the figures are from. ``reserve_bytes`` is the context
    and the segments' rounding, gone before the first tensor; fragmentation is not in it.

    Efficiencies are fractions of those rates: ``compute_efficiency`` of matrix products,
    ``convolution_efficiency`` and ``attention_efficiency`` of those kernels (``None``, unknown: as
    of products), ``bandwidth_efficiency`` of kernels bound by memory. ``launch_seconds`` is what
    a kernel takes beside its work where one follows another: by default 1 us (NVIDIA, "Getting
    started with CUDA graphs": 3.8 us for one of 2.9). ``issue_seconds`` is what the host takes to
    issue a call while the device works, so that no call takes less: by default 6 us of Python,
    dispatch and autograd (a chain of operators on tiny tensors on one core of a server) and 2 of
    the driver; 0 where host and device are one. ``node`` is the usual server, ``None`` if unknown.
    ``architecture``
    is what compilers build for ("sm_90", "gfx942"), by which torch chooses kernels.

    >>> Device("mine", {"float32": 20e12}, 16 * 2**30, 500e9).host_link
    0.0
    """

    name: str
    peak_flops: Mapping[str, float] = field(hash=False)
    memory_bytes: int
    bandwidth: float
    scale_up: float = 0.0
    host_link: float = 0.0
    source: str = "given"
    reserve_bytes: int = GIB
    granularity_bytes: int = 512
    compute_efficiency: float = 0.7
    bandwidth_efficiency: float = 0.75
    launch_seconds: float = 1e-6
    issue_seconds: float = 8e-6
    convolution_efficiency: float | None = None
    attention_efficiency: float | None = None
    node: Node | None = None
    architecture: str | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("a device without a name: expected one to call it by")
        rates = self.peak_flops.values()
        if "float32" not in self.peak_flops or not all(0 < rate < math.inf for rate in rates):
            raise ValueError(f"{self.name}: peak_flops needs a positive rate for float32 at least")
        if not 0 < self.bandwidth < math.inf or self.memory_bytes <= self.reserve_bytes:
            raise ValueError(
                f"{self.name}: bandwidth or memory is not positive: expected bytes/s, and more "
                f"bytes of memory than the reserve of {self.reserve_bytes!r}"
            )
        self._check("memory_bytes", "reserve_bytes", least=0, whole=True)
        self._check("granularity_bytes", least=1, whole=True)
        self._check("scale_up", "host_link", "launch_seconds", "issue_seconds", least=0)
        for column in ("compute", "bandwidth", "convolution", "attention"):
            share = getattr(self, f"{column}_efficiency")
            if share is not None and not 0 < share <= 1:
                raise ValueError(
                    f"{self.name}: {column}_efficiency is {share!r}: expected a fraction up to 1"
                )

    def _check(self, *columns: str, least: int, whole: bool = False) -> None:
        for column in columns:
            value = getattr(self, column)
            if not least <= value < math.inf or (whole and not isinstance(value, int)):
                kind = "a whole number" if whole else "a number"
                raise ValueError(
                    f"{self.name}: {column} is {value!r}: expected {kind} from {least}"
                )

    def efficiency(self, kernel: Kernel) -> float:
        """Return the share of its rate that a kind of kernel reaches.

        >>> Device("mine", {"float32": 20e12}, 2**34, 500e9).efficiency(Kernel.ATTENTION)
        0.7
        """
        match kernel:
            case Kernel.PRODUCT:
                known: float | None = self.compute_efficiency
            case Kernel.CONVOLUTION:
                known = self.convolution_efficiency
            case Kernel.ATTENTION:
                known = self.attention_efficiency
            case Kernel.MEMORY:
                known = self.bandwidth_efficiency
            case _:
                assert_never(kernel)
        return self.compute_efficiency if known is None else known

    @property
    def convolves_channels_last(self) -> bool:
        """Whether kernels of convolutions want channels last, and others are reordered for them.

        Those of NVIDIA's tensor cores do (cuDNN, "Data and filter formats": it "may use ...
        NCHW-to-NHWC transformations to call the Tensor Core operations").
        """
        return (self.architecture or "").startswith("sm_")

    def flops_per_second(self, dtype: str, kernel: Kernel = Kernel.PRODUCT) -> float:
        """Return the rate that products (or another kind of kernel) reach.

        A dtype that is not listed runs at float32's rate.

        >>> from planner.graphs.hardware.devices import device
        >>> round(device("A100-80GB").flops_per_second("bfloat16") / 1e12, 1)
        218.4
        """
        peak = self.peak_flops.get(dtype, self.peak_flops["float32"])
        return peak * self.efficiency(kernel)

    def bytes_per_second(self) -> float:
        """Return the memory rate that is reached."""
        return self.bandwidth * self.efficiency(Kernel.MEMORY)
