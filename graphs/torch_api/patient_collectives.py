"""Collectives that wait a moment, for memory records that are complete."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from planner.graphs.torch_api.versions import present

_PATIENCE_SECONDS = 0.01
_RENAMED = ("torch.distributed:all_gather_single", "torch.distributed:reduce_scatter_single")


@contextmanager
def patient_collectives() -> Iterator[None]:
    """Wait a moment before the handle of each collective goes.

    Gloo's threads then let go of its buffers before the caller does: the profiler does not see
    what they free, and the records would drift upwards.
    """
    names = ["all_reduce", *(str(present(name)).partition(":")[2] for name in _RENAMED)]
    before = {name: getattr(dist, name) for name in names}

    def waiting(name: str) -> Callable[..., Any]:
        @functools.wraps(before[name])
        def call(*args: Any, async_op: bool = False, **kwargs: Any) -> Any:
            work = before[name](*args, async_op=True, **kwargs)
            if async_op:
                return work
            work.wait()
            time.sleep(_PATIENCE_SECONDS)
            return None

        return call

    try:
        for name in names:
            setattr(dist, name, waiting(name))
        yield
    finally:
        for name, own in before.items():
            setattr(dist, name, own)
