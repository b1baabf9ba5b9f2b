"""Sizes that are symbols in a step that Dynamo hands over, and the numbers that they are at most.

A step is planned for its largest sizes and compiled for all up to those: of a value there is one
with numbers, to plan with, and one with symbols, which Inductor is handed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from planner.graphs.capture_error import CaptureError

SYMBOLIC = "val_with_symbols"


class NoSize(CaptureError):
    """A number that depends on something else than the symbols whose most is known."""


@dataclass(frozen=True)
class AtMost:
    """The most that each symbol is; without any, all sizes are the numbers that they are."""

    numbers: Mapping[Any, int] = field(default_factory=dict)

    def number(self, expression: Any) -> int:
        """Return an expression of the symbols, or a number, where all are the largest.

        Raises:
            NoSize: it depends on something else.
        """
        most = {symbol: sympy.Integer(n) for symbol, n in self.numbers.items()}
        found = sympy.sympify(expression).xreplace(most)
        if not found.is_number:
            raise NoSize(
                f"a size of the step is {expression}, of which the most is not known: it depends "
                "on data, or on a number that changes"
            )
        return int(found)

    def most(self, expression: Any) -> int:
        """Return the most that an expression is at the largest sizes, and at some smaller ones: a
        size may grow as another shrinks.

        Raises:
            NoSize: it depends on something else.
        """
        fewer = [{s: least(n)} for s, n in self.numbers.items() for least in (_half, _least)]
        fewer += [{s: least(n) for s, n in self.numbers.items()} for least in (_half, _least)]
        found = [AtMost({**self.numbers, **some}).number(expression) for some in fewer]
        return max(self.number(expression), *found) if self.numbers else self.number(expression)

    def of(self, value: Any) -> Any:
        """Return a fake value, or a tuple or list of some, whose sizes are numbers."""
        if isinstance(value, torch.SymInt):
            return self.number(value.node.expr)
        if isinstance(value, Tensor) and any(map(_symbol, (*value.shape, *value.stride()))):
            sizes, strides = self.of(tuple(value.shape)), self.of(value.stride())
            made = value.detach().new_empty_strided(sizes, strides)
            return made.requires_grad_(value.requires_grad) if value.is_leaf else made
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            return type(value)(map(self.of, value))
        return value

    def put(self, node: fx.Node) -> None:
        """Give a node a value with numbers; one that depends on symbols is kept beside it."""
        if "val" in node.meta:
            kept = {SYMBOLIC: node.meta["val"]} if self.numbers else {}
            node.meta = {**node.meta, "val": self.of(node.meta["val"]), **kept}


NUMBERS = AtMost()


def _half(size: int) -> int:
    return max(2, size // 2)


def _least(_size: int) -> int:
    return 2  # Dynamo takes 0 and 1 for numbers


def restore(nodes: Iterable[fx.Node]) -> None:
    """Give nodes their values with symbols again."""
    for node in nodes:
        if SYMBOLIC in node.meta:
            meta = dict(node.meta)
            node.meta = {**meta, "val": meta.pop(SYMBOLIC)}


def _symbol(size: object) -> bool:
    return isinstance(size, torch.SymInt)
