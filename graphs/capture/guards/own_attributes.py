"""What objects and classes hold under names, and which of them are somebody's own.

Knows nothing of where they were found.
"""

from __future__ import annotations

import random
import sys
import types
from typing import Any

from torch import nn

from planner.graphs.capture.guards.told_values import is_of_libraries, written_in_python


def attributes_of(owner: Any) -> dict[str, Any]:
    """Return what an object or a class holds: its dict, its slots; of a class what is no method's.

    Args:
        owner: whose own attributes are meant.

    >>> class Count:
    ...     __slots__ = ("steps",)
    >>> count = Count()
    >>> count.steps = 3
    >>> attributes_of(count)
    {'steps': 3}
    """
    if isinstance(owner, type):
        return {k: v for k, v in vars(owner).items() if not k.startswith("__")}
    return {**_slots_of(owner), **getattr(owner, "__dict__", {})}


def has_state(value: Any) -> bool:
    """Tell an object with attributes whose class is not torch's or Python's own machinery.

    Args:
        value: any object.
    """
    if isinstance(value, nn.Module | types.SimpleNamespace):
        return True
    own = not is_of_libraries(type(value))
    return own and (hasattr(value, "__dict__") or bool(_slots_of(value)))


def generator_kinds() -> tuple[type, ...]:
    """Return the classes of random generators whose state can be read: Python's and NumPy's."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return (random.Random,)
    return random.Random, numpy.random.Generator, numpy.random.RandomState


def _slots_of(owner: Any) -> dict[str, Any]:
    names = [
        name
        for base in type(owner).__mro__
        if written_in_python(base)
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType)
    ]
    return {name: getattr(owner, name) for name in names if hasattr(owner, name)}
