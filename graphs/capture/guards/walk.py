"""A walk over everything that a model's code reaches, from its attributes and its functions.

Knows what leads from one thing to the next. Knows nothing of tracing.
"""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from planner.graphs.capture.guards.own_attributes import generator_kinds, has_state
from planner.graphs.capture.guards.own_code import (
    LIBRARIES,
    instructions,
    is_own_file,
    with_inner,
)
from planner.graphs.capture.guards.paths import (
    Attribute,
    InModel,
    Item,
    Member,
    Outside,
    Path,
)
from planner.graphs.capture.guards.places import Place, Reached
from planner.graphs.capture.guards.told_values import LARGE, is_array, written_in_python
from planner.graphs.capture.guards.values import NOT_THE_USERS
from planner.graphs.torch_api.module_internals import BOOKKEEPING

_MOST = 20_000
"""Places that are looked at; code that reaches more has them in a data set or a trainer."""
_CACHED = functools._lru_cache_wrapper
_TABLE = ("LOAD_GLOBAL", "globals")
_OF_TABLES = frozenset(vars(types.ModuleType("")))
_NOT_TO_COMPUTE = frozenset(
    f"__{name}__" for name in ("del", "repr", "reduce", "reduce_ex", "getstate", "setstate", "copy")
)
_TO_CONSTRUCT = frozenset(
    f"__{name}__" for name in ("init", "new", "post_init", "init_subclass", "set_name")
)
"""What runs where objects are made, which the code walked does of classes that it names alone."""
_BY_TEXT = frozenset((
    "getattr", "hasattr", "setattr", "delattr", "vars", "globals", "locals", "eval", "attrgetter",
    "methodcaller", "__dict__", "__getattribute__",
))  # fmt: skip
_NO_NAMES = frozenset((*dis.haslocal, *dis.hasfree))
_GLOBAL = frozenset(("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"))


def reached(model: nn.Module, functions: Iterable[Any]) -> Reached:
    """Return what a model's code reaches.

    Args:
        model: whose attributes are walked, its hooks' functions, too.
        functions: further callables that run with it, such as a loss.

    >>> class Scaled(nn.Linear):
    ...     def __init__(self) -> None:
    ...         super().__init__(2, 2)
    ...         self.config = {"beta": 1.0}
    >>> [str(p.path) for p in reached(Scaled(), ()).places][:2]
    ['the model', "attribute 'config' of the model"]
    """
    walk = _Walk({id(m): m for m in model.modules()})
    for place, (name, module) in enumerate(model.named_modules()):
        root = Path(InModel(place, name))
        walk.found.append(Place(root, module))
        held = Place(root, module).held().items()
        steps = sorted(held, key=lambda item: item[0] not in BOOKKEEPING)
        walk.waiting += [(root.then(Attribute(k)), v) for k, v in steps if not _is_plain(v)]
        walk.own_class(type(module))
        for function in _forward_of(type(module)):
            walk.function(function)
    for function in functions:
        walk.waiting.append((Path(Outside(function, named(function))), function))
    walk.run()
    return Reached(
        walk.found,
        walk.caches,
        walk.codes,
        walk.generators,
        walk.arrays,
        walk.functions,
        frozenset(walk.names),
    )


def named(function: Any) -> str:
    """Return what people call a callable."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{name}"


def _forward_of(cls: type) -> Iterator[Any]:
    """Return the functions of a module's class that its forward calls, as far as names tell."""
    waiting, seen = ["forward"], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for base in cls.__mro__:
            member = vars(base).get(name)
            member = member.fget if isinstance(member, property) else member
            member = getattr(member, "__func__", member)
            if isinstance(member, _CACHED):
                yield member
                member = member.__wrapped__
            if isinstance(member, types.FunctionType) and not _in(member, NOT_THE_USERS):
                codes = with_inner(inspect.unwrap(member).__code__)
                waiting += [name for code in codes for name in code.co_names]
                yield member


