"""What a traced step read of Python's own state: to be noticed if it is another at a later call.

The code of a model runs once, when it is traced. What it read then (a dropout rate, an activation
function, a weight annealed in a config, a global) is part of the program from then on. Attributes
of modules and of the objects that they hold are watched as they are read; what lies in lists,
dicts, closures and globals is taken whole. Knows nothing of graphs or plans.
"""

from __future__ import annotations

import io
import types
from collections import deque
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from planner.graphs.capture.guards.paths import (
    MISSING,
    Attribute,
    InModel,
    Item,
    Outside,
    Path,
    in_class,
)
from planner.graphs.capture.guards.places import Place
from planner.graphs.capture.guards.python_state import identity, written_as
from planner.graphs.capture.guards.told_values import (
    LARGE,
    PLAIN,
    first_difference,
    floats_changed,
    is_object,
    is_told,
    keys_of,
    quickly,
    same,
    shown,
    tensors_told,
    told,
)
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.module_internals import (
    BOOKKEEPING,
    STORED,
    is_child,
    own_children,
    own_tensors,
)
from planner.graphs.torch_api.module_watch import watch_attributes, watch_writes
from planner.graphs.torch_api.patches import Patches


@dataclass(frozen=True, slots=True)
class Read:
    """A place that the traced step read, and what it found there.

    ``loose`` says that the step leaves tensors there without reading them: which ones is no matter.
    ``only_keys`` compares under what keys something is there: what that is has reads of its own.
    """

    path: Path
    value: Any
    loose: bool = False
    only_keys: bool = False
    only_appended: bool = False

    def now(self, modules: Sequence[nn.Module]) -> Any:
        """Return what is there in a model, as one that does not change."""
        value = self.path.find(modules)
        if self.only_appended:
            return type(value)
        return keys_of(value) if self.only_keys else told(value)

    def holds(self, now: Any) -> bool:
        """Tell whether that is what the traced step found."""
        return same(self.value, now, loose=self.loose)

    def quick(self, modules: Sequence[nn.Module]) -> Any:
        """Return what is there as a hashable value, quick enough for every step."""
        value = self.path.find(modules)
        if self.only_keys:
            return keys_of(value)
        if self.only_appended:
            return type(value)
        kind = type(value)
        return (kind, value) if kind in PLAIN else quickly(value, loose=self.loose)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that were found."""
        return tuple(tensors_told(self.value))

    def only_held(self, held: Container[int]) -> Read:
        """Return the read, loose if it is of a tensor outside the model that no op reads.

        Args:
            held: the ids of the tensors that ops read.
        """
        outside = isinstance(self.value, Tensor) and isinstance(self.path.root, Outside)
        unread = outside and id(self.value) not in held
        return replace(self, loose=True) if unread else self

    def changed_floats(self, modules: Sequence[nn.Module]) -> list[Path]:
        """Return where a float is another float now: what may be an input as well.

        Args:
            modules: of the model, in order.
        """
        return list(floats_changed(self.path, self.value, self.now(modules)))

    def change(self, now: Any) -> tuple[str, bool]:
        """Say what is there now and was when the step was traced; whether that was a constant."""
        path, was, found = first_difference(self.path, self.value, now, loose=self.loose)
        if isinstance(was, Tensor):
            constant = isinstance(path.root, Outside) and not self.loose
            advice = "; pass it as an input, or for a loss callable as targets="
            text = f"{path} is another tensor than when the plan was applied"
            return text + advice * constant, constant
        return f"{path} is {shown(found)}, and was {shown(was)} when the plan was applied", False


class Reads:
    """What the code of a model reads inside ``watched_reads``."""

    def __init__(self, model: nn.Module, patches: Patches, lifted: Sequence[Path]) -> None:
        self._patches = patches
        self._lifted = frozenset(lifted)
        self._around = {Path(p.root, p.steps[:n]) for p in lifted for n in range(len(p.steps))}
        self._in_order = list(model.modules())
        self._at: dict[int, tuple[Any, Path]] = {}  # by identity, held so that it stays unique
        self._watched: set[type] = set()
        self._seen: dict[Path, Read] = {}
        self.written: set[tuple[int, str]] = set()
        """Attributes that were set, by ``written_as``."""
        self._watch(nn.Module)
        for place, (name, module) in enumerate(model.named_modules()):
            self._at[identity(module)] = module, Path(InModel(place, name))

    def look(self, owner: Any, name: str, value: Any) -> None:
        """Note that an attribute was read.

        Args:
            owner: the module or object.
            name: of the attribute.
            value: what was found, or ``MISSING``.
        """
        if name.startswith("__") or name in STORED or identity(owner) not in self._at:
            return
        own = getattr(owner, "__dict__", {})
        if name in BOOKKEEPING and name not in own:
            return
        if name not in own and value is not MISSING:
            if in_class(type(owner), name, owner) is MISSING:
                return
        elif value is MISSING and isinstance(owner, nn.Module) and is_child(owner, name):
            return
        if written_as(owner, name) in self.written:
            return  # it finds what it put there itself
        self.note(self._at[identity(owner)][1].then(Attribute(name)), value)

    def note(self, path: Path, value: Any) -> None:
        """Note that a value was found at the end of a path, and watch the objects it holds."""
        for where in _iterators(path, value):
            raise CaptureError(
                f"the forward pass uses an iterator, {where}, which runs on at every call, and in "
                "a plan never; take the value outside the model and pass it as an input"
            )
        if not is_told(value):
            return
        self._follow(path, value)
        if path in self._seen or path in self._lifted:
            return
        self._seen[path] = Read(path, told(value))
        if path in self._around and isinstance(value, dict | list | types.SimpleNamespace):
            self._seen[path] = Read(path, keys_of(value), only_keys=True)
            for step, part in list(Place(path, value).entries().items()):
                self.note(path.then(step), part)

    def take(self, places: Sequence[Place]) -> None:
        """Note all that lies in closures and globals: reading those cannot be watched."""
        for place in places:
            if place.names is not None or isinstance(place.owner, types.CellType):
                for step, value in place.entries().items():
                    self.note(place.path.then(step), value)

    def kept(self) -> Iterator[Read]:
        """Yield what is still there: what the code put there itself it need not find again."""
        for read in self._seen.values():
            if read.holds(read.now(self._in_order)):
                yield read

    def _foreign(self, path: Path, module: nn.Module) -> None:
        """Watch a module that is not the model's, such as a teacher: its tensors are constants."""
        self._at[identity(module)] = module, path
        mode = path.then(Attribute("training"))
        self._seen[mode] = Read(mode, module.training)
        for store, name, tensor in own_tensors(module):
            inside = path.then(Attribute(store)).then(Item(name))
            self._seen[inside] = Read(inside, tensor)
        for store, name, child in own_children(module):
            self._follow(path.then(Attribute(store)).then(Item(name)), child)

    def _watch(self, cls: type) -> None:
        if cls not in self._watched:
            self._watched.add(cls)
            watch_attributes(self._patches, cls, self.look, MISSING)
            watch_writes(self._patches, cls, self._wrote)

    def _wrote(self, owner: Any, name: str) -> None:
        self.written.add(written_as(owner, name))

    def _follow(self, path: Path, value: Any) -> None:
        """Watch the objects that a value is or holds."""
        if isinstance(value, tuple | list | deque | dict):
            if len(value) <= LARGE:
                pairs = value.items() if isinstance(value, dict) else enumerate(value)
                for key, part in list(pairs):
                    self._follow(path.then(Item(key)), part)
        elif isinstance(value, nn.Module) and identity(value) not in self._at:
            self._foreign(path, value)
        elif isinstance(value, types.SimpleNamespace):
            for name, part in list(vars(value).items()):
                self._follow(path.then(Attribute(name)), part)
        elif is_object(value):
            self._at[identity(value)] = value, path  # most recently reached this way
            self._watch(type(value))


