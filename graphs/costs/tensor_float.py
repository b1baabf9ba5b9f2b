"""Which kernels round float32 to TensorFloat-32, by torch's flags in this process.

Torch's defaults let cuDNN's convolutions and not cuBLAS's products
(pytorch.org/docs/stable/notes/cuda.html, "TensorFloat-32 on Ampere and later").
"""

from __future__ import annotations

import torch

from planner.graphs.hardware.devices import Kernel


def tf32_kernels() -> frozenset[Kernel]:
    """Return the kinds of kernels that do.

    >>> Kernel.CONVOLUTION in tf32_kernels(), Kernel.PRODUCT in tf32_kernels()
    (True, False)
    """
    found = set()
    if torch.backends.cudnn.conv.fp32_precision == "tf32":  # type: ignore[attr-defined]
        found.add(Kernel.CONVOLUTION)
    if torch.backends.cuda.matmul.fp32_precision == "tf32":
        found |= {Kernel.PRODUCT, Kernel.ATTENTION}
    return frozenset(found)
