"""What a run of the model's code changed of Python's own state, and how to undo it.

Tensors in parameters and buffers are not meant: they are part of the step. Knows places and random
generators of Python and NumPy. Knows nothing of tracing.
"""

from __future__ import annotations

import copy
import gc
import operator
import random
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from planner.graphs.capture.guards.paths import MISSING, Attribute, Path, Step
from planner.graphs.capture.guards.places import Place
from planner.graphs.capture.guards.told_values import contents_of, exact
from planner.graphs.capture.guards.values import user_line
from planner.graphs.capture.guards.walk import reached
from planner.graphs.torch_api.fake_tensors import stands_for_tensors
from planner.graphs.torch_api.module_internals import (
    children_of,
    set_children,
    written_by_torch,
)
from planner.graphs.torch_api.patches import Patches


@dataclass(frozen=True, eq=False)
class Change:
    """What a place held under a key before, and what it holds now; either may be ``MISSING``."""

    place: Place
    step: Step
    before: Any
    now: Any

    @property
    def path(self) -> Path:
        """Where that is."""
        return self.place.path.then(self.step)

    @property
    def is_of_stand_ins(self) -> bool:
        """Whether it is a new entry for a type that tensors have while a step is captured, alone.

        Whoever keeps one for each type of tensors has made it for those of a training loop, or will
        at their first call.
        """
        key = getattr(self.step, "key", None)
        new = self.before is MISSING and isinstance(self.place.owner, dict)
        return new and isinstance(key, type) and stands_for_tensors(key)

    @property
    def differs(self) -> bool:
        """Whether it is another thing; what is written again need not be."""
        return self.before is not self.now and not _equal(self.before, self.now)


@dataclass(frozen=True, eq=False)
class _Generator:
    """A random generator: how to read its state and how to set it."""

    label: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    before: Any


class PythonState:
    """The state of everything that a model's code reaches, as it was when this was made.

    >>> class Counting(nn.Linear):
    ...     calls = 0
    ...     def forward(self, x):
    ...         self.calls += 1
    ...         return super().forward(x)
    >>> import torch
    >>> model = Counting(2, 2)
    >>> state = PythonState(model, ())
    >>> _ = model(torch.zeros(1, 2))
    >>> [(str(c.path), c.before, c.now) for c in state.changes()]
    [("attribute 'calls' of the model", missing, 1)]
    >>> state.restore()
    >>> model.calls
    0
    """

    def __init__(self, model: nn.Module, functions: Iterable[Any]) -> None:
        self.reached = reached(model, functions)
        self.places = self.reached.places
        self._caches = [[cache, cache.cache_info().misses] for cache in self.reached.caches]
        self._children = [(m, children_of(m)) for m in model.modules()]
        self._before = [(place, place.held()) for place in self.places]
        self._generators = list(_generators(self.reached.generators))
        self._arrays = [(a, contents_of(a), copy.copy(a)) for _, a in self.reached.arrays]
        self._lines: list[str] = []
        self.written: Collection[tuple[int, str]] = ()
        """What was written, by ``written_as``: what is the same now need not be at a later call."""

    def changes(self) -> list[Change]:
        """Return what is not as it was."""
        found: list[Change] = []
        written = {owner for owner, _ in self.written}
        for place, held in self._before:
            if _same(now_held := place.held(), held) and identity(place.owner) not in written:
                continue
            before, now = place.by_step(held), place.by_step(now_held)
            again = self._again(place, now)
            own = written_by_torch(owner) if isinstance(owner := place.owner, nn.Module) else ()
            for step in {**before, **now}:
                if isinstance(step, Attribute) and step.name in own:
                    continue
                change = Change(place, step, before.get(step, MISSING), now.get(step, MISSING))
                if change.differs or step in again:
                    found.append(change)
        return found

    def _again(self, place: Place, now: Mapping[Step, Any]) -> set[Step]:
        """Return the attributes with plain values that were written, perhaps what they were."""
        if not self.written:
            return set()
        return {
            step
            for step, value in now.items()
            if isinstance(step, Attribute)
            and isinstance(value, _PLAIN | tuple)
            and written_as(place.owner, step.name) in self.written
        }

    def cached_tensors(self) -> list[Tensor]:
        """Return the tensors that an ``lru_cache`` keeps for the model's code."""
        return [t for cache, _ in self._caches for t in _tensors_kept_by(cache)]

    def made_modules(self) -> Iterator[str]:
        """Yield the submodules that are not those there were, by name."""
        for module, children in self._children:
            for name, child in children_of(module).items():
                if child is not None and children.get(name) is not child:
                    yield name

    def keys_moved(self) -> Iterator[Path]:
        """Yield the dicts whose keys changed places, or became others that are equal to them.

        No entry shows that. New keys come last.
        """
        for place, before in self._before:
            if not isinstance(place.owner, dict) or place.names is not None:
                continue
            now = place.held()
            if len(now) == len(before) and all(map(operator.is_, now, before)):
                continue
            stayed = [key for key in before if key in now]
            if not all(map(_same_key, stayed, now)):
                yield place.path

    def rewritten(self) -> Iterator[Path]:
        """Yield the arrays that hold something else than they did."""
        for (path, array), (_, before, _) in zip(self.reached.arrays, self._arrays, strict=True):
            if contents_of(array) != before:
                yield path

    def drawn_from(self) -> str | None:
        """Return the random generator that was drawn from, if one was."""
        for generator in self._generators:
            if not _equal(generator.read(), generator.before):
                return generator.label
        return None

    def watch_draws(self, patches: Patches) -> None:
        """Note the lines that draw from the generators of Python and NumPy themselves."""
        numpy = sys.modules.get("numpy")
        for module in (random, None if numpy is None else numpy.random):
            for name in getattr(module, "__all__", ()):
                own = getattr(module, name)
                if callable(own) and not isinstance(own, type):
                    patches.attribute(module, name, self._noting(own, patches))

    def _noting(self, own: Callable[..., Any], patches: Patches) -> Callable[..., Any]:
        def drawn(*args: Any, **kwargs: Any) -> Any:
            if patches.mine():
                self._lines.append(user_line())
            return own(*args, **kwargs)

        return drawn

    def where_drawn(self) -> str:
        """Return `` at file:line`` of the first draw, if it was seen."""
        return next((f" at {line}" for line in self._lines if line), "")

    def restore(self) -> None:
        """Put everything back; an ``lru_cache`` that has missed since forgets what it keeps."""
        for cache in self._caches:
            if cache[0].cache_info().misses != cache[1]:
                cache[0].cache_clear()
                cache[1] = 0
        for module, children in self._children:
            if list(children_of(module).items()) != list(children.items()):
                set_children(module, children)
        for place, before in self._before:
            if not _same(place.held(), before):
                place.restore(before)
        self._restore_arrays()
        for generator in self._generators:
            if not _equal(generator.read(), generator.before):
                generator.write(generator.before)

    def _restore_arrays(self) -> None:
        for array, before, kept in self._arrays:
            if contents_of(array) != before:
                array[... if hasattr(array, "dtype") else slice(None)] = kept


