"""Whose code is whose, and what the code of a function says.

Knows files and bytecode. Knows nothing of what is found there.
"""

from __future__ import annotations

import dis
import sys
import sysconfig
import types
from collections.abc import Iterator

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
