"""A number that a model takes out of a tensor in order to keep or to log it.

``self.last = loss.item()`` needs no number while the step is traced, only a place to put it later.
Whoever computes with it then asks for what a capture does not know.
"""

from __future__ import annotations

import ast
import itertools
from dataclasses import dataclass, replace
from functools import lru_cache
from types import FrameType
from typing import Any, NoReturn

from torch import Tensor

from planner.graphs.capture.guards.source_tree import source_tree
from planner.graphs.capture_error import CaptureError

VALUE_OF_THE_STEP = "(a value of the step)"
"""Stands in a text for what is not known while the step is traced."""


@dataclass(frozen=True, eq=False, repr=False)
class Pending:
    """What ``tensor.item()`` will be, asked for at a line."""

    tensor: Tensor
    source: str
    rounding: tuple[int | None, ...] = ()

    def refuse(self, *_: Any) -> NoReturn:
        """Say that the number is not known yet.

        Raises:
            CaptureError: always.
        """
        raise CaptureError(
            f"{self.source} needs the value of a tensor, which capturing cannot know: it may be "
            "kept or logged, but not computed with or branched on; compute with the tensor"
        )

    def __round__(self, digits: int | None = None) -> Pending:
        """Return what the rounded number will be."""
        return replace(self, rounding=(*self.rounding, digits))

    def __format__(self, spec: str) -> str:
        """Return what is printed while the step is traced."""
        return VALUE_OF_THE_STEP

    def __repr__(self) -> str:
        """Return what is printed while the step is traced."""
        return VALUE_OF_THE_STEP

    __bool__ = __float__ = __int__ = __index__ = __neg__ = __abs__ = refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = refuse
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = refuse
    __pow__ = __rpow__ = __lt__ = __le__ = __gt__ = __ge__ = refuse
    __eq__ = __ne__ = refuse
    __hash__ = object.__hash__


def tells_a_value(value: Any) -> bool:
    """Tell a text that was made of what is not known while the step is traced.

    >>> tells_a_value(f"loss {VALUE_OF_THE_STEP}"), tells_a_value("loss"), tells_a_value(1)
    (True, False, False)
    """
    return isinstance(value, str) and VALUE_OF_THE_STEP in value


def asks_for_item(frame: FrameType) -> bool:
    """Tell whether a frame is at a call of ``.item()``, and not at a branch on a tensor."""
    code = frame.f_code
    spans = itertools.islice(code.co_positions(), frame.f_lasti // 2, None)
    line, end, column, end_column = next(spans, (None,) * 4)
    return (line, column, end, end_column) in _item_calls(code.co_filename)


@lru_cache(maxsize=64)
def _item_calls(filename: str) -> frozenset[tuple[int | None, ...]]:
    return frozenset(
        (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)
        for node in ast.walk(source_tree(filename))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "item"
    )
