"""An optimizer whose states wait on the host, and come to the device a part at a time.

``offload_states`` has a torch optimizer take its step in the parts of a plan. Between steps the
states of the first parts lie on the host, where ``optimizer.state`` and ``state_dict`` find them.
Within a step those of a part come while the part before is computed, and go while the next one is.
Every part is the optimizer's own step on fewer parameters: no bit changes.
"""

from __future__ import annotations

import math
import os
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from planner.errors import BadRequest, HostMemoryError
from planner.graphs.capture.guards.call import device_of
from planner.graphs.capture.optimizer_step import twin_of
from planner.graphs.host_memory import ALIGNMENT
from planner.graphs.torch_api.storages import storage_key
from planner.plan.step_plan import StepPlan
from planner.running.host_copies import Way, way_of


def offload_states(optimizer: Optimizer, plan: StepPlan, model: nn.Module) -> Optimizer:
    """Let an optimizer keep states on the host as a plan says; return the same optimizer.

    Call it where the optimizer is made, before a scheduler or a scaler is. States that it has
    already go there at once, those of ``load_state_dict``, too.

    Args:
        optimizer: of the model's parameters; one that treats each of them by itself.
        plan: made with ``offload={"states": True}``. One that moves no states changes nothing.
        model: whose parameters the optimizer steps, planned or not.

    Example:
        >>> import planner
        >>> net = nn.Linear(8, 1)
        >>> said = {"inputs": torch.zeros(4, 8), "loss": torch.sum, "progress": "off"}
        >>> plan = planner.fit(net, "1MB", offload={"states": True}, **said)
        >>> adam = offload_states(torch.optim.AdamW(net.parameters()), plan, net)
        >>> plan.states is None  # there is room for them
        True

    Raises:
        BadRequest: the optimizer does not step parameters one by one, is wrapped already, or steps
            none of the model's.
        HostMemoryError: the host has no room for the states.
    """
    if plan.states is None:
        return optimizer
    if "step" in vars(optimizer):
        raise BadRequest(
            "the optimizer's step is wrapped already, by a scheduler perhaps: call offload_states "
            "first"
        )
    by_name = dict(model.named_parameters())
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parts = [[by_name[n] for n in names if n in by_name] for names in plan.states.parts]
    if not any(id(p) in stepped for part in parts for p in part):
        raise BadRequest("the optimizer steps none of the parameters that the plan is for")
    _require_separable(optimizer)
    directory = None if plan.host is None else plan.host.directory
    moved = parts[: plan.states.moved_parts]
    room = plan.states.moved_bytes + ALIGNMENT * _MOST_STATES * sum(map(len, moved))
    way = way_of(device_of(model), directory)
    _ADOPTED[optimizer] = held = _HostStates(optimizer, parts, len(moved), way, room)
    optimizer.step = types.MethodType(_whole_step(held), optimizer)  # type: ignore[method-assign]
    optimizer.register_load_state_dict_post_hook(lambda _: held.send_all())
    held.send_all()
    return optimizer


_MOST_STATES = 4
"""Tensors of state that a parameter may have: places are aligned, and each may waste some."""


def storages_on_host(optimizer: Optimizer) -> set[Any]:
    """Return the storages of states that wait on the host, as ``storage_key`` names them.

    Args:
        optimizer: any.
    """
    held = _ADOPTED.get(optimizer)
    places = () if held is None else held.places.values()
    return {storage_key(place.shown) for place in places}