def _is_called_unnamed(cls: type, name: str, *, made: bool) -> bool:
    """Tell a method that runs though no code has its name, as those of operators do.

    Those that make objects do where they are ``made``.
    """
    method = isinstance(vars(cls)[name], types.FunctionType | staticmethod | classmethod)
    by_torch = issubclass(cls, torch.autograd.Function)
    computes = name not in _NOT_TO_COMPUTE and (made or name not in _TO_CONSTRUCT)
    return method and (by_torch or (name.startswith("__") and computes))


def _asked_for(steps: Sequence[dis.Instruction]) -> set[str]:
    """Return the names that code asks for; texts only where it asks for something by its text."""
    texts = [s for s in steps if isinstance(s.argval, str) and s.opcode not in _NO_NAMES]
    by_text = any(s.argval in _BY_TEXT for s in texts)
    return {s.argval for s in texts if by_text or s.opname != "LOAD_CONST"}


def _in(function: types.FunctionType, folders: tuple[str, ...]) -> bool:
    return function.__code__.co_filename.startswith(folders)


class _Walk:
    """A walk over everything reachable; each place is visited once."""

    def __init__(self, seen: dict[int, Any]) -> None:
        self.seen = seen  # by id, held so that no id is given again
        self.found: list[Place] = []
        self.waiting: list[tuple[Path, Any]] = []
        self.globals: dict[int, tuple[Path, set[str]]] = {}
        self.caches: list[Any] = []
        self.codes: list[types.CodeType] = []
        self.generators: list[tuple[Path, Any]] = []
        self.arrays: list[tuple[Path, Any]] = []
        self.functions: list[types.FunctionType] = []
        self.names = set[str]()
        self.files = set[int]()
        self.kinds = generator_kinds()
        self.classes: dict[int, tuple[Path, type, set[str]]] = {}

    def run(self) -> None:
        while self.waiting and len(self.found) < _MOST:
            path, value = self.waiting.pop()
            if isinstance(value, types.ModuleType):
                self._file(value)
            elif not _is_plain(value) and id(value) not in self.seen:
                self.seen[id(value)] = value
                self._visit(path, value)
            if not self.waiting:
                self._by_name()
        for root, names in self.globals.values():
            self.found.append(Place(root, root.find(()), frozenset(names)))

    def _visit(self, path: Path, value: Any) -> None:
        if isinstance(value, self.kinds):
            self.generators.append((path, value))
        elif is_array(value):
            self.arrays.append((path, value))
        elif isinstance(value, type):
            self.own_class(value, made=True)
        elif callable(value) and self._visit_callable(path, value):
            pass
        elif isinstance(value, tuple | frozenset):
            if len(value) <= LARGE:
                self.waiting += [(path.then(Item(i)), part) for i, part in enumerate(value)]
        elif isinstance(value, dict | list | deque | set | types.CellType):
            self._add(Place(path, value))
        elif has_state(value):
            self._add(Place(path, value))
            self.waiting.append((path, vars(type(value)).get("__call__")))
            self.own_class(type(value))

    def own_class(self, cls: type, *, made: bool = False) -> None:
        """Walk what somebody's own class holds, and those that it is made of.

        Args:
            cls: the class.
            made: whether the code may make objects of it.
        """
        for base in cls.__mro__:
            if not (written_in_python(base) and is_own_file(sys.modules.get(base.__module__))):
                continue
            path = Path(Outside(base, f"class {base.__qualname__}"))
            if id(base) not in self.classes:
                self.classes[id(base)] = path, base, set()
                self._add(Place(path, base))
            known = self.classes[id(base)][2]
            if not issubclass(base, nn.Module):
                unnamed = {n for n in vars(base) if _is_called_unnamed(base, n, made=made)} - known
                known.update(unnamed)
                self._members(path, base, unnamed)

    def _by_name(self) -> None:
        """Walk the members of own classes and files that the code walked so far has names of."""
        for path, cls, known in self.classes.values():
            self._members(path, cls, self._new(vars(cls), known))
        for root, known in list(self.globals.values()):
            table = root.find(())
            if id(table) in self.files:
                fresh = self._new(table, known)
                self.waiting += [(root.then(Item(n)), table[n]) for n in sorted(fresh)]

    def _members(self, path: Path, cls: type, names: Iterable[str]) -> None:
        for name in sorted(names):
            member = vars(cls)[name]
            member = getattr(member, "fget", getattr(member, "__func__", member))
            self.waiting.append((path.then(Attribute(name)), member))

    def _new(self, table: Mapping[str, Any], known: set[str]) -> set[str]:
        fresh = (self.names & table.keys()) - known - _OF_TABLES
        known.update(fresh)
        return fresh

    def _file(self, module: types.ModuleType | None) -> None:
        """Walk what of one's own file is asked for by name, as ``file.name``, from another."""
        if module is not None and is_own_file(module):
            self._globals_of(vars(module), module.__name__)
            self.files.add(id(vars(module)))

    def _globals_of(self, table: dict[str, Any], name: str) -> tuple[Path, set[str]]:
        new = Path(Outside(table, f"global of {name} ")), set[str]()
        return self.globals.setdefault(id(table), new)

    def _visit_callable(self, path: Path, value: Any) -> bool:
        """Visit a function, or what wraps one; tell whether it is such a thing."""
        if isinstance(value, types.FunctionType):
            self.function(value)
        elif isinstance(value, _CACHED):
            self.caches.append(value)
            self.waiting.append((path, value.__wrapped__))
        elif isinstance(value, types.MethodType):
            self.waiting += [(path, value.__self__), (path, value.__func__)]
        elif isinstance(value, types.BuiltinFunctionType):
            self.waiting.append((path, value.__self__))
        elif isinstance(value, functools.partial):
            parts = (value.func, *value.args, *value.keywords.values())
            self.waiting += [(path, part) for part in parts]
        else:
            return False
        return True

    def _add(self, place: Place) -> None:
        self.found.append(place)
        held, path = place.held(), place.path
        if len(held) <= LARGE:
            parts = [(key, value) for key, value in held.items() if not _is_plain(value)]
            self.waiting += [(path.then(place.step(key)), value) for key, value in parts]
            if isinstance(place.owner, dict | set):
                self.waiting += [(path.then(Member(i)), key) for i, key in enumerate(held)]

    def function(self, function: Any) -> None:
        """Walk what a function's code reaches: its closure, its defaults, the globals it names."""
        function = getattr(function, "__func__", function)
        if not isinstance(function, types.FunctionType):
            self.waiting.append((Path(Outside(function, named(function))), function))
            return
        if _in(function, NOT_THE_USERS):
            return
        self.codes.append(function.__code__)
        label = named(function)
        if vars(function):
            self.found.append(Place(Path(Outside(function, label)), function))
        names = function.__code__.co_freevars
        for name, cell in zip(names, function.__closure__ or (), strict=True):
            self.waiting.append((Path(Outside(cell, f"{name!r} in the closure of {label}")), cell))
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        for value in defaults:
            self.waiting.append((Path(Outside(value, f"a default of {label}")), value))
        if _in(function, LIBRARIES):
            return
        self.functions.append(function)
        table = function.__globals__
        root, known = self._globals_of(table, function.__module__)
        steps = list(instructions(function.__code__))
        asked = {s.argval for s in steps if s.opname in _GLOBAL}
        if any((s.opname, s.argval) == _TABLE for s in steps):
            asked |= {s.argval for s in steps if isinstance(s.argval, str)}
        fresh = asked & table.keys() - known
        known.update(fresh)
        self.waiting += [(root.then(Item(n)), table[n]) for n in sorted(fresh)]
        self.names.update(_asked_for(steps))
        for step in steps:
            if step.opname == "IMPORT_NAME":
                inside = f"{table.get('__package__')}.{step.argval}"
                self._file(sys.modules.get(step.argval) or sys.modules.get(inside))


def _is_plain(value: Any) -> bool:
    plain = (type(None), bool, int, float, complex, str, bytes, Tensor)
    return isinstance(value, plain)
