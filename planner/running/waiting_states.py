"""States of an optimizer that wait on the host, and its step, in which they come and go in parts.

Within a step those of a part come while the part before is computed, and go while the next one is.
Knows where each state lies and which are on their way. Knows nothing of plans.
"""

from __future__ import annotations

import operator
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from planner.errors import HostMemoryError
from planner.graphs.capture.optimizer_parts import stepped_by
from planner.graphs.host_memory import aligned
from planner.graphs.torch_api.optimizer_internals import without_step_hooks
from planner.running.host_copies import Way, bytes_of
from planner.running.host_room import Room
from planner.running.separable_step import moves, only, own_step


@dataclass
class _Place:
    """Where a state lies on the host, for how many bytes, and the tensor that shows it there."""

    offset: int
    capacity: int
    shown: Tensor


class StatesInParts:
    """The states of the first parts of an optimizer, on the host or on their way."""

    def __init__(
        self,
        optimizer: Optimizer,
        parts: Sequence[Sequence[Tensor]],
        moved: int,
        way: Way,
        size_bytes: int,
    ) -> None:
        self._optimizer = weakref.ref(optimizer)
        self.parts, self.moved, self.way, self.size = parts, moved, way, size_bytes
        self.block, self.process = way.block(size_bytes), os.getpid()
        self.buffer = way.shown(self.block, size_bytes)
        self.places: dict[tuple[int, str], _Place] = {}
        self.room = Room(size_bytes)
        self.widened = False

    @property
    def optimizer(self) -> Optimizer:
        found = self._optimizer()
        assert found is not None, "its step is called"
        return found

    def step(self) -> None:
        """Take a step of every part, with its states on the device meanwhile.

        Raises:
            HostMemoryError: a copy failed. Some parameters have taken the step then, and others
                have not; no state is lost, and each parameter's is its own.
        """
        if self.process != os.getpid():
            raise HostMemoryError(
                "the states of an optimizer wait on the host for another process: this one is a "
                "fork of it; call offload_states after the fork"
            )
        one_by_one, coming = own_step(self.optimizer), list[_Copy]()
        leaving: list[_Copy] = []
        try:
            coming = self._fetch(0)
            for k, own in enumerate(self._groups_of_parts()):
                _end(coming)
                coming = self._fetch(k + 1)
                with only(self.optimizer, own), without_step_hooks(self.optimizer):
                    one_by_one()
                before, leaving = leaving, []
                leaving = self._send(k)
                _end(before)
        finally:
            _end([*coming, *leaving])
            self.way.finish()  # a checkpoint may read them now

    def send_all(self) -> None:
        """Let all states of the first parts go to the host, and wait for that."""
        for k in range(self.moved):
            _end(self._send(k))
        self.way.finish()

    def taken_out(self, loaded: dict[str, Any]) -> dict[str, Any] | None:
        """Hide states that are to be loaded from torch: all at once may be too much for the device.

        They stay in their places, since hooks that come later may hand them to other parameters.

        Args:
            loaded: what ``load_state_dict`` was given, which is left as it is.
        """
        states = dict(loaded["state"])
        for key, own in states.items():
            if isinstance(own, dict):
                states[key] = {
                    k: _Loaded(self._apart(v)) if moves(v) and k != "step" else v
                    for k, v in own.items()
                }
        return {**loaded, "state": states}

    def _apart(self, loaded: Tensor) -> Tensor:
        """Copy what lies on the host where others will: a state dict of this very optimizer."""
        begin = torch.frombuffer(self.buffer, dtype=torch.uint8, count=1).data_ptr()
        ours = not loaded.is_cuda and begin <= loaded.data_ptr() < begin + self.size
        return loaded.clone() if ours else loaded

    def put_in(self) -> None:
        """Let what was hidden go to the host, a part at a time, cast as torch casts states."""
        self.places, self.room, state = {}, Room(self.size), self.optimizer.state
        ours = [p for part in self.parts[: self.moved] for p in part]
        loaded = [v.value for p in ours for v in state.get(p, {}).values() if _is_loaded(v)]
        # an optimizer may make them wide again, as torch's casts to the parameters' dtype did not
        self.widened = sum(map(aligned, map(_widest, loaded))) <= self.size
        try:
            for k in range(self.moved):
                for p in self.parts[k]:
                    _put(state.get(p), p, copy=True)
                _end(self._send(k))
            self.way.finish()
        finally:
            for key, own in state.items():
                _put(own, key, copy=False)

    def _groups_of_parts(self) -> Iterator[set[int]]:
        """Yield the parameters of each part, and of what the plan does not know at last."""
        known = set[int]()
        for part in self.parts:
            own = {id(p) for p in part}
            known |= own
            yield own
        if others := stepped_by(self.optimizer) - known:
            yield others

    def _states(self, k: int) -> Iterator[tuple[Tensor, str, Tensor]]:
        for p in self.parts[k] if k < self.moved else ():
            for name, value in self.optimizer.state.get(p, {}).items():
                if moves(value):
                    yield p, name, value

    def _fetch(self, k: int) -> list[_Copy]:
        """Begin to bring the states of a part, of parameters that have a gradient to step with."""
        begun: list[_Copy] = []
        for p, name, value in list(self._states(k)):
            place = self.places.get((id(p), name))
            if place is None or place.shown is not value or p.grad is None:
                continue
            target = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device=p.device
            )
            wait = self.way.back(self.block, place.offset, bytes_of(target))
            begun.append(_Copy(self.optimizer.state[p], name, target, wait, held=None))
        return begun

    def _send(self, k: int) -> list[_Copy]:
        """Begin to take the states of a part away; each is on the host once its copy has ended."""
        begun: list[_Copy] = []
        for p, name, value in list(self._states(k)):
            place = self.places.get((id(p), name))
            if place is not None and place.shown is value:
                continue  # it was not fetched
            if place is None or not _alike(place.shown, value):
                place = self._place(p, name, value)
            wait = self.way.out(self.block, place.offset, bytes_of(value))
            begun.append(_Copy(self.optimizer.state[p], name, place.shown, wait, held=value))
        return begun

    def _place(self, p: Tensor, name: str, value: Tensor) -> _Place:
        size = value.untyped_storage().nbytes()
        if size != value.numel() * value.element_size():
            raise HostMemoryError(
                f"the state {name!r} of a parameter is a part of {size} bytes that others may "
                "read, which cannot be moved: plan without offload's states"
            )
        before = self.places.get((id(p), name))
        if before is not None and size <= before.capacity:
            begin, capacity = before.offset, before.capacity
        else:
            if before is not None:
                self.room.give_back(before.offset, before.capacity)
            capacity = max(size, _widest(value) if self.widened else 0)
            found = self.room.take(capacity)
            if found is None:
                raise HostMemoryError(
                    f"the optimizer has more states than the {self.size} bytes that the plan has "
                    "room for on the host: pass the optimizer that is used as optimizer= to "
                    "planner.fit"
                )
            begin = found
        raw = torch.frombuffer(self.buffer, dtype=torch.uint8, count=size, offset=begin)
        shown = torch.empty(0, dtype=value.dtype)
        shown = shown.set_(raw.untyped_storage(), 0, value.shape, value.stride())
        self.places[id(p), name] = place = _Place(begin, capacity, shown)
        return place


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A state that is being loaded: torch leaves what is no tensor as it is."""

    value: Tensor


def _is_loaded(state: Any) -> bool:
    return isinstance(state, _Loaded)


def _put(states: Any, p: Any, *, copy: bool) -> None:
    """Let states that are loaded be tensors again, of a parameter as torch casts them."""
    for name, held in list(states.items()) if isinstance(states, dict) else ():
        if isinstance(held, _Loaded):
            states[name] = held.value
            if isinstance(p, Tensor):
                dtype = p.dtype if p.is_floating_point() else held.value.dtype
                states[name] = held.value.to(p.device, dtype, copy=copy)


def _widest(state: Tensor) -> int:
    """Return the bytes of a state, were it at least in single precision."""
    return state.numel() * max(4 if state.is_floating_point() else 1, state.element_size())


def _alike(one: Tensor, other: Tensor) -> bool:
    """Tell whether the bytes of one are those of the other."""
    form = operator.attrgetter("dtype", "shape")
    return bool(form(one) == form(other) and one.stride() == other.stride())


@dataclass
class _Copy:
    """A state on its way: once that has ended, ``state[name]`` is ``then``."""

    state: dict[str, Any]
    name: str
    then: Tensor
    wait: Callable[[], None]
    held: Tensor | None
    """What is read meanwhile."""


def _end(copies: Sequence[_Copy]) -> None:
    """Wait for copies; a state whose copy failed stays where it was.

    Raises:
        HostMemoryError: of the first that failed.
    """
    failed: HostMemoryError | None = None
    for each in copies:
        try:
            each.wait()
        except HostMemoryError as error:
            failed = failed or error
        else:
            each.state[each.name] = each.then
        each.held = None
    if failed is not None:
        raise failed
