"""Whose code is whose, and what the code of a function says.

Knows files and bytecode. Knows nothing of what is found there.
"""

from __future__ import annotations

import ast
import dis
import sys
import sysconfig
import types
from collections.abc import Iterator
from functools import lru_cache
from itertools import zip_longest

from planner.graphs.capture.guards.source_tree import source_tree
from planner.graphs.capture.guards.values import NOT_THE_USERS

LIBRARIES = (
    *NOT_THE_USERS,
    *(f"{sysconfig.get_path(kind)}/" for kind in ("stdlib", "purelib", "platlib")),
)
"""Whose globals are taken to be what they are: they are settings that a loop does not change."""


def is_own_file(module: types.ModuleType | None) -> bool:
    """Tell a module that is in no library, the one that runs as a script among them.

    Args:
        module: as it is in ``sys.modules``, if it is.
    """
    if module is not None and module.__name__.partition(".")[0] in sys.stdlib_module_names:
        return False
    return not (getattr(module, "__file__", None) or "").startswith(LIBRARIES)


def with_inner(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the code of a function, then that of the functions defined in it.

    Args:
        code: of the function.
    """
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from with_inner(inner)


def instructions(code: types.CodeType) -> Iterator[dis.Instruction]:
    """Yield what a function does, then what the functions defined in it do.

    Args:
        code: of the function.
    """
    for part in with_inner(code):
        yield from dis.get_instructions(part)


def followed(code: types.CodeType) -> Iterator[tuple[dis.Instruction, dis.Instruction | None]]:
    """Yield what a function does, each with what comes next.

    Args:
        code: of the function.
    """
    steps = list(instructions(code))
    yield from zip_longest(steps, steps[1:])


def lines_comparing_types(code: types.CodeType, names: frozenset[str]) -> Iterator[int]:
    """Yield the lines of a function that compare a ``type(...)`` with something of a name.

    Args:
        code: of the function.
        names: of classes, with or without the file that they are in.
    """
    lines = {line for part in with_inner(code) for _, _, line in part.co_lines()}
    for line, compared in _type_comparisons(code.co_filename):
        if line in lines and compared & names:
            yield line


@lru_cache(maxsize=64)
def _type_comparisons(filename: str) -> tuple[tuple[int, frozenset[str]], ...]:
    return tuple(
        (node.lineno, frozenset(map(_name_of, ast.walk(node))))
        for node in ast.walk(source_tree(filename))
        if isinstance(node, ast.Compare)
        and any(isinstance(x, ast.Call) and _name_of(x.func) == "type" for x in _sides(node))
    )


def _sides(node: ast.Compare) -> Iterator[ast.expr]:
    yield node.left
    yield from node.comparators


def _name_of(node: ast.AST) -> str:
    return str(getattr(node, "attr", "") or getattr(node, "id", ""))
