"""The device of this machine that a training step would run on.

Knows how to ask torch what there is. Knows no figures.
"""

from __future__ import annotations

import torch

from planner.graphs.hardware.devices import Device, cpu, reported


def local_device() -> Device:
    """Describe the first accelerator that torch sees, else the CPU.

    Raises:
        ValueError: an accelerator without a row in the table; the message says what to do.

    >>> local_device().memory_bytes > 0
    True
    """
    if not torch.cuda.is_available():
        return cpu()
    properties = torch.cuda.get_device_properties(0)
    return reported(properties.name, properties.total_memory)