def is_offloaded(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer keeps states on the host.

    Args:
        optimizer: any.
    """
    return optimizer in _ADOPTED


def _whole_step(held: _HostStates) -> Callable[..., Any]:
    """Return a step of all parts that hooks see as one."""

    def step(optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        del optimizer
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held.step()
        return loss

    return Optimizer.profile_hook_step(step)


_STEP_ERRORS = (
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a foreign step may raise when it is given what it does not take."""


def _require_separable(optimizer: Optimizer) -> None:
    """Refuse an optimizer that steps parameters otherwise together than apart, on two small ones.

    Raises:
        BadRequest: it does, or cannot be stepped like that.
    """
    found = []
    home = optimizer.param_groups[0]["params"][0].device
    for parts in ([[0, 1]], [[0], [1]]):
        made = torch.Generator().manual_seed(0)
        small = [nn.Parameter(torch.randn(4, 4, generator=made).to(home)) for _ in range(2)]
        options = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
        tries = [twin_of(optimizer, [{**options, "params": [small[i] for i in p]}]) for p in parts]
        for _ in range(2):
            for p in small:
                p.grad = torch.randn(4, 4, generator=made).to(home)
            try:
                for one in tries:
                    _own_step(one)()
            except _STEP_ERRORS as error:
                raise BadRequest(
                    f"{type(optimizer).__name__} cannot take its step a part of the parameters at "
                    f"a time: {error}"
                ) from error
        found.append(small)
    if not all(torch.equal(a, b) for a, b in zip(*found, strict=True)):
        raise BadRequest(
            f"{type(optimizer).__name__} does not treat each parameter by itself, so that its step "
            "cannot be taken in parts: plan without offload's states"
        )


def _own_step(optimizer: Optimizer) -> Callable[[], Any]:
    """Return the step of an optimizer's class, without the hooks around it."""
    whole = type(optimizer).step
    bare = getattr(whole, "__wrapped__", whole)
    return types.MethodType(bare, optimizer)


@dataclass
class _Place:
    """Where a state lies on the host, and the tensor that shows it there."""

    offset: int
    shown: Tensor


class _HostStates:
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
        self.used = 0

    @property
    def optimizer(self) -> Optimizer:
        found = self._optimizer()
        assert found is not None, "its step is called"
        return found

    def step(self) -> None:
        """Take a step of every part, with its states on the device meanwhile.

        Raises:
            HostMemoryError: a copy failed. What was stepped is stepped; no state is lost.
        """
        if self.process != os.getpid():
            raise HostMemoryError(
                "the states of an optimizer wait on the host for another process: this one is a "
                "fork of it; call offload_states after the fork"
            )
        one_by_one, coming = _own_step(self.optimizer), list[_Copy]()
        leaving: list[_Copy] = []
        try:
            coming = self._fetch(0)
            for k, own in enumerate(self._groups_of_parts()):
                now, coming = coming, []
                coming = self._fetch(k + 1)
                _end(now)
                with _only(self.optimizer, own):
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

    def _groups_of_parts(self) -> Iterator[set[int]]:
        """Yield the parameters of each part, and of what the plan does not know at last."""
        known = set[int]()
        for part in self.parts:
            own = {id(p) for p in part}
            known |= own
            yield own
        everything = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if everything - known:
            yield everything - known

    def _states(self, k: int) -> Iterator[tuple[Tensor, str, Tensor]]:
        for p in self.parts[k] if k < self.moved else ():
            for name, value in self.optimizer.state.get(p, {}).items():
                if isinstance(value, Tensor) and value.numel() > 1:  # not the count of steps
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
            wait = self.way.back(self.block, place.offset, _bytes(target))
            begun.append(_Copy(self.optimizer.state[p], name, target, wait, held=None))
        return begun

    def _send(self, k: int) -> list[_Copy]:
        """Begin to take the states of a part away; each is on the host once its copy has ended."""
        begun: list[_Copy] = []
        for p, name, value in list(self._states(k)):
            place = self.places.get((id(p), name))
            if place is not None and place.shown is value:
                continue  # it was not fetched
            if place is None or place.shown.stride() != value.stride():
                place = self._place(p, name, value)
            wait = self.way.out(self.block, place.offset, _bytes(value))
            begun.append(_Copy(self.optimizer.state[p], name, place.shown, wait, held=value))
        return begun

    def _place(self, p: Tensor, name: str, value: Tensor) -> _Place:
        size = value.untyped_storage().nbytes()
        if size != value.numel() * value.element_size():
            raise HostMemoryError(
                f"the state {name!r} of a parameter is a part of {size} bytes that others may "
                "read, which cannot be moved: plan without offload's states"
            )
        begin = self.places[id(p), name].offset if (id(p), name) in self.places else self.used
        end = begin + math.ceil(size / ALIGNMENT) * ALIGNMENT
        if end > self.size:
            raise HostMemoryError(
                f"the optimizer has more states than the {self.size} bytes that the plan has room "
                "for on the host: pass the optimizer that is used as optimizer= to planner.fit"
            )
        self.used = max(self.used, end)
        raw = torch.frombuffer(self.buffer, dtype=torch.uint8, count=size, offset=begin)
        shown = torch.empty(0, dtype=value.dtype)
        shown = shown.set_(raw.untyped_storage(), 0, value.shape, value.stride())
        self.places[id(p), name] = place = _Place(begin, shown)
        return place


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
    for copy in copies:
        try:
            copy.wait()
        except HostMemoryError as error:
            failed = failed or error
        else:
            copy.state[copy.name] = copy.then
        copy.held = None
    if failed is not None:
        raise failed


def _bytes(x: Tensor) -> Tensor:
    made = torch.empty(0, dtype=torch.uint8, device=x.device)
    storage = x.untyped_storage()
    return made.set_(storage, 0, (storage.nbytes(),), (1,))


@contextmanager
def _only(optimizer: Optimizer, own: set[int]) -> Iterator[None]:
    """Let an optimizer have some of its parameters alone."""
    whole: list[tuple[dict[str, Any], list[Tensor]]] = []
    for group in optimizer.param_groups:
        whole.append((group, group["params"]))
        group["params"] = [p for p in group["params"] if id(p) in own]
    try:
        yield
    finally:
        for group, params in whole:
            group["params"] = params


_ADOPTED: weakref.WeakKeyDictionary[Optimizer, _HostStates] = weakref.WeakKeyDictionary()
