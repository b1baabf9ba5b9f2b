"""Bytes of CPU tensors to a file and back, one thread for each direction.

The file has all its room from the beginning, so that a full disk fails at once, and no name, so
that it is gone with the process, however that ends. Knows nothing of programs or schedules.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from planner.byte_sizes import format_both
from planner.errors import HostMemoryError


class _File:
    """A file without a name; its room is free again once nothing refers to it."""

    def __init__(self, number: int) -> None:
        self.number = number
        weakref.finalize(self, os.close, number).atexit = False


class Files:
    """Copies to files in a directory, by default that for temporary files.

    Raises:
        HostMemoryError: the system cannot write to a place in a file.
    """

    def __init__(self, directory: str | None) -> None:
        if not (hasattr(os, "pwrite") and hasattr(os, "preadv")):
            raise HostMemoryError(
                "the plan moves values to a file, for which this system has no pwrite and preadv: "
                "plan with offload=None"
            )
        self.directory = directory or tempfile.gettempdir()
        self._out = ThreadPoolExecutor(1, "to-host")
        self._back = ThreadPoolExecutor(1, "from-host")

    def block(self, size_bytes: int) -> _File:
        """Make a file with room for so many bytes.

        Raises:
            HostMemoryError: the directory has not as much, or nothing can be written there.
        """
        try:
            with tempfile.TemporaryFile(dir=self.directory, buffering=0) as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size_bytes)
                else:
                    file.truncate(size_bytes)
                return _File(os.dup(file.fileno()))
        except OSError as error:
            raise HostMemoryError(
                f"the plan moves values to a file of {format_both(size_bytes)} in "
                f"{self.directory!r}, which cannot be made there: {error.strerror or error}; free "
                "as much, or plan with another directory or less of it (offload=)"
            ) from error

    def shown(self, block: _File, size_bytes: int) -> mmap.mmap:
        """Return the bytes of a file as memory, which takes none of the process's own.

        Args:
            block: the file.
            size_bytes: how many it has.
        """
        return mmap.mmap(block.number, size_bytes)

    def settle(self) -> None:
        """Do nothing: whoever began a copy has waited for it, if need be when it was forgotten."""

    def finish(self) -> None:
        """Do nothing: whoever waits for a copy is the host."""

    def out(self, block: _File, offset: int, source: Tensor) -> Callable[[], None]:
        """Begin to write bytes; return what waits for the end.

        Args:
            block: the file.
            offset: where in it, in bytes.
            source: the bytes.
        """
        return _ended(self._out.submit(_write, block, offset, source), "written to")

    def back(self, block: _File, offset: int, target: Tensor) -> Callable[[], None]:
        """Begin to read bytes; return what waits for the end.

        Args:
            block: the file.
            offset: where in it, in bytes.
            target: where to.
        """
        return _ended(self._back.submit(_read, block, offset, target), "read from")


def _ended(copy: Future[None], what: str) -> Callable[[], None]:
    def wait() -> None:
        try:
            copy.result()
        except (OSError, MemoryError) as error:
            why = (isinstance(error, OSError) and error.strerror) or str(error) or "no memory"
            raise HostMemoryError(
                f"a value of a planned step could not be {what} its file: {why}; the step ends "
                "here, with parameters and gradients as they were before it reached this point"
            ) from error

    return wait


def _write(file: _File, offset: int, source: Tensor) -> None:
    left = memoryview(source.numpy().data)
    while left:
        done = os.pwrite(file.number, left, offset)
        left, offset = left[done:], offset + done


def _read(file: _File, offset: int, target: Tensor) -> None:
    left = memoryview(target.numpy().data)
    while left:
        done = os.preadv(file.number, [left], offset)
        if not done:
            raise OSError("the file ends before the value does")
        left, offset = left[done:], offset + done