@contextmanager
def unchanged(state: PythonState) -> Iterator[None]:
    """Leave Python's state as it was, however the block ends."""
    try:
        yield
    finally:
        state.restore()


_MOST_KEPT = 100_000
_PLAIN = bool | int | float | complex | str | bytes | None


def identity(owner: Any) -> int:
    """Return a number that objects share which share their attributes, as a planned model does."""
    return id(getattr(owner, "__dict__", owner))


def written_as(owner: Any, name: str) -> tuple[int, str]:
    """Return what tells an attribute from others."""
    return identity(owner), name


def _same(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> bool:
    """Tell whether two places hold the very same things, in the same order."""
    if len(a) != len(b) or not all(map(operator.is_, a.values(), b.values())):
        return False
    return all(map(operator.is_, a, b)) or all(map(_same_key, a, b))


def _same_key(a: Any, b: Any) -> bool:
    """Tell whether two keys are the same to whoever reads them: 1 and True are not."""
    if isinstance(a, _PLAIN | tuple | Tensor):
        return _equal(a, b)
    return a is b or (type(a) is type(b) and bool(a == b))


def _equal(a: Any, b: Any) -> bool:
    """Tell whether two plain values are the same; arrays and objects only if they are one."""
    if a is b or type(a) is not type(b):
        return a is b
    if isinstance(a, _PLAIN):
        return bool(exact(a) == exact(b))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and "bit_generator" in a:  # the state of a generator of NumPy
        return repr(a) == repr(b)
    return type(a).__name__ == "ndarray" and bool((a == b).all())


def _tensors_kept_by(cache: Any) -> Iterator[Tensor]:
    """Yield the tensors among what the garbage collector knows a cache to hold."""
    waiting, seen = [cache], set[int]()
    while waiting and len(seen) < _MOST_KEPT:
        top = waiting.pop()
        if isinstance(top, Tensor):
            yield top
        elif id(top) not in seen and (
            isinstance(top, dict | list | tuple) or type(top).__module__ == "functools"
        ):
            seen.add(id(top))
            waiting += gc.get_referents(top)


def _generators(found: Iterable[tuple[Path, Any]]) -> Iterator[_Generator]:
    yield _Generator("Python's random", random.getstate, random.setstate, random.getstate())
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        read, write = numpy.random.get_state, numpy.random.set_state
        yield _Generator("NumPy's random", read, write, read())
    for path, value in found:
        label = str(path)
        if isinstance(value, random.SystemRandom):
            continue  # it has no state
        if isinstance(value, random.Random):
            yield _Generator(label, value.getstate, value.setstate, value.getstate())
        elif hasattr(value, "bit_generator"):
            bits = value.bit_generator
            write = partial(setattr, bits, "state")
            yield _Generator(label, partial(getattr, bits, "state"), write, bits.state)
        else:
            yield _Generator(label, value.get_state, value.set_state, value.get_state())
