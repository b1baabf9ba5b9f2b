"""What a model's code reads where nobody can watch it, taken whole before the code runs.

Closures, globals, members of classes, defaults, what hangs on functions and tensors, as far as the
code has names of it; and the environment, whose variables are noted as they are asked for.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from planner.graphs.capture.guards.own_code import LIBRARIES
from planner.graphs.capture.guards.paths import MISSING, Attribute, InModel, Item, Outside, Path
from planner.graphs.capture.guards.places import Reached
from planner.graphs.capture.guards.walk import named
from planner.graphs.torch_api.module_internals import attributes_of_tensor, own_tensors
from planner.graphs.torch_api.patches import Patches


def unseen_reads(
    reached: Reached, modules: Sequence[tuple[str, nn.Module]]
) -> Iterator[tuple[Path, Any]]:
    """Yield what the code may read without being seen, and where it is.

    Args:
        reached: what the model's code reaches.
        modules: of the model, in order, with their names.
    """
    yield from _of_places(reached)
    yield from _of_tensors(reached, modules)
    yield from _of_functions(reached)


def _of_places(reached: Reached) -> Iterator[tuple[Path, Any]]:
    names = {Attribute(name) for name in reached.names}
    for place in reached.places:
        of_class = isinstance(place.owner, type)
        if of_class or place.names is not None or isinstance(place.owner, types.CellType):
            for step, value in place.entries().items():
                if not of_class or step in names:
                    yield place.path.then(step), value


def _of_tensors(
    reached: Reached, modules: Sequence[tuple[str, nn.Module]]
) -> Iterator[tuple[Path, Any]]:
    for i, (name, module) in enumerate(modules):
        for store, key, tensor in own_tensors(module):
            path = Path(InModel(i, name)).then(Attribute(store)).then(Item(key))
            for attribute, value in attributes_of_tensor(tensor).items():
                if attribute in reached.names:
                    yield path.then(Attribute(attribute)), value


def _of_functions(reached: Reached) -> Iterator[tuple[Path, Any]]:
    for function in reached.functions:
        path = Path(Outside(function, named(function)))
        for kind in ("__defaults__", "__kwdefaults__"):
            if value := getattr(function, kind):
                yield path.then(Attribute(kind)), value
        for name, value in vars(function).items():
            if name in reached.names:
                yield path.then(Attribute(name)), value


def watch_environment(patches: Patches, note: Callable[[Path, Any], None]) -> None:
    """Note each variable of the environment that code of nobody's library asks for.

    Args:
        patches: what undoes the watching.
        note: called with where the variable is and its value.
    """
    kind: Any = type(os.environ)
    own, root = kind.__getitem__, Path(Outside(os.environ, "os.environ"))

    def read(self: Any, key: str) -> str:
        if self is not os.environ or not patches.mine() or not asked_by_the_user():
            return own(self, key)  # type: ignore[no-any-return]
        try:
            value: str = own(self, key)
        except KeyError:
            note(root.then(Item(key)), MISSING)
            raise
        note(root.then(Item(key)), value)
        return value

    patches.attribute(kind, "__getitem__", read)


def asked_by_the_user(further: int = 0) -> bool:
    """Tell whether it is code of nobody's library that called, if only through Python's own.

    Args:
        further: frames between the one that is called and the one that asks here.
    """
    frame = sys._getframe(2 + further)
    while frame.f_back is not None and _is_pythons_own(frame.f_code.co_filename):
        frame = frame.f_back
    return not frame.f_code.co_filename.startswith(LIBRARIES)


def _is_pythons_own(file: str) -> bool:
    return file.startswith(("<frozen", _PYTHON)) and "site-packages" not in file


_PYTHON = sysconfig.get_path("stdlib") + os.sep
