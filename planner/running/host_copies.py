"""Values on their way to the host and back, while the device computes.

A program calls ``send``, ``left``, ``fetch`` and ``arrived`` at the steps where the schedule
offloads, frees, fetches and reads. A block of the host's memory, as large as the plan says, holds
the copies of one run, each at its place. On CUDA a block is pinned memory, and each direction a
stream; on a CPU a block is a file that no directory lists, and each direction a thread.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from planner.errors import HostMemoryError
from planner.running.copies_to_files import Files
from planner.running.copies_to_pinned import Pinned


class Way(Protocol):
    """How a kind of device copies: begin, and wait for the end where the program relies on it."""

    def block(self, size_bytes: int) -> Any:
        """Take memory of the host.

        Raises:
            HostMemoryError: there is not as much.
        """

    def shown(self, block: Any, size_bytes: int) -> Any:
        """Return a buffer that shows the bytes of a block where they lie.

        Args:
            block: of this device's kind.
            size_bytes: how many it has.
        """

    def settle(self) -> None:
        """Let what is begun from now on come after all that was begun before."""

    def finish(self) -> None:
        """Let the host wait until all that went out is there, for whoever reads it then."""

    def out(self, block: Any, offset: int, source: Tensor) -> Callable[[], None]:
        """Begin to copy bytes out; return what waits for the end.

        Args:
            block: of this device's kind.
            offset: of the copy's place in it, in bytes.
            source: the bytes.
        """

    def back(self, block: Any, offset: int, target: Tensor) -> Callable[[], None]:
        """Begin to copy bytes back, once the copy out has ended; return what waits for the end.

        Args:
            block: of this device's kind.
            offset: of the copy's place in it, in bytes.
            target: where to.
        """


def way_of(device: torch.device, directory: str | None) -> Way:
    """Return how values of a device are copied.

    Args:
        device: whose.
        directory: of a CPU's files; by default that for temporary files.

    Raises:
        HostMemoryError: the device is none that values leave.
    """
    if device.type not in {"cpu", "cuda"}:
        raise HostMemoryError(
            f"the plan moves values to the host, which works on 'cuda' and 'cpu', and the model is "
            f"on {device.type!r}: plan with offload=None"
        )
    return Files(directory) if device.type == "cpu" else Pinned(device)


class HostMemory:
    """The blocks that the runs of a program take turns in; one is taken at once, to be sure of it.

    Raises:
        HostMemoryError: there is no room for a block, or the device is none that values leave.
    """

    def __init__(self, size_bytes: int, device: torch.device, directory: str | None) -> None:
        self.size_bytes, self.device, self.directory = size_bytes, device, directory
        self._begin()

    def opener(self) -> Callable[[], Lease]:
        """Return what a program calls before its first copy."""

        def open_block() -> Lease:
            return Lease(self)

        return open_block

    def take(self) -> Any:
        """Return a block that no run is in.

        Raises:
            HostMemoryError: there is no room for another, or a CUDA graph is being captured.
        """
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise HostMemoryError(
                "the plan moves values to the host, which a CUDA graph cannot: its replays would "
                "share one run's memory there. Run the planned model outside torch.cuda.graph, or "
                "plan with offload=None"
            )
        if self._process != os.getpid():  # a fork has its parent's files, and none of its threads
            self._begin()
        self.link.settle()
        try:
            return self._free.pop()
        except IndexError:
            return self.link.block(self.size_bytes)

    def give_back(self, block: Any, process: int) -> None:
        """Take a block back from a run; a few are kept for later ones.

        Args:
            block: of this memory.
            process: where the run was.
        """
        if process == self._process == os.getpid() and len(self._free) < _KEPT_BLOCKS:
            self._free.append(block)

    def _begin(self) -> None:
        self._process = os.getpid()
        self.link = way_of(self.device, self.directory)
        self._free = [self.link.block(self.size_bytes)]


_KEPT_BLOCKS = 2
"""How many blocks wait for later runs: one for each of two losses of which none is backward yet."""


class Lease:
    """A run's block: it is given back once nothing of the run refers to it."""

    def __init__(self, memory: HostMemory) -> None:
        self.memory, self.block, self.process = memory, memory.take(), os.getpid()
        finalizer = weakref.finalize(self, memory.give_back, self.block, self.process)
        finalizer.atexit = False

    @property
    def is_here(self) -> bool:
        """Whether the run was begun in this process, not in one that this is a fork of."""
        return self.process == os.getpid()


