"""What a model sets up at its first call and never again, such as hooks that record outputs.

A planned model runs no Python, so what its code keeps must be kept again at each call, and a
function cannot be; nor can what a library keeps for each type of tensors, such as those that stand
for them in a capture. If it is the first call alone that keeps it, the model may be captured as its
second call finds it: what was set up then stays, as after a first call in eager mode.
"""

from __future__ import annotations

import contextlib
import functools
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from planner.graphs.capture.guards.own_attributes import attributes_of
from planner.graphs.capture.guards.paths import MISSING, Attribute
from planner.graphs.capture.guards.pending import tells_a_value
from planner.graphs.capture.guards.python_state import Change
from planner.graphs.capture.guards.told_values import written_in_python
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.patches import capturing
from planner.graphs.torch_api.pytree import tree_leaves
from planner.graphs.torch_api.symbolic_sizes import is_size

_DEPTH = 4
_OF_NO_CALL = (
    *(type(None), bool, int, float, complex, str, bytes, type, types.ModuleType),
    *(types.BuiltinFunctionType, torch.dtype, torch.device, torch.layout, type(MISSING)),
    weakref.ReferenceType,
    nn.Module,  # one that is new is refused elsewhere
)

P = ParamSpec("P")
T = TypeVar("T")
Called = tuple[Any, ...]
"""What a model called of torch, in order: functions, their constants, and which tensors."""


class SetsUp(CaptureError):
    """The forward pass keeps what no later call can keep again, perhaps at the first call alone.

    ``changes`` are all that it did to Python's state, ``called`` what it called of torch, in order.
    """

    def __init__(self, message: str, changes: Sequence[Change]) -> None:
        super().__init__(message)
        self.changes = tuple(changes)
        self.called: Called = ()


def may_stay(change: Change) -> bool:
    """Tell a change that can be undone and holds nothing of the call that made it, such as tensors.

    Args:
        change: what a call did to Python's state.
    """
    simple = isinstance(change.step, Attribute) or isinstance(change.place.owner, dict)
    return (
        simple
        and change.now is not MISSING
        and not any(_is_of_a_call(x, 0) for x in tree_leaves(change.now))
    )


def _is_of_a_call(value: Any, depth: int) -> bool:
    """Tell what holds something of a call, or may: not all can be looked into."""
    if isinstance(value, _OF_NO_CALL) and not tells_a_value(value):
        return False
    if isinstance(value, Tensor) or is_size(value) or depth > _DEPTH:
        return True
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        inside: Any = (*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    elif written_in_python(type(value)):
        inside = attributes_of(value)
    else:
        return True
    return any(_is_of_a_call(x, depth + 1) for x in tree_leaves(inside))


def of_second_call(capture: Callable[P, tuple[T, Called]]) -> Callable[P, T]:
    """Let a capture be that of the second call of a model whose first alone sets something up.

    Args:
        capture: captures a model, leaves it as it was, and returns what it called of torch, too.
            It may raise ``SetsUp``, which the result does only if the second call is not
            as the first.
    """

    @functools.wraps(capture)
    def captured(*args: P.args, **kwargs: P.kwargs) -> T:
        with capturing():
            try:
                return capture(*args, **kwargs)[0]
            except SetsUp as error:
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
