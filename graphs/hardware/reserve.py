"""What of a device's memory is gone before the first tensor, part by part.

``Device.reserve_bytes`` is the sum that plans count; here is what it is made of, and what is not in
it because only the card decides.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.graphs.hardware.columns import GIB, Device

CUBLAS_BYTES = 2 * 4096 * 1024 + 8 * 16 * 1024
"""Two buffers of 4 MiB and eight of 16 KiB for each handle and stream, from the first product on:
CUBLAS_WORKSPACE_CONFIG=:4096:2:16:8, torch's default (aten/src/ATen/cuda/CublasHandlePool.cpp)."""

CUBLAS_HOPPER_BYTES = 33 * 2**20
"""On Hopper eight of 4 MiB, as NVIDIA recommends (same file; cuBLAS manual, section 2.1.7), and
one of cuBLASLt's."""

_THREADS = 2
"""Forward runs in the thread that calls it and backward in one of autograd's, each with a handle of
its own: 65 MiB were measured on an H200 (``benchmarks.gpu``)."""

NCCL_BYTES = 3 * 2**29
"""What the communicators of a process group take on a device: up to 1.5 GiB, by channels and
peers, as users of eight and more devices report. Assumed: it was not measured by this project."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something that a device keeps; ``size_bytes`` is ``None`` where only the card knows.

    ``allocated`` tells what torch's allocator gives, and counts as its own.
    """

    name: str
    size_bytes: int | None
    counted: bool
    allocated: bool = False


def reserve_parts(device: Device) -> tuple[Part, ...]:
    """Return what a device keeps for itself; the counted parts add up to its reserve.

    >>> from planner.graphs.hardware.devices import device
    >>> [(part.name, part.size_bytes) for part in reserve_parts(device("A100-40GB"))][:2]
    [('context and kernels of CUDA', 1056702464), ('workspaces of cuBLAS', 17039360)]
    """
    architecture = device.architecture or "sm_80"
    if not architecture.startswith("sm_"):
        return (Part("what the device keeps", device.reserve_bytes, counted=True),)
    cublas = _THREADS * (CUBLAS_HOPPER_BYTES if architecture == "sm_90" else CUBLAS_BYTES)
    own = min(device.reserve_bytes, GIB)
    cublas = min(cublas, own)
    found = [
        Part("context and kernels of CUDA", own - cublas, counted=True),
        Part("workspaces of cuBLAS", cublas, counted=True, allocated=True),
    ]
    if device.reserve_bytes > own:
        found.append(Part("what else lives there", device.reserve_bytes - own, counted=True))
    found.append(
        Part(
            "workspaces of cuDNN, whose algorithms the card chooses",
            None,
            counted=False,
            allocated=True,
        )
    )
    return tuple(found)
