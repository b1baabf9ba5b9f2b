"""Whether code uses a collection in an attribute by its keys alone, as caches are used.

Then the order of its keys, which a cache changes to know what was used last, leads to nothing else.
Read from the source: code without one is taken to use the order.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Iterable, Iterator
from functools import lru_cache

from planner.graphs.capture.guards.own_code import with_inner
from planner.graphs.capture.guards.source_tree import source_tree

_BY_KEY = frozenset(("get", "move_to_end", "setdefault", "__contains__", "__getitem__"))
_NO_ORDER = frozenset(("len", "isinstance"))
_DROPS = frozenset(("pop", "popitem", "clear"))


def used_by_key_alone(codes: Iterable[types.CodeType], name: str) -> bool:
    """Tell whether code asks an attribute for the items under keys, and for nothing else.

    Args:
        codes: of functions.
        name: of the attribute.
    """
    return all(found is not None and all(found) for found in (_uses(code, name) for code in codes))


def _uses(code: types.CodeType, name: str) -> list[bool] | None:
    """Return for each use of an attribute in a function whether it is by key, ``None`` unknown."""
    if not _names(code, name):
        return []
    uses = _uses_in(code.co_filename)
    lines = [line for _, _, line in code.co_lines() if line is not None]
    return [ok for at, used, ok in uses if used == name and min(lines) <= at <= max(lines)] or None


def _names(code: types.CodeType, name: str) -> bool:
    return any(name in (*part.co_names, *part.co_consts) for part in with_inner(code))


@lru_cache(maxsize=64)
def _uses_in(filename: str) -> tuple[tuple[int, str, bool], ...]:
    return tuple(_found_in(source_tree(filename), ()))


def _found_in(node: ast.AST, around: tuple[ast.AST, ...]) -> Iterator[tuple[int, str, bool]]:
    """Yield line, name and manner of every attribute that is used in a tree."""
    if isinstance(node, ast.Attribute):
        yield node.lineno, node.attr, _by_key(node, around)
    for child in ast.iter_child_nodes(node):
        yield from _found_in(child, (*around[-2:], node))


def _by_key(node: ast.Attribute, around: tuple[ast.AST, ...]) -> bool:
    parent, *further = reversed(around)
    if isinstance(node.ctx, ast.Store):
        return True  # that the attribute is another is noticed
    if isinstance(parent, ast.Subscript):
        return parent.value is node
    if isinstance(parent, ast.Compare):
        return all(isinstance(op, ast.In | ast.NotIn) for op in parent.ops)
    if isinstance(parent, ast.Call):
        return isinstance(parent.func, ast.Name) and parent.func.id in _NO_ORDER
    if not isinstance(parent, ast.Attribute) or not isinstance(further[0], ast.Call):
        return False
    dropped = isinstance(further[1], ast.Expr) or (parent.attr == "pop" and further[0].args)
    return parent.attr in _BY_KEY or (parent.attr in _DROPS and bool(dropped))
