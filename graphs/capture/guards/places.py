"""Where Python keeps what a model's code reaches: attributes, lists, dicts, closures, globals.

Knows how to put back what such places held. Knows nothing of tracing, nor how they are found.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner.graphs.capture.guards.own_attributes import attributes_of
from planner.graphs.capture.guards.own_code import followed, lines_comparing_types
from planner.graphs.capture.guards.paths import (
    MISSING,
    Attribute,
    Content,
    InModel,
    Item,
    Path,
    Step,
)
from planner.graphs.torch_api.module_internals import TENSOR_STORES

_TYPE, _TENSORS = ("LOAD_GLOBAL", "type"), frozenset(("Tensor", "Parameter"))


@dataclass(frozen=True, eq=False)
class Place:
    """Something that holds other things under keys; ``names`` are those of interest, if not all."""

    path: Path
    owner: Any
    names: frozenset[str] | None = None

    def held(self) -> dict[Any, Any]:
        """Return what it holds now, by name, key or position."""
        owner = self.owner
        if isinstance(owner, types.CellType):
            return {"": Content().of(owner)}
        if isinstance(owner, dict):
            if self.names is not None:
                return {n: owner[n] for n in self.names if n in owner}
            return dict(owner) if type(owner) is dict else {k: owner[k] for k in owner}
        if isinstance(owner, list | deque):
            return dict(enumerate(owner))
        if isinstance(owner, set):
            return {x: x for x in owner}
        own = isinstance(self.path.root, InModel) and not self.path.steps
        found = attributes_of(owner)
        return {k: v for k, v in found.items() if k not in TENSOR_STORES} if own else found

    def entries(self) -> dict[Step, Any]:
        """Return what it holds now, by the step that leads there."""
        return self.by_step(self.held())

    def by_step(self, held: Mapping[Any, Any]) -> dict[Step, Any]:
        """Return what it held, by the step that leads there.

        Args:
            held: as it was returned by ``held``.
        """
        return {self.step(key): value for key, value in held.items()}

    def step(self, key: Any) -> Step:
        """Return the step that leads to what is held under a name, key or position.

        Args:
            key: as in ``held``.
        """
        if isinstance(self.owner, types.CellType):
            return Content()
        kept = isinstance(self.owner, dict | list | deque | set)
        return Item(key) if kept else Attribute(key)

    def restore(self, held: Mapping[Any, Any]) -> None:
        """Make it hold again what it held.

        Args:
            held: as it was returned by ``held``.
        """
        owner = self.owner
        if isinstance(owner, list | deque):
            owner.clear()
            owner.extend(held.values())
        elif isinstance(owner, set):
            owner.clear()
            owner.update(held.values())
        elif isinstance(owner, dict) and self.names is None:
            for key in list(owner):
                del owner[key]
            for key, value in held.items():  # in the order in which they were there
                owner[key] = value
        else:
            again = {**dict.fromkeys(self.entries(), MISSING), **self.by_step(held)}
            for step, value in again.items():
                step.put(owner, value)


@dataclass(frozen=True)
class Reached:
    """What a model's code reaches: places, modules first, every ``lru_cache``, the functions.

    ``generators`` are random generators, ``arrays`` are arrays, with the paths to them. ``names``
    are those that the code asks for, of globals, attributes or anything that it has as a text.
    ``functions`` are those of nobody's library.
    """

    places: list[Place]
    caches: list[Any]
    codes: list[types.CodeType]
    generators: list[tuple[Path, Any]]
    arrays: list[tuple[Path, Any]]
    functions: list[types.FunctionType]
    names: frozenset[str]

    @property
    def asks_for_types(self) -> bool:
        """Whether code of nobody's library asks for another's ``type``, or matches classes.

        Comparisons of objects (``__eq__``) do so of objects, which no number is.
        """
        for function in self.functions:
            if function.__name__.startswith("__") and function.__name__ != "__call__":
                continue
            for step, after in followed(function.__code__):
                of_self = after is not None and after.argval == "self"
                if step.opname == "MATCH_CLASS":
                    return True
                if (step.opname, step.argval) == _TYPE and not of_self:
                    return True
        return False

    def compares_type_with_tensor(self) -> str | None:
        """Return where code of nobody's library compares a ``type(...)`` with that of tensors."""
        for function in self.functions:
            for line in lines_comparing_types(function.__code__, _TENSORS):
                return f"{function.__code__.co_filename}:{line}"
        return None

    def only_appends_to(self, name: str) -> bool:
        """Tell whether all that the code does with an attribute is ``.name.append(...)``.

        Args:
            name: of the attribute.
        """
        for code in self.codes:
            for step, after in followed(code):
                appends = after is not None and after.argval == "append"
                if step.argval == name and not (step.opname == "LOAD_ATTR" and appends):
                    return False
        return True
