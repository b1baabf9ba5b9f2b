"""Bytes of CUDA tensors to pinned memory of the host and back, one stream for each direction.

The compute stream waits, and the host only where it is to read what went out. What a copy reads or
writes is freed only after the compute stream has been told to wait for it, so that the allocator
may give the memory away at once: whatever is put there is ordered after the copy. Knows nothing of
programs or schedules.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from planner.byte_sizes import format_both
from planner.errors import HostMemoryError


class Pinned:
    """Copies between a CUDA device and pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._out = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._back = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def block(self, size_bytes: int) -> Any:
        """Pin so many bytes: as many, where torch's own pool would round up to a power of two.

        Raises:
            HostMemoryError: the host has not as much to pin.
        """
        try:
            made = torch.empty(size_bytes, dtype=torch.uint8)
        except RuntimeError as error:
            raise _not_had(size_bytes, "the system has not as much") from error
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if status := int(runtime.cudaHostRegister(made.data_ptr(), size_bytes, 0)):
            _forget_error(self.device)
            raise _not_had(size_bytes, f"cudaHostRegister: error {status}")
        weakref.finalize(made, _unpin, runtime, self.device, made.data_ptr()).atexit = False
        return made

    def shown(self, block: Any, size_bytes: int) -> Any:
        """Return the bytes of pinned memory.

        Args:
            block: pinned memory.
            size_bytes: how many it has.
        """
        return block[:size_bytes].numpy()

    def settle(self) -> None:
        """Let copies out wait for all copies back: a block may be a new run's before an old one's
        last copy back has ended.
        """
        self._out.wait_stream(self._back)

    def finish(self) -> None:
        """Let the host wait for all copies out."""
        self._out.synchronize()

    def out(self, block: Any, offset: int, source: Tensor) -> Callable[[], None]:
        """Begin to copy bytes out; return what lets the compute stream wait for the end.

        Args:
            block: pinned memory.
            offset: where in it, in bytes.
            source: the bytes.
        """
        return self._copy(self._out, block[offset : offset + source.numel()], source)

    def back(self, block: Any, offset: int, target: Tensor) -> Callable[[], None]:
        """Begin to copy bytes back; return what lets the compute stream wait for the end.

        The compute stream has waited for the copy out by then, where the value was freed.

        Args:
            block: pinned memory.
            offset: where in it, in bytes.
            target: where to.
        """
        return self._copy(self._back, target, block[offset : offset + target.numel()])

    def _copy(
        self, stream: torch.cuda.Stream, target: Tensor, source: Tensor
    ) -> Callable[[], None]:
        """Copy once the compute stream has done all that it was given before.

        The stream on which the copy was begun is that of the memory, and waits as well as whichever
        is current where the copy is waited for.
        """
        begun = torch.cuda.current_stream(self.device)
        stream.wait_stream(begun)
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
            ended = stream.record_event()

        def wait() -> None:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(ended)
            if now != begun:
                begun.wait_event(ended)

        return wait


def _forget_error(device: torch.device) -> None:
    """Launch something that reports the error which the runtime keeps for the next launch."""
    with suppress(RuntimeError):
        torch.zeros(1, device=device)


def _not_had(size_bytes: int, why: str) -> HostMemoryError:
    return HostMemoryError(
        f"the plan moves values to {format_both(size_bytes)} of pinned memory of the host, which "
        f"cannot be had ({why}); plan with less of it (offload=)"
    )


def _unpin(runtime: Any, device: torch.device, address: int) -> None:
    torch.cuda.synchronize(device)
    runtime.cudaHostUnregister(address)
