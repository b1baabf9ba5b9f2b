"""Checks in a model's code: branches that only raise or log if a value is not as it should be.

``assert not x.isnan().any()`` asks for a value that a capture does not know, but only one answer
lets the model go on. Knows how to read the branch from its source. Knows nothing of tensors.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType

from planner.graphs.capture.guards.source_tree import source_tree

_LOGS = frozenset(("print", "warn", "warning", "warning_once", "info", "debug", "error", "log"))


@dataclass(frozen=True, slots=True)
class Check:
    """An answer that lets a model go on, the line that asks, and whether any other raises."""

    expected: bool
    source: str
    raises: bool


def check_at(frame: FrameType) -> Check | None:
    """Return the check that a frame is carrying out, if that is all that it does with the answer.

    >>> import sys
    >>> check_at(sys._getframe()) is None
    True
    """
    code = frame.f_code
    spans = itertools.islice(code.co_positions(), frame.f_lasti // 2, None)
    line, end, column, end_column = next(spans, (None,) * 4)
    span = (line, column, end, end_column)
    for condition in _conditions(code.co_filename):
        found = condition.wanted(span)
        if found is not None:
            return Check(found, f"{code.co_filename}:{line}", condition.raises)
    return None


@dataclass(frozen=True)
class _Condition:
    """The condition of a check: its statement, how it passes, whether the code raises if not."""

    statement: ast.stmt
    test: ast.expr
    passes: bool
    raises: bool

    def wanted(self, span: _Span) -> bool | None:
        """Return what the value asked for at a span must be for the check to pass."""
        if span == _span(self.statement):  # until Python 3.12 a jump has the statement's place
            return _of_all(self.test, passes=self.passes)
        return _at(self.test, span, passes=self.passes)


_Span = tuple[int | None, int | None, int | None, int | None]


@lru_cache(maxsize=64)
def _conditions(filename: str) -> tuple[_Condition, ...]:
    return tuple(_found_in(source_tree(filename)))


def _found_in(tree: ast.AST) -> Iterator[_Condition]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield _Condition(node, node.test, passes=True, raises=True)
        elif isinstance(node, ast.If) and _only_tells(node.orelse):
            yield _Condition(node, node.test, passes=True, raises=_raises(node.orelse))
        elif isinstance(node, ast.If) and _only_tells(node.body):
            yield _Condition(node, node.test, passes=False, raises=_raises(node.body))


def _only_tells(body: list[ast.stmt]) -> bool:
    return bool(body) and all(isinstance(s, ast.Raise) or _is_log(s) for s in body)


def _raises(body: list[ast.stmt]) -> bool:
    return any(isinstance(statement, ast.Raise) for statement in body)


def _is_log(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return False
    called = statement.value.func
    return (getattr(called, "attr", None) or getattr(called, "id", "")) in _LOGS


def _of_all(node: ast.expr, *, passes: bool) -> bool | None:
    """Return the truth of each part asked in turn that makes the whole come out as wanted."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return _of_all(node.operand, passes=not passes)
    if isinstance(node, ast.BoolOp):
        parts = [_of_all(part, passes=passes) for part in node.values]
        decided_by_one = passes is isinstance(node.op, ast.Or)
        return parts[0] if decided_by_one or len(set(parts)) == 1 else None
    return passes


def _at(node: ast.expr, span: _Span, *, passes: bool) -> bool | None:
    """Return which truth of the part at a span makes the whole come out as wanted."""
    if isinstance(node, ast.BoolOp):
        found = (_at(part, span, passes=passes) for part in node.values)
        return next((f for f in found if f is not None), None)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        if span == _span(node):
            return not passes
        return _at(node.operand, span, passes=not passes)
    return passes if span == _span(node) else None


def _span(node: ast.expr | ast.stmt) -> _Span:
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset
