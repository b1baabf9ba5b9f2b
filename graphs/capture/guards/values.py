"""Watch a model run under fake tensors: where each op comes from, and which values it branches on.

A fake tensor has no data, so ``if mask.all():`` cannot be answered. Many models ask such questions
of their integer inputs alone. ``Observer`` keeps a lazy tape of what was computed from inputs whose
data is known; when the model asks for a value, it replays the tape on the data, records the answer
as a ``Decision`` and lets the model go on. ``Decisions.hold`` replays the tape on other inputs: a
captured graph is valid for them only if every answer is the same. Knows nothing of graphs or plans.
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
from torch import Tensor
from torch.overrides import TorchFunctionMode

from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.annotations import annotate
from planner.graphs.torch_api.dispatch import without_modes
from planner.graphs.torch_api.pytree import tree_iter, tree_map

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


@dataclass(frozen=True, eq=False)
class _Entry:
    """One call on the tape; ``args`` may hold other entries and ``_Root``s."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    pick: int | None = None  # which element, if the call returned several tensors


@dataclass(frozen=True, eq=False)
class _Root:
    index: int


def _evaluate(entry: Any, inputs: Sequence[Any], memo: dict[int, Any]) -> Any:
    """Run the part of the tape that ``entry`` needs, iteratively: tapes may be deep."""
    stack = [entry]
    while stack:
        top = stack[-1]
        waiting = [e for e in _operands(top) if id(e) not in memo]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        if isinstance(top, _Root):
            memo[id(top)] = inputs[top.index]
            continue
        args, kwargs = tree_map(
            lambda a: memo[id(a)] if isinstance(a, _Entry | _Root) else a, (top.args, top.kwargs)
        )
        result = top.func(*args, **kwargs)
        memo[id(top)] = result if top.pick is None else result[top.pick]
    return memo[id(entry)]


def _operands(entry: Any) -> Iterator[Any]:
    if isinstance(entry, _Entry):
        leaves = tree_iter((entry.args, dict(entry.kwargs)))
        yield from (a for a in leaves if isinstance(a, _Entry | _Root))


def _reads_inputs(entry: Any) -> bool:
    seen, stack = set[int](), [entry]
    while stack:
        top = stack.pop()
        if isinstance(top, _Root):
            return True
        if id(top) not in seen:
            seen.add(id(top))
            stack += _operands(top)
    return False


@dataclass(frozen=True)
class Decision:
    """A question the model asked of a value, its answer and the line that asked."""

    entry: _Entry
    answer: Any
    source: str


@dataclass(frozen=True)
class Decisions:
    """Every question whose answer depends on the inputs, in the order asked."""

    items: tuple[Decision, ...] = ()

    @property
    def answers(self) -> tuple[Any, ...]:
        """The answers alone: what a plan file remembers."""
        return tuple(d.answer for d in self.items)

    def broken_by(self, inputs: Sequence[Any]) -> Decision | None:
        """Return the first decision that other inputs would answer differently."""
        memo: dict[int, Any] = {}
        with torch.no_grad():
            for decision in self.items:
                if _evaluate(decision.entry, inputs, memo) != decision.answer:
                    return decision
        return None


@dataclass
class Observer(TorchFunctionMode):
    """Annotate each op with its source line; answer questions about known integer data.

    ``inputs`` are the flat tensors the model is called with, fake; ``data`` the same with real
    contents, or ``None`` where there are none. ``answers`` are given instead of evaluating, in
    order, when a recorded plan is captured again without data.
    """

    inputs: Sequence[Any]
    data: Sequence[Any] | None
    answers: Sequence[Any] | None = None
    found: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        TorchFunctionMode.__init__(self)
        self._tape: dict[int, tuple[Any, Tensor]] = {}  # the tensor is held: ids stay unique
        for index, value in enumerate(self.inputs):
            if isinstance(value, Tensor) and not value.is_floating_point():
                self._tape[id(value)] = (_Root(index), value)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.__iter__:  # an iterator cannot be recorded, its elements can
            return iter(self.__torch_function__(Tensor.unbind, types, args))
        if func in _QUESTIONS and (entry := self._entry(func, args, kwargs)) is not None:
            return self._answer(entry)
        with annotate({"source": user_line()}):
            result = func(*args, **kwargs)
        if _mutates(func, kwargs):
            self._tape.clear()  # a view of the changed tensor could be on the tape: forget all
        elif (entry := self._entry(func, args, kwargs)) is not None:
            self._record(entry, result)
        return result

    def _entry(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Entry | None:
        """Return the call with tensors replaced by tape entries, if all are on the tape."""
        tensors = [a for a in tree_iter((args, kwargs)) if isinstance(a, Tensor)]
        name = getattr(func, "__name__", "")
        if any(id(t) not in self._tape for t in tensors) or any(r in name for r in _RANDOM):
            return None
        if not tensors and func not in _FACTORIES:
            return None
        swap = lambda a: self._tape[id(a)][0] if isinstance(a, Tensor) else a  # noqa: E731
        return _Entry(func, *tree_map(swap, (args, kwargs)))

    def _record(self, entry: _Entry, result: Any) -> None:
        if isinstance(result, Tensor) and result.numel() <= _LARGEST_SHADOW:
            self._tape[id(result)] = (entry, result)
        elif isinstance(result, tuple | list):
            for i, part in enumerate(result):
                if isinstance(part, Tensor) and part.numel() <= _LARGEST_SHADOW:
                    chosen = _Entry(entry.func, entry.args, entry.kwargs, i)
                    self._tape[id(part)] = (chosen, part)

    def _answer(self, entry: _Entry) -> Any:
        source, depends = user_line(), _reads_inputs(entry)
        if depends and self.answers is not None:
            if len(self.found) >= len(self.answers):
                raise CaptureError(f"{source} asks for a value the plan has no answer to")
            answer = self.answers[len(self.found)]
        elif depends and self.data is None:
            raise CaptureError(
                f"{source} asks for the value of a tensor made from the inputs, but the inputs "
                "have no data (meta or fake tensors); pass real integer inputs"
            )
        else:
            with real_tensors():
                answer = _evaluate(entry, self.data or (), {})
        if depends:
            self.found.append(Decision(entry, answer, source))
        return answer


@contextmanager
def real_tensors() -> Iterator[None]:
    """Compute with real tensors inside a capture."""
    with without_modes(), torch.no_grad():
        yield


def _mutates(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    name = getattr(func, "__name__", "")
    inplace = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
    return inplace or name in ("__setitem__", "__set__") or kwargs.get("out") is not None


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
