"""Silence what torch says of its own internals while a step is captured, in one thread alone."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from typing import Any, ClassVar

from planner.graphs.torch_api.patches import Patches

_FAKE_TENSORS = logging.getLogger("torch._subclasses.fake_tensor")


class _OfSilentThreads(type):
    """A class that every warning is a subclass of, in the threads that are silent."""

    threads: ClassVar[set[int]] = set()

    def __subclasscheck__(cls, other: Any) -> bool:
        return issubclass(other, Warning) and threading.get_ident() in cls.threads


class _Silenced(Warning, metaclass=_OfSilentThreads):
    """What the filter names: it takes nothing from a thread that is not silent."""


def silence_warnings(patches: Patches) -> None:
    """Ignore the warnings of this thread.

    ``warnings.catch_warnings`` would ignore those of all threads, and undo what others set.
    """
    patches.on_undo(_forget_filter)
    patches.member(_OfSilentThreads.threads, threading.get_ident())
    warnings.simplefilter("ignore", category=_Silenced)


def _forget_filter() -> None:
    with contextlib.suppress(ValueError):  # another thread restored the filters of an earlier time
        warnings.filters.remove(("ignore", None, _Silenced, None, 0))  # type: ignore[attr-defined]


def silence_fake_tensors(patches: Patches) -> None:
    """Let an operator that fails on fake tensors be told of once, by its error."""
    silent = _OnlyOthers(threading.get_ident())
    patches.on_undo(lambda: _FAKE_TENSORS.removeFilter(silent))
    _FAKE_TENSORS.addFilter(silent)


class _OnlyOthers(logging.Filter):
    """Lets pass what is not said by one thread."""

    def __init__(self, thread: int) -> None:
        super().__init__()
        self._thread = thread

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread
