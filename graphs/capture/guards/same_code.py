"""Whether two functions are the same code with the same values around it.

A style of parallelism puts a closure of its own around each layer: other objects, the same code.
"""

from __future__ import annotations

import functools
import sys
import types
from typing import Any


def same_code(a: Any, b: Any) -> bool:
    """Tell functions that do the same, called alike: one code, equal closures and defaults.

    Whatever is no function of Python's (a method, a partial, a closure) has to be the same object.

    >>> def adds(n): return lambda x: x + n
    >>> same_code(adds(1), adds(1)), same_code(adds(1), adds(2)), same_code(len, len)
    (True, False, True)
    """
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, types.FunctionType):
        return a.__code__ is b.__code__ and _all_same(_around(a), _around(b))
    if isinstance(a, types.MethodType):
        return a.__self__ is b.__self__ and same_code(a.__func__, b.__func__)
    if isinstance(a, functools.partial):
        return _all_same((a.func, a.args, _items(a.keywords)), (b.func, b.args, _items(b.keywords)))
    return False


def _around(f: types.FunctionType) -> tuple[Any, ...]:
    """Return what a function reads beside its arguments and its module's names."""
    cells = tuple(cell.cell_contents for cell in f.__closure__ or ())
    return (f.__globals__, f.__defaults__, _items(f.__kwdefaults__ or {}), _items(vars(f)), *cells)


def _items(named: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(named.items())


def _all_same(a: Any, b: Any) -> bool:
    """Tell values that are the same; what can change has to be the same object."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_all_same, a, b))
    if callable(a):
        return same_code(a, b)
    return isinstance(a, (int, float, str, bytes, *_placements())) and bool(a == b)


def _placements() -> tuple[type, ...]:
    loaded = sys.modules.get("torch.distributed.tensor")  # slow to import: then there is none
    return () if loaded is None else (loaded.placement_types.Placement,)
