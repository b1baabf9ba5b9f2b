"""How to come to what Python holds: steps from a module, or from something outside the model.

Knows how such paths are named, followed and written to, in any copy of the model. Knows nothing of
which places a model's code reaches.
"""

from __future__ import annotations

import itertools
import types
import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import nn


class Missing:
    """What is where nothing is."""

    def __repr__(self) -> str:
        return "missing"


MISSING = Missing()


@dataclass(frozen=True, slots=True)
class Attribute:
    """One step of a path: ``.name``."""

    name: str

    def of(self, owner: Any) -> Any:
        """Return what an owner has there: its own or its class's; no property is run."""
        if self.name == "__dict__":
            return getattr(owner, "__dict__", MISSING)
        try:
            return owner.__dict__[self.name]
        except (AttributeError, KeyError):
            return in_class(type(owner), self.name, owner)

    def put(self, owner: Any, value: Any) -> None:
        """Set the attribute, or delete it."""
        if isinstance(owner, type):
            delattr(owner, self.name) if value is MISSING else setattr(owner, self.name, value)
        elif not hasattr(owner, "__dict__") and value is MISSING:
            object.__delattr__(owner, self.name)
        elif not hasattr(owner, "__dict__"):
            object.__setattr__(owner, self.name, value)  # in a slot
        elif value is MISSING:
            vars(owner).pop(self.name, None)
        else:
            vars(owner)[self.name] = value

    def __str__(self) -> str:
        return f".{self.name}"


@dataclass(frozen=True, slots=True)
class Item:
    """One step of a path: ``[key]``."""

    key: Any

    def of(self, owner: Any) -> Any:
        """Return what a list or a dict has there."""
        try:
            return owner[self.key]
        except (KeyError, IndexError, TypeError):
            return MISSING

    def put(self, owner: Any, value: Any) -> None:
        """Set or delete the item; one past the end of a list is appended."""
        if value is MISSING:
            del owner[self.key]
        elif isinstance(owner, dict) or self.key < len(owner):
            owner[self.key] = value
        else:
            owner.append(value)

    def __str__(self) -> str:
        return f"[{self.key!r}]"


@dataclass(frozen=True, slots=True)
class Content:
    """One step of a path: what a variable of a closure, or of a context, is bound to.

    Or what a weak reference leads to.
    """

    def of(self, owner: types.CellType | ContextVar[Any] | weakref.ref[Any]) -> Any:
        """Return what is in it."""
        if isinstance(owner, ContextVar):
            return owner.get(MISSING)
        if isinstance(owner, weakref.ref):
            return owner()
        try:
            return owner.cell_contents
        except ValueError:
            return MISSING

    def put(self, owner: types.CellType | ContextVar[Any], value: Any) -> None:
        """Bind the variable."""
        if isinstance(owner, ContextVar):
            owner.set(value)
        else:
            owner.cell_contents = value

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Member:
    """One step of a path: a key of a dict or an element of a set, by its place among them."""

    place: int

    def of(self, owner: Any) -> Any:
        """Return the key or the element itself."""
        return next(itertools.islice(owner, self.place, None), MISSING)

    def put(self, owner: Any, value: Any) -> None:
        """Refuse: who has other members is another collection."""
        raise TypeError(f"member {self.place} of a collection cannot be replaced")

    def __str__(self) -> str:
        return f", member {self.place}"


Step = Attribute | Item | Content | Member


@dataclass(frozen=True, slots=True)
class InModel:
    """The root of a path: a module of the model, by its place among ``modules()`` and its name."""

    place: int
    name: str

    def __str__(self) -> str:
        return f"submodule {self.name!r}" if self.name else "the model"


@dataclass(frozen=True, eq=False, slots=True)
class Outside:
    """The root of a path: what is not in the model, such as a closure or the globals of a file."""

    owner: Any
    label: str

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True, slots=True)
class Path:
    """How to get from a module, or from something outside the model, to a place."""

    root: InModel | Outside
    steps: tuple[Step, ...] = ()

    def then(self, step: Step) -> Path:
        """Return the path that is a step longer."""
        return Path(self.root, (*self.steps, step))

    def find(self, modules: Sequence[nn.Module]) -> Any:
        """Return what is there now, ``MISSING`` if nothing is.

        Args:
            modules: of the model, or of a copy of it, in order.
        """
        root = self.root
        if isinstance(root, Outside):
            found = root.owner
        elif root.place >= len(modules):
            return MISSING
        else:
            found = modules[root.place]
        for step in self.steps:
            if found is MISSING:
                return found
            found = step.of(found)
        return found

    def replace(self, modules: Sequence[nn.Module], value: Any) -> Any:
        """Put something else there; return what was there.

        Args:
            modules: of the model, in order.
            value: what is put.
        """
        step, owner = self.steps[-1], Path(self.root, self.steps[:-1]).find(modules)
        before = step.of(owner)
        if isinstance(step, Attribute) and step.name not in getattr(
            owner, "__dict__", (step.name,)
        ):
            before = MISSING  # it is its class's
        step.put(owner, value)
        return before

    def __str__(self) -> str:
        text = "".join(map(str, self.steps))
        if isinstance(self.root, Outside):
            return f"{self.root}{text}"
        shown = text.removeprefix(".")
        return f"attribute {shown!r} of {self.root}" if self.steps else str(self.root)


def in_class(cls: type, name: str, owner: Any) -> Any:
    """Return an attribute of a class that is a plain value, or the slot of an instance."""
    for base in cls.__mro__:
        if name in vars(base):
            found = vars(base)[name]
            if isinstance(found, types.MemberDescriptorType) or cls is types.FunctionType:
                return _in_slot(found, owner)
            return MISSING if hasattr(type(found), "__get__") else found
    return MISSING


def _in_slot(slot: Any, owner: Any) -> Any:
    try:
        return slot.__get__(owner, type(owner))
    except AttributeError:
        return MISSING
