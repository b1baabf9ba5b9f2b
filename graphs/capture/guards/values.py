"""Watch a model run under fake tensors: where each op comes from, and which values it branches on.

A fake tensor has no data, so ``if mask.all():`` cannot be answered. Many models ask such questions
of their integer inputs and buffers alone. ``Observer`` keeps a lazy tape of what was computed from
those; when the model asks for a value, it replays the tape on the data, records the answer as a
``Decision`` and lets the model go on. Knows nothing of graphs or plans.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from planner.graphs.capture.guards.checks import Check, check_at
from planner.graphs.capture.guards.pending import VALUE_OF_THE_STEP, Pending, asks_for_item
from planner.graphs.capture.guards.tape import (
    Decision,
    Entry,
    Root,
    evaluate,
    reads_sizes,
    roots_of,
)
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.annotations import IN_PLACE, annotate
from planner.graphs.torch_api.dispatch import without_modes
from planner.graphs.torch_api.pytree import tree_iter, tree_map
from planner.graphs.torch_api.storages import storage_key
from planner.graphs.torch_api.symbolic_sizes import largest

_LARGEST_SHADOW = 2**24  # elements; a larger tensor is never a question's operand in practice
_QUESTIONS = frozenset(
    {
        Tensor.__bool__,
        Tensor.__int__,
        Tensor.__float__,
        Tensor.__index__,
        Tensor.item,
        Tensor.tolist,
        Tensor.is_nonzero,
        Tensor.__contains__,
        torch.is_nonzero,
        torch.equal,
        torch.allclose,
    }
)
_CHECKS = frozenset((Tensor.__bool__, Tensor.item, Tensor.is_nonzero, torch.is_nonzero))
_TEXTS = frozenset((Tensor.__format__, Tensor.__repr__))
_WRITES = frozenset(
    f"__{name}__"
    for name in ("setitem", "set", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow")
) | {"__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"}
_FACTORIES = frozenset(
    {torch.arange, torch.zeros, torch.ones, torch.full, torch.linspace, torch.tensor, torch.eye}
)
_RANDOM = ("rand", "dropout", "bernoulli", "multinomial", "normal", "empty", "poisson")
_STEP = str(Path(__file__).parents[1] / "step_function.py")
"""Where the user's code is called from: what is further out did not compute anything."""
NOT_THE_USERS = tuple(
    str(folder) + os.sep for folder in (Path(torch.__file__).parent, Path(__file__).parents[3])
)
"""Torch and this package; the separator tells them from ``torchvision`` and ``planner_app``."""


