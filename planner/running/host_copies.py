"""Values on their way to the host and back, while the device computes.

A program calls ``send``, ``left``, ``fetch`` and ``arrived`` at the steps where the schedule
offloads, frees, fetches and reads. A block of the host's memory, as large as the plan says, holds
the copies of one run, each at its place. On CUDA a block is pinned memory, and each direction a
stream; on a CPU a block is a file that no directory lists, and each direction a thread.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
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


class HostMemory:
    """The blocks that the runs of a program take turns in; one is taken at once, to be sure of it.

    Raises:
        HostMemoryError: there is no room for a block, or the device is none that values leave.
    """

    def __init__(self, size_bytes: int, device: torch.device, directory: str | None) -> None:
        self.size_bytes, self.device = size_bytes, device
        if device.type not in {"cpu", "cuda"}:
            raise HostMemoryError(
                f"the plan moves values to the host, which works on 'cuda' and 'cpu', and the "
                f"model is on {device.type!r}: plan with offload=None"
            )
        self.link: Way = Files(directory) if device.type == "cpu" else Pinned(device)
        self._free = [self.link.block(size_bytes)]

    def opener(self) -> Callable[[], Lease]:
        """Return what a program calls before its first copy."""

        def open_block() -> Lease:
            return Lease(self)

        return open_block

    def take(self) -> Any:
        """Return a block that no run is in."""
        return self._free.pop() if self._free else self.link.block(self.size_bytes)

    def give_back(self, block: Any) -> None:
        """Take a block back from a run."""
        self._free.append(block)


class Lease:
    """A run's block: it is given back once nothing of the run refers to it."""

    def __init__(self, memory: HostMemory) -> None:
        self.memory, self.block = memory, memory.take()
        weakref.finalize(self, memory.give_back, self.block).atexit = False


@dataclass(frozen=True)
class _Form:
    """How a tensor lies in its storage."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor) -> _Form:
        return cls(tuple(x.shape), x.stride(), int(x.storage_offset()), x.dtype)

    def on(self, raw: Tensor) -> Tensor:
        made = torch.empty(0, dtype=self.dtype, device=raw.device)
        return made.set_(raw.untyped_storage(), self.offset, self.shape, self.stride)


class Sent:
    """A value on the host, or on its way there or back. It is held until the copy is waited for."""

    def __init__(self, lease: Lease, offset: int, holders: Sequence[Tensor]) -> None:
        self.lease, self.offset = lease, offset
        self._wait: Callable[[], None] | None = None
        self.forms = [_Form.of(x) for x in holders]
        self.raw: Tensor | None = _bytes_of(holders[0])
        self.size = self.raw.numel()
        self._wait = lease.memory.link.out(lease.block, offset, self.raw)

    def left(self) -> None:
        """Let the device wait for the copy out, and hold the value here no longer."""
        self.wait()
        self.raw = None

    def fetch(self) -> None:
        """Begin to copy the value back into memory of its own."""
        device = self.lease.memory.device
        self.raw = torch.empty(self.size, dtype=torch.uint8, device=device)
        self._wait = self.lease.memory.link.back(self.lease.block, self.offset, self.raw)

    def arrived(self) -> list[Tensor]:
        """Let the device wait for the copy back; return the tensors as they were sent."""
        self.wait()
        raw, self.raw = self.raw, None
        assert raw is not None, "it was fetched"
        return [form.on(raw) for form in self.forms]

    def wait(self) -> None:
        """Wait for the copy under way, if there is one."""
        wait, self._wait = self._wait, None
        if wait is not None:
            wait()

    def __del__(self) -> None:
        """Let nothing take the memory of a copy under way, whatever ended the run."""
        with suppress(HostMemoryError):  # nobody is left to read the value
            self.wait()


def _bytes_of(x: Tensor) -> Tensor:
    """Return all bytes of a tensor's storage."""
    storage = x.untyped_storage()
    made = torch.empty(0, dtype=torch.uint8, device=x.device)
    return made.set_(storage, 0, (storage.nbytes(),), (1,))


def send(lease: Lease, offset: int, *holders: Tensor) -> Sent:
    """Begin to copy the storage of some tensors out; they are views of one.

    Args:
        lease: of the run.
        offset: of its place in the block.
        holders: what is wanted back.
    """
    return Sent(lease, offset, holders)


def left(sent: Sent) -> None:
    """Wait for the end of a copy out."""
    sent.left()


def fetch(sent: Sent) -> Sent:
    """Begin to copy a value back."""
    sent.fetch()
    return sent


def arrived(sent: Sent) -> list[Tensor]:
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
