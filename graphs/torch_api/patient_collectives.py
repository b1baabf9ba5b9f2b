"""Collectives that wait a moment, for memory records that are complete."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from planner.graphs.torch_api.patches import patching
from planner.graphs.torch_api.versions import present

PATIENCE_SECONDS = 0.01
_RENAMED = ("torch.distributed:all_gather_single", "torch.distributed:reduce_scatter_single")


@contextmanager
def patient_collectives(seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Wait a moment before the handle of each collective goes.

    Gloo's threads then let go of its buffers before the caller does: the profiler does not see
    what they free, and the records would drift upwards.

    Args:
        seconds: how long; on a busy machine a thread may have to wait for its turn.
    """
    names = ["all_reduce", *(str(present(name)).partition(":")[2] for name in _RENAMED)]
    with patching() as patches:
        for name in names:
            patches.attribute(dist, name, _waiting(getattr(dist, name), seconds))
        yield


def _waiting(collective: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    @functools.wraps(collective)
    def call(*args: Any, async_op: bool = False, **kwargs: Any) -> Any:
        work = collective(*args, async_op=True, **kwargs)
        if async_op:
            return work
        work.wait()
        time.sleep(seconds)
        return None

    return call


@contextmanager
def patient_waits(seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Wait a moment before a collective of a plan's own program is waited for; see above.

    Args:
        seconds: how long.
    """
    packet = torch.ops._c10d_functional.wait_tensor
    own = packet.default

    def wait(tensor: Tensor) -> Tensor:
        time.sleep(seconds)
        made: Tensor = own(tensor)
        return made

    with patching() as patches:
        patches.attribute(packet, "default", wait)
        yield
