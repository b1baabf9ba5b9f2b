"""What the allocator really did: the peak of the bytes held while a function runs.

Knows how to read the allocator's own records, byte by byte on a CPU. Knows nothing of operators.
"""

from __future__ import annotations

import gc
import heapq
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch._C._autograd import (
    _disable_profiler_legacy,
    _enable_profiler_legacy,
)
from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PeakRecord(Generic[T]):
    """What a run held above the level it started from: the most, and what was left at its end.

    ``changes`` are the allocator's records in order, positive for bytes taken, negative for bytes
    given back; empty on an accelerator, whose allocator only keeps the totals.
    """

    result: T
    peak_bytes: int
    left_bytes: int
    changes: tuple[int, ...] = ()


def measure_peak(
    run: Callable[[], T], device: str | torch.device = "cpu", *, collect: bool = True
) -> PeakRecord[T]:
    """Run a function and return the most bytes its tensors held above the level at its start.

    On a CPU a block that was allocated before the run and is freed inside it leaves no record, so
    the peak can only be overstated: drop gradients and other leftovers first. Threads that the
    function starts through Python are not seen; autograd's and the kernels' own are.

    Args:
        run: what to run, once.
        device: whose allocator to watch.
        collect: collect garbage first, so that nothing older is freed halfway.

    >>> def run():
    ...     a = torch.empty(1000)
    ...     return torch.cat([a, a])
    >>> record = measure_peak(run)
    >>> record.peak_bytes, record.left_bytes
    (12000, 8000)
    """
    if collect:
        gc.collect()
    if torch.device(device).type == "cuda":
        return _accelerator_peak(run, torch.device(device))
    with recorded_changes() as changes:
        result = run()
    level = peak = 0
    for change in changes:
        level += change
        peak = max(peak, level)
    return PeakRecord(result, peak, level, tuple(changes))


def _accelerator_peak(run: Callable[[], T], device: torch.device) -> PeakRecord[T]:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    result = run()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - start
    return PeakRecord(result, peak, torch.cuda.memory_allocated(device) - start)


@contextmanager
def recorded_changes() -> Iterator[list[int]]:
    """Yield a list that holds, once the block is left, every change of the CPU allocator in it.

    The event profiler is used rather than ``torch.profiler``: the records are the same, but a
    session costs a millisecond instead of a second and says nothing on stderr.
    """
    changes: list[int] = []
    config = ProfilerConfig(
        ProfilerState.CPU,
        False,  # noqa: FBT003 - positional in the C++ signature: report input shapes
        True,  # noqa: FBT003 - profile memory
        False,  # noqa: FBT003 - with stack
        False,  # noqa: FBT003 - with FLOPs
        False,  # noqa: FBT003 - with modules
        _ExperimentalConfig(),
    )
    _enable_profiler_legacy(config)
    try:
        yield changes
    finally:
        threads: list[list[Any]] = _disable_profiler_legacy()
        # Each thread's events are in order; between threads only the clock can tell.
        events: Iterable[Any] = heapq.merge(*threads, key=_microseconds)
        changes.extend(e.cpu_memory_usage() for e in events if e.kind() == "memory_alloc")


def _microseconds(event: Any) -> float:
    return float(event.start_us())