def _iterators(path: Path, value: Any, depth: int = 0) -> Iterator[Path]:
    """Yield where an iterator is, alone or in collections, which may hold themselves."""
    if isinstance(value, Iterator) and not isinstance(value, io.IOBase):
        yield path
    elif isinstance(value, tuple | list | deque | dict) and len(value) <= LARGE and depth < _DEEP:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in list(pairs):
            yield from _iterators(path.then(Item(key)), part, depth + 1)


_DEEP = 8


@contextmanager
def watched_reads(
    model: nn.Module, patches: Patches, lifted: Sequence[Path] = ()
) -> Iterator[Reads]:
    """Collect what is read of a model's modules, and of what they hold, inside the block.

    Args:
        model: whose code runs in the block.
        patches: what undoes the watching.
        lifted: floats that may be any: they are not collected.

    >>> import torch
    >>> from planner.graphs.torch_api.patches import patching
    >>> model = nn.Sequential(nn.Dropout(0.1))
    >>> with patching() as patches, watched_reads(model, patches) as reads:
    ...     _ = model(torch.ones(2))
    >>> [(str(read.path), read.value) for read in reads.kept()]
    [("attribute 'p' of submodule '0'", 0.1), ("attribute 'inplace' of submodule '0'", False)]
    """
    yield Reads(model, patches, lifted)


def loosened(
    reads: Sequence[Read], written: Sequence[Path], appended: Sequence[Path]
) -> tuple[Read, ...]:
    """Return the reads with those loose in which the step leaves tensors.

    Args:
        reads: what the step read.
        written: where it leaves tensors.
        appended: lists that its code does nothing with but append to them: any contents will do.
    """
    inside = {Path(p.root, p.steps[:n]) for p in written for n in range(len(p.steps) + 1)}

    def loosened_one(read: Read) -> Read:
        if read.path in appended:
            return replace(read, value=list, only_appended=True)
        return replace(read, loose=True) if read.path in inside else read

    return tuple(map(loosened_one, reads))
