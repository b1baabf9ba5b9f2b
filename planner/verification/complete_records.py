"""Steps of all ranks watched until the allocator's records of some are complete.

A thread of gloo's that lets go of a buffer last leaves no record of it, and a machine that keeps
such threads waiting makes a step hold more than it needs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from planner.graphs.torch_api.allocation_records import PeakRecord, measure_peak
from planner.graphs.torch_api.patient_collectives import (
    PATIENCE_SECONDS,
    patient_collectives,
    patient_waits,
)
from planner.graphs.torch_api.storages import storage_key

MOST_STEPS = 8
"""How many steps are watched at most."""
_COMPLETE, _SMALL_BYTES = 3, 4096


@dataclass(frozen=True)
class Watched:
    """The record of the step that held least, and the result of the last of so many ``steps``.

    ``complete`` says that it accounts for what is left at its end, as three steps do; else what
    such threads freed is missing and the peak is the least of overstated ones.
    """

    record: PeakRecord[float]
    complete: bool
    steps: int


def watch_steps(step: Callable[[], float], clear: Callable[[], None]) -> Watched:
    """Watch steps until the records of three are complete; all ranks take part.

    Each is given more patience than the one before.

    Args:
        step: a whole one.
        clear: drops what the one before has left.
    """
    overstated, complete = list[PeakRecord[float]](), list[PeakRecord[float]]()
    for nth in range(MOST_STEPS):
        clear()
        before, patience = tensor_bytes(), (1 + 3 * nth) * PATIENCE_SECONDS
        with patient_collectives(patience), patient_waits(patience):
            record = measure_peak(step)
        accounted = abs(record.left_bytes - (tensor_bytes() - before)) < _SMALL_BYTES
        (complete if accounted else overstated).append(record)
        waiting = torch.tensor(int(len(complete) < _COMPLETE))  # all ranks go on together
        dist.all_reduce(waiting)
        if not waiting.item():
            break
    least = min(complete or overstated, key=lambda found: found.peak_bytes)
    return Watched(replace(least, result=record.result), bool(complete), nth + 1)


def tensor_bytes() -> int:
    """Add up the storages of all tensors there are."""
    storages: dict[int, int] = {}
    for found in gc.get_objects():
        if type(found) in (Tensor, nn.Parameter):  # isinstance would make torch's proxies speak
            storages[storage_key(found)] = found.untyped_storage().nbytes()
    return sum(storages.values())
