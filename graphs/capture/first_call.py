"""What a model sets up at its first call and never again, such as hooks that record outputs.

A planned model runs no Python, so what its code keeps must be kept again at each call, and a
function cannot be. If it is the first call alone that keeps it, the model may be captured as its
second call finds it: what was set up then stays in the model, as after a first call in eager mode.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from planner.graphs.capture.guards.python_state import Change
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.patches import capturing
from planner.graphs.torch_api.pytree import tree_leaves

P = ParamSpec("P")
T = TypeVar("T")
Called = tuple[Any, ...]
"""What a model called of torch, in order: functions, their constants, and which tensors."""


class KeepsFunctions(CaptureError):
    """The forward pass keeps functions; ``changes`` are all that it did to Python's state.

    ``called`` is what it called of torch, in order.
    """

    def __init__(self, message: str, changes: Sequence[Change]) -> None:
        super().__init__(message)
        self.changes = tuple(changes)
        self.called: Called = ()


def may_stay(change: Change) -> bool:
    """Tell a change that holds nothing of the call that made it: no tensor, in no closure.

    Args:
        change: what a call did to Python's state.
    """
    return not any(_holds_tensor(x, 0) for x in tree_leaves(change.now))


def _holds_tensor(value: Any, depth: int) -> bool:
    if isinstance(value, Tensor) or depth > 4:
        return True
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        inside = (*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
        return any(_holds_tensor(x, depth + 1) for x in tree_leaves(inside))
    return False


def of_second_call(capture: Callable[P, tuple[T, Called]]) -> Callable[P, T]:
    """Let a capture be that of the second call of a model whose first alone sets something up.

    Args:
        capture: captures a model, leaves it as it was, and returns what it called of torch, too.
            It may raise ``KeepsFunctions``, which the result does only if the second call is not
            as the first.
    """

    @functools.wraps(capture)
    def captured(*args: P.args, **kwargs: P.kwargs) -> T:
        with capturing():
            try:
                return capture(*args, **kwargs)[0]
            except KeepsFunctions as error:
                if not all(map(may_stay, error.changes)):
                    raise
                with contextlib.ExitStack() as undo:
                    for change in error.changes:
                        undo.callback(change.step.put, change.place.owner, change.before)
                        change.step.put(change.place.owner, change.now)
                    with contextlib.suppress(CaptureError):
                        made, called = capture(*args, **kwargs)
                        if called == error.called:
                            undo.pop_all()
                            return made
                raise

    return captured
