"""What a traced step read of Python's own state: to be noticed if it is another at a later call.

The code of a model runs once, when it is traced. What it read then (a dropout rate, an activation
function, a weight annealed in a config, a global) is part of the program from then on. Attributes
of modules and of the objects that they hold are watched as they are read; what lies in lists,
dicts, closures and globals is taken whole. Knows nothing of graphs or plans.
"""

from __future__ import annotations

import io
import types
import weakref
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
from planner.graphs.capture.guards.places import Place, Reached
from planner.graphs.capture.guards.python_state import identity, written_as
from planner.graphs.capture.guards.told_values import (
    DEEPEST,
    LARGE,
    first_difference,
    floats_changed,
    is_told,
    is_watched,
    keys_of,
    parts_of,
    quickly,
    same,
    shown,
    size_of,
    tensors_told,
    told,
)
from planner.graphs.capture.guards.unseen_reads import (
    asked_by_the_user,
    unseen_reads,
    watch_environment,
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
class Changed:
    """What is otherwise than a traced step found it, where, and whether that was a constant."""

    text: str
    path: Path
    constant: bool = False


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
        return quickly(value, loose=self.loose)

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

    def change(self, now: Any) -> Changed:
        """Say what is there now and was when the step was traced."""
        path, was, found = first_difference(self.path, self.value, now, loose=self.loose)
        if isinstance(was, Tensor):
            constant = isinstance(path.root, Outside) and not self.loose
            advice = "; pass it as an input, or for a loss callable as targets="
            text = f"{path} is another tensor than when the plan was applied"
            return Changed(text + advice * constant, path, constant)
        return Changed(
            f"{path} is {shown(found)}, and was {shown(was)} when the plan was applied", path
        )


_WHOLE = ("__dict__", "__getstate__")
"""What ``vars`` and ``copy`` ask for: all that an object has."""


class Reads:
    """What the code of a model reads inside ``watched_reads``."""

    def __init__(self, model: nn.Module, patches: Patches, lifted: Sequence[Path]) -> None:
        self._patches = patches
        self._lifted = frozenset(lifted)
        self._around = {Path(p.root, p.steps[:n]) for p in lifted for n in range(len(p.steps))}
        self._in_order = list(model.named_modules())
        self._at: dict[int, tuple[Any, Path]] = {}  # by identity, held so that it stays unique
        self._watched: set[type] = set()
        self._seen: dict[Path, Read] = {}
        self.written: set[tuple[int, str]] = set()
        """Attributes that were set, by ``written_as``."""
        self._watch(nn.Module)
        for place, (name, module) in enumerate(self._in_order):
            self._at[identity(module)] = module, Path(InModel(place, name))

    def look(self, owner: Any, name: str, value: Any) -> None:
        """Note that an attribute was read.

        Args:
            owner: the module or object.
            name: of the attribute.
            value: what was found, or ``MISSING``.
        """
        if name in _WHOLE and asked_by_the_user(1):
            self._look_at_all(owner, getattr(owner, "__dict__", {}))
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

    def _look_at_all(self, owner: Any, inside: dict[str, Any]) -> None:
        """Note that all attributes of an object were looked at, and which there are."""
        if id(inside) in self._at:
            path = self._at[id(inside)][1]
            names = path.then(Attribute("__dict__"))
            self._seen.setdefault(names, Read(names, keys_of(inside), only_keys=True))
            for name, value in list(inside.items()):
                self.look(owner, name, value)

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

    def take(self, reached: Reached) -> None:
        """Note all that the code may read where nobody can watch it.

        Args:
            reached: what the model's code reaches.
        """
        for path, value in unseen_reads(reached, self._in_order):
            self.note(path, value)
        watch_environment(self._patches, self.note)

    def kept(self) -> Iterator[Read]:
        """Yield what is still there: what the code put there itself it need not find again."""
        modules = [module for _, module in self._in_order]
        for read in self._seen.values():
            if read.holds(read.now(modules)):
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

    def _follow(self, path: Path, value: Any, depth: int = 0) -> None:
        """Watch the objects that a value is or holds."""
        if isinstance(value, nn.Module):
            if identity(value) not in self._at:
                self._foreign(path, value)
            return
        if is_watched(value):
            self._at[identity(value)] = value, path  # most recently reached this way
            self._watch(type(value))
        if depth < DEEPEST and size_of(value) <= LARGE:
            for step, part in list(parts_of(value)):
                self._follow(path.then(step), part, depth + 1)


def _iterators(path: Path, value: Any, depth: int = 0) -> Iterator[Path]:
    """Yield where an iterator is, alone or in collections, which may hold themselves."""
    if isinstance(value, Iterator) and not isinstance(value, _NO_ITERATORS):
        yield path
    elif depth < _DEEP and size_of(value) <= LARGE:
        for step, part in list(parts_of(value)):
            yield from _iterators(path.then(step), part, depth + 1)


_DEEP = 8
_NO_ITERATORS = (io.IOBase, weakref.ProxyType, weakref.CallableProxyType)


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