@dataclass(frozen=True)
class _Form:
    """How a tensor lies in its storage."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    conjugated: bool

    @classmethod
    def of(cls, x: Tensor) -> _Form:
        assert not x.is_neg(), "an op that makes a value makes no negated view"
        return cls(tuple(x.shape), x.stride(), int(x.storage_offset()), x.dtype, x.is_conj())

    def on(self, raw: Tensor) -> Tensor:
        made = torch.empty(0, dtype=self.dtype, device=raw.device)
        made = made.set_(raw.untyped_storage(), self.offset, self.shape, self.stride)
        return made.conj() if self.conjugated else made


class Sent:
    """A value on the host, or on its way there or back. It is held until the copy is waited for."""

    def __init__(self, lease: Lease, offset: int, room: int, x: Tensor) -> None:
        self.lease, self.offset = lease, offset
        self._wait: Callable[[], None] | None = None
        self.form = _Form.of(x)
        self.raw: Tensor | None = bytes_of(x)
        self.size = x.untyped_storage().nbytes()
        if self.size > room:
            raise HostMemoryError(
                f"a value that the plan moves to the host is of {self.size} bytes, and planned of "
                f"{room}: plan with offload=None"
            )
        self._wait = lease.memory.link.out(lease.block, offset, self.raw)

    def left(self) -> None:
        """Let the device wait for the copy out, and hold the value here no longer."""
        self.wait()
        self.raw = None

    def fetch(self) -> None:
        """Begin to copy the value back into memory of its own.

        Raises:
            HostMemoryError: the run was begun in the process that this one is a fork of.
        """
        if not self.lease.is_here:
            raise HostMemoryError(
                "a planned step was begun before a fork and goes on in the child, where what it "
                "moved to the host is not: begin it after the fork, or plan with offload=None"
            )
        device = self.lease.memory.device
        self.raw = torch.empty(self.size, dtype=torch.uint8, device=device)
        self._wait = self.lease.memory.link.back(self.lease.block, self.offset, self.raw)

    def arrived(self) -> Tensor:
        """Let the device wait for the copy back; return the tensor as it was sent."""
        self.wait()
        raw, self.raw = self.raw, None
        assert raw is not None, "it was fetched"
        return self.form.on(raw)

    def wait(self) -> None:
        """Wait for the copy under way, if there is one in this process."""
        wait, self._wait = self._wait, None
        if wait is not None and self.lease.is_here:
            wait()

    def __del__(self) -> None:
        """Let nothing take the memory of a copy under way, whatever ended the run."""
        with suppress(HostMemoryError):  # nobody is left to read the value
            self.wait()


def bytes_of(x: Tensor) -> Tensor:
    """Return all bytes of a tensor's storage.

    Args:
        x: a view of it.
    """
    storage = x.untyped_storage()
    made = torch.empty(0, dtype=torch.uint8, device=x.device)
    return made.set_(storage, 0, (storage.nbytes(),), (1,))


def send(lease: Lease, offset: int, room: int, x: Tensor) -> Sent:
    """Begin to copy the storage of a tensor out.

    Args:
        lease: of the run.
        offset: of its place in the block.
        room: how many bytes the place has.
        x: the tensor.

    Raises:
        HostMemoryError: it has more bytes.
    """
    return Sent(lease, offset, room, x)


def left(sent: Sent) -> None:
    """Wait for the end of a copy out."""
    sent.left()


def fetch(sent: Sent) -> Sent:
    """Begin to copy a value back."""
    sent.fetch()
    return sent


def arrived(sent: Sent) -> Tensor:
    """Wait for the end of a copy back; return what was sent."""
    return sent.arrived()


_KNOWN: weakref.WeakValueDictionary[tuple[int, torch.device, str | None], HostMemory] = (
    weakref.WeakValueDictionary()
)


def host_memory(size_bytes: int, device: torch.device, directory: str | None) -> HostMemory:
    """Return the blocks of a size: programs of one plan for several sizes share them.

    Args:
        size_bytes: of a block.
        device: whose values are moved.
        directory: of a CPU's files; by default that for temporary files.

    Raises:
        HostMemoryError: there is no room for a block, or the device is none that values leave.
    """
    key = size_bytes, device, directory
    found = _KNOWN.get(key)
    if found is None:
        _KNOWN[key] = found = HostMemory(size_bytes, device, directory)
    return found