@dataclass
class Observer(TorchFunctionMode):
    """Annotate each op with its source line; answer questions about known integer data.

    ``inputs`` are the flat tensors the model is called with, then its buffers, fake; ``data`` the
    same with real contents, ``None`` where there are none. ``answers`` are given instead of
    evaluating, in order, when a recorded plan is captured again without data. ``checks`` are what
    the model asked in order to raise or log, which it is told to be as it should; ``called`` is
    what was called, in order.
    """

    inputs: Sequence[Any]
    data: Sequence[Any]
    answers: Sequence[Any] | None = None
    found: list[Decision] = field(default_factory=list)
    by_size: list[Decision] = field(default_factory=list)
    checks: list[tuple[Tensor, Check]] = field(default_factory=list)
    called: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        TorchFunctionMode.__init__(self)
        self._tape: dict[int, tuple[Any, Tensor]] = {}  # the tensor is held: ids stay unique
        self._known: dict[int, tuple[int, Tensor]] = {}
        self.number(self.inputs)
        for index, value in enumerate(self.inputs):
            if isinstance(value, Tensor) and not value.is_floating_point():
                self._put(value, Root(index))

    def _note(self, func: Any, args: Any, kwargs: Any) -> None:
        """Note a call: the function, its constants, and its tensors by where they came from."""
        self.number((args, kwargs))
        told = (
            self._known[id(x)][0] if isinstance(x, Tensor) else repr(x)
            for x in tree_iter((args, kwargs))
        )
        getter = isinstance(getattr(func, "__self__", None), property)  # another in each capture
        self.called.append((func.__name__ if getter else func, *told))

    def number(self, made: Any) -> None:
        """Give tensors that are met for the first time the next numbers."""
        for x in tree_iter(made):
            if isinstance(x, Tensor) and id(x) not in self._known:
                self._known[id(x)] = len(self._known), x

    def _put(self, tensor: Tensor, entry: Any) -> None:
        self._tape[id(tensor)] = (entry, tensor)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        self._note(func, args, kwargs)
        if func is Tensor.__iter__:  # an iterator cannot be recorded, its elements can
            return iter(self.__torch_function__(Tensor.unbind, types, args))
        entry = self._entry(func, args, kwargs)
        if func in _QUESTIONS and entry is not None:
            return self._answer(entry, check_at(_asking_frame()) if func in _CHECKS else None)
        if func in _CHECKS and (check := check_at(_asking_frame())) is not None:
            self.checks.append((args[0], check))
            return check.expected
        if func is Tensor.item and asks_for_item(_asking_frame()):
            return Pending(args[0], user_line())
        if func in _TEXTS:
            return VALUE_OF_THE_STEP
        for part in tree_iter((args, kwargs)):
            if isinstance(part, Pending):
                part.refuse()
        _refuse_lost_gradients(args, kwargs)
        changed = _changed(func, args, kwargs)
        with annotate({"source": user_line(), IN_PLACE: bool(changed)}):
            result = func(*args, **kwargs)
        self.number(result)
        for written in changed:
            self._change(written, entry if kwargs.get("out") is None else None)
        if entry is not None and not changed:
            self._record(entry, result)
        return result

    def _change(self, changed: Tensor, entry: Entry | None) -> None:
        """Forget what shares memory with a tensor that was written, but for what wrote it."""
        key = storage_key(changed)
        for known, (_, tensor) in list(self._tape.items()):
            if storage_key(tensor) == key:
                del self._tape[known]
        if entry is not None and entry.args and entry.args[0] is not None:
            self._put(changed, Entry(_OnACopy(entry.func), entry.args, entry.kwargs))

    def _entry(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Entry | None:
        """Return the call with tensors replaced by tape entries, if all are on the tape."""
        tensors = [a for a in tree_iter((args, kwargs)) if isinstance(a, Tensor)]
        name = getattr(func, "__name__", "")
        if any(id(t) not in self._tape for t in tensors) or any(r in name for r in _RANDOM):
            return None
        if not tensors and func not in _FACTORIES:
            return None
        swap = lambda a: self._tape[id(a)][0] if isinstance(a, Tensor) else a  # noqa: E731
        return Entry(func, *tree_map(swap, (args, kwargs)))

    def _record(self, entry: Entry, result: Any) -> None:
        if isinstance(result, Tensor) and largest(result.numel()) <= _LARGEST_SHADOW:
            self._put(result, entry)
        elif isinstance(result, tuple | list):
            for i, part in enumerate(result):
                if isinstance(part, Tensor) and largest(part.numel()) <= _LARGEST_SHADOW:
                    self._put(part, Entry(entry.func, entry.args, entry.kwargs, i))

    def _answer(self, entry: Entry, check: Check | None) -> Any:
        source, depends = user_line(), bool(roots_of(entry))
        if depends and self.answers is not None:
            if len(self.found) >= len(self.answers):
                raise CaptureError(f"{source} asks for a value the plan has no answer to")
            answer = self.answers[len(self.found)]
        elif any(self.data[i] is None for i in roots_of(entry)):
            raise CaptureError(
                f"{source} asks for the value of a tensor made from inputs or buffers that have no "
                "data (meta or fake tensors); pass real integer inputs"
            )
        else:
            with real_tensors():
                answer = evaluate(entry, self.data, {})
        if answer != answer:  # noqa: PLR0124, nan is no nan
            raise CaptureError(f"{source} asks for a value that is no number (nan) for this call")
        if depends:
            self.found.append(Decision(entry, answer, source, check))
        elif reads_sizes(entry):
            self.by_size.append(Decision(entry, answer, source))
        return answer


@contextmanager
def real_tensors() -> Iterator[None]:
    """Compute with real tensors inside a capture."""
    with without_modes(), torch.no_grad():
        yield


@dataclass(frozen=True)
class _OnACopy:
    """A call that writes into its first argument, as one that returns what it would be then."""

    func: Callable[..., Any]

    def __call__(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        copy = tensor.clone()
        self.func(copy, *args, **kwargs)
        return copy


def _changed(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Tensor]:
    """Return the tensors that a call writes into: those of ``out=``, or its first argument."""
    if kwargs.get("out") is not None:
        return list(tree_iter(kwargs["out"]))
    name = getattr(func, "__name__", "")
    inplace = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
    inplace = inplace or name in _WRITES or _said_in_place(func, args, kwargs)
    return [a for a in args[:1] if isinstance(a, Tensor) and inplace]


def _said_in_place(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Tell whether a function of ``torch.nn.functional`` is called with ``inplace=True``."""
    code = getattr(func, "__code__", None)
    if code is None or "inplace" not in code.co_varnames[: code.co_argcount]:
        return False
    place = code.co_varnames.index("inplace")
    return bool(args[place] if place < len(args) else kwargs.get("inplace"))


def _refuse_lost_gradients(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse a parameter that is not the model's: its gradient would be lost."""
    if not torch.is_grad_enabled():
        return
    for a in tree_iter((args, dict(kwargs))):
        if type(a) in (Tensor, nn.Parameter) and a.requires_grad:
            raise CaptureError(
                f"{user_line()} computes with a tensor of shape {tuple(a.shape)} that requires a "
                "gradient and is neither an input nor part of the model; freeze it, use it under "
                "torch.no_grad(), or make it part of the model"
            )


def _asking_frame() -> FrameType:
    """Return the innermost frame that is neither this package's nor torch's own machinery."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(NOT_THE_USERS) or f"{os.sep}distributions{os.sep}" in name:
            return frame
        frame = frame.f_back
    return sys._getframe(1)


def user_line(frame: FrameType | None = None, line: int | None = None, *, walk: bool = True) -> str:
    """Return ``file:line`` of the innermost frame outside torch and this package, or "".

    Args:
        frame: where to start; by default at the caller.
        line: the line of that frame, if not the one it is at now.
        walk: look further out if that frame is not the user's.

    >>> user_line().rsplit(":", 1)[1].isdigit()
    True
    """
    frame = frame or sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name == _STEP and walk:
            return ""
        if not name.startswith(NOT_THE_USERS):
            return f"{name}:{line or frame.f_lineno}"
        frame, line = (frame.f_back, None) if walk else (None, None)
    return ""
