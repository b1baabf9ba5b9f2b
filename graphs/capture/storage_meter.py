"""Count storages as they are born and die, on tensors fake or real.

Knows the bytes alive at any moment on one kind of device, and the traffic of what ran. Knows
nothing of what the storages are for.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from planner.graphs.costs.roofline import op_cost, tensors_in
from planner.graphs.torch_api.dispatch import TorchDispatchMode
from planner.graphs.torch_api.fake_tensors import DataDependentOutputException
from planner.graphs.torch_api.operators import OpOverload, returns_truth
from planner.graphs.torch_api.storages import storage_key


class StorageMeter(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own
    """Watch every storage that operators make on devices of one type, while the mode is on.

    ``level_bytes`` are alive now, ``peak_bytes`` the most that ever were since ``restart``;
    ``moved_bytes`` is the traffic since then, ``calls`` how many operators made any. A fake tensor
    that is asked for its data sets ``asked`` and says ``answer``, or one for a number.

    >>> with StorageMeter("cpu") as meter:
    ...     a = torch.ones(10)
    ...     b = (a + 1) * 2
    >>> meter.level_bytes, meter.peak_bytes
    (80, 120)
    """

    def __init__(self, device_type: str, *, answer: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.level_bytes = 0
        self.peak_bytes = 0
        self.moved_bytes = 0
        self.calls = 0
        self.asked = False
        self._answer = answer
        self._device_type = device_type
        self._known: set[int] = set()

    def restart(self) -> None:
        """Begin a new measurement: the peak falls to the level, traffic and calls to nothing."""
        self.peak_bytes = self.level_bytes
        self.moved_bytes = self.calls = 0

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of tensors that were made elsewhere."""
        for tensor in tensors:
            storage, key = tensor.untyped_storage(), storage_key(tensor)
            if tensor.device.type != self._device_type or key in self._known:
                continue
            self._known.add(key)
            size_bytes = storage.nbytes()  # first: garbage may be collected, and counted, in it
            self.level_bytes += size_bytes
            weakref.finalize(storage, self._forget, key, size_bytes)
        self.peak_bytes = max(self.peak_bytes, self.level_bytes)

    def bytes_of(self, tensors: Iterable[Tensor]) -> int:
        """Return how much of the level the storages of some tensors are, each counted once."""
        sizes = {storage_key(t): t.untyped_storage().nbytes() for t in tensors}
        return sum(size_bytes for key, size_bytes in sizes.items() if key in self._known)

    def _forget(self, key: int, size_bytes: int) -> None:
        self._known.discard(key)
        self.level_bytes -= size_bytes

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        assert isinstance(func, OpOverload)
        try:
            result = func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            self.asked = True
            return self._say(func, args)
        self.watch(tensors_in(result))
        moved = op_cost(func, args, kwargs or {}, result).moved_bytes
        self.moved_bytes += moved
        self.calls += moved > 0
        return result

    def _say(self, func: OpOverload, args: tuple[Any, ...]) -> bool | float:
        """Answer in place of data: ``item`` of a truth value, ``allclose``, ``equal``; or one."""
        question = returns_truth(func) or args[0].dtype is torch.bool
        return self._answer if question else 1.0
