"""The memory of this process as the operating system sees it, and what malloc does about it.

It is glibc's and Linux's; elsewhere it says 0 or does nothing.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
# the parameters of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


def give_freed_memory_back() -> None:
    """Make every large block a mapping of its own, gone when it is freed.

    Then the process's high-water mark means what the allocator's records mean. It is slow: the
    system clears each page again.
    """
    _mallopt((_MMAP_THRESHOLD, 65536))


def keep_freed_memory() -> None:
    """Reuse freed blocks instead of giving them back, as the allocators of accelerators do.

    Without it the time of a step on a CPU is in part that of the system clearing pages, and
    differs from run to run.
    """
    _mallopt((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))


def _mallopt(*settings: tuple[int, int]) -> None:
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for parameter, value in settings:
            library.mallopt(parameter, value)


def resident_growth(run: Callable[[], T]) -> tuple[T, int]:
    """Run a function; return its result and the most resident memory grew by meanwhile.

    The growth is 0 where the system does not tell.
    """
    if sys.platform != "linux":
        return run(), 0
    _RESET.write_text("5")  # lowers the high-water mark to the present level, see proc(5)
    before = _kilobytes("VmRSS")
    result = run()
    return result, 1024 * max(0, _kilobytes("VmHWM") - before)


def _kilobytes(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
