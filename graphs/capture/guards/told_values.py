"""What Python holds, told as values that do not change and can be compared later, or quickly.

Knows constants, collections, arrays, tensors and objects of somebody's own classes. Knows nothing
of where they were found.
"""

from __future__ import annotations

import argparse
import enum
import itertools
import math
import sys
import threading
import types
import weakref
from array import array
from collections import UserDict, UserList, deque
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.weak import WeakIdKeyDictionary

from planner.graphs.capture.guards.paths import (
    MISSING,
    Attribute,
    Content,
    Item,
    Member,
    Path,
    Step,
)

_CONSTANTS = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, enum.Enum),
    *(torch.dtype, torch.device, torch.layout, torch.Size, type, type(MISSING)),
)
PLAIN = frozenset((type(None), bool, int, str, torch.dtype, torch.device, type(MISSING)))
"""The commonest constants: told by their type alone, which is the quickest."""
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
LARGE = 4096
"""Items beyond which of a list or an array only its identity and length are compared."""


@dataclass(frozen=True, slots=True)
class Whole:
    """The contents of a collection, or the class of an object, which is watched by itself."""

    kind: type
    parts: tuple[tuple[Step | None, Any], ...] = ()

    def __repr__(self) -> str:
        return f"a {self.kind.__name__}" + (f" of {len(self.parts)}" if self.parts else "")


def tensors_told(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what was told."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Whole):
        for _, part in value.parts:
            yield from tensors_told(part)


def floats_changed(path: Path, was: Any, now: Any) -> Iterator[Path]:
    """Yield where a float is another number now, if another can be put there.

    Args:
        path: of the values.
        was, now: as told.
    """
    if isinstance(was, Whole) and isinstance(now, Whole):
        if issubclass(was.kind, tuple | set | frozenset):
            return
        after = dict(now.parts)
        for step, part in was.parts:
            if step is not None and step in after:
                yield from floats_changed(path.then(step), part, after[step])
    elif type(was) is float and is_number(now) and repr(was) != repr(now):
        yield path


def is_number(value: Any) -> bool:
    """Tell a float that is a number: what holds of every one need not hold of nan, nor of inf.

    >>> is_number(1.0), is_number(float("nan")), is_number(1)
    (True, False, False)
    """
    return type(value) is float and math.isfinite(value)


def first_difference(path: Path, was: Any, now: Any, *, loose: bool) -> tuple[Path, Any, Any]:
    """Return where two values begin to differ, as deep inside as can be told.

    Args:
        path: of the values.
        was, now: as told.
        loose: as for ``same``.
    """
    if isinstance(was, Whole) and isinstance(now, Whole) and was.kind is now.kind:
        before, after = dict(was.parts), dict(now.parts)
        for step in {**before, **after}:
            pair = before.get(step, MISSING), after.get(step, MISSING)
            if step is not None and not same(*pair, loose=loose):
                return first_difference(path.then(step), *pair, loose=loose)
    return path, was, now


def shown(value: Any) -> str:
    """Return a value as errors show it."""
    if isinstance(value, Tensor):
        return "a tensor"
    return str(getattr(value, "__name__", repr(value)))


def is_told(value: Any) -> bool:
    """Tell a value that can be told and compared, if only by its identity."""
    # a tensor of another type was made by the trace itself
    return type(value) is Tensor or not isinstance(value, Tensor)


def is_watched(value: Any) -> bool:
    """Tell an instance whose attributes can be watched, a collection or a constant among them."""
    return _is_own_class(type(value))  # type: ignore[arg-type] # classes are hashable


def is_object(value: Any) -> bool:
    """Tell an instance whose attributes are all that there is to it, and can be watched."""
    return is_watched(value) and not isinstance(value, (*_CONSTANTS, *_COLLECTIONS))


def written_in_python(cls: type) -> bool:
    """Tell a class whose attributes can be set.

    Args:
        cls: any class.
    """
    made, fixed = 1 << 9, 1 << 8  # Py_TPFLAGS_HEAPTYPE, Py_TPFLAGS_IMMUTABLETYPE
    return cls.__flags__ & (made | fixed) == made


_HOLDERS = (argparse.Namespace, UserDict, UserList, Optimizer, LRScheduler, Distribution)
"""Classes of Python and torch whose instances hold what a loop may change."""


def is_of_libraries(cls: type) -> bool:
    """Tell a class that is Python's or torch's own machinery, and holds nothing of anybody's.

    Args:
        cls: any class.
    """
    own = cls.__module__.partition(".")[0] in {"torch", *sys.stdlib_module_names}
    return own and not issubclass(cls, _HOLDERS)


@lru_cache(maxsize=4096)
def _is_own_class(cls: type) -> bool:
    plain = issubclass(cls, (type, Tensor, nn.Module, types.ModuleType, BaseException))
    return written_in_python(cls) and not plain and not is_of_libraries(cls)


def is_array(value: Any) -> bool:
    """Tell an array or a number of NumPy, an ``array`` and a ``bytearray``."""
    numpy = sys.modules.get("numpy")
    known = _BYTES if numpy is None else (*_BYTES, numpy.ndarray, numpy.generic)
    return isinstance(value, known)


def keys_of(value: Any) -> Any:
    """Return the keys under which a collection holds something, its length if it is a list."""
    if isinstance(value, types.SimpleNamespace):
        return tuple(vars(value))
    return tuple(value) if isinstance(value, dict) else len(value)


def contents_of(value: Any) -> tuple[Any, ...]:
    """Return what an array holds, down to the last bit, as a hashable value.

    Args:
        value: of NumPy, of ``array``, or a ``bytearray``; of a large one its identity counts.
    """
    if isinstance(value, _BYTES):
        code = value.typecode if isinstance(value, array) else ""
        return code, len(value), bytes(value) if len(value) <= LARGE else id(value)
    content = value.tobytes() if value.size <= LARGE else id(value)
    return value.dtype.str, value.shape, content


_BYTES = (bytearray, array)


def told(value: Any, depth: int = 0) -> Any:
    """Return a value as one that does not change, as deep as its collections go.

    Args:
        value: any; of what is none of these kinds only the identity counts.
        depth: of collections around it; of one that is too deep, too, for it may hold itself.
    """
    if is_array(value):
        content = contents_of(value)
        held = value if type(content[-1]) is int else None  # so that its identity stays its own
        return Whole(type(value), ((None, content), (None, held)))
    if isinstance(value, torch.Size) or not isinstance(value, _COLLECTIONS):
        return Whole(type(value)) if is_object(value) else value
    if depth == DEEPEST:
        return value
    if size_of(value) > LARGE:
        return Whole(type(value), ((None, (id(value), size_of(value))), (None, value)))
    pairs = parts_of(value)
    return Whole(type(value), tuple((step, told(part, depth + 1)) for step, part in pairs))


_SIZED = (tuple, list, deque, dict, set, frozenset)
_COLLECTIONS = (
    *_SIZED,
    *(types.SimpleNamespace, threading.local),
    *(partial, types.MethodType, ContextVar, weakref.ref),
)
DEEPEST = 16
"""Collections around a value beyond which it is told by its identity."""


def size_of(value: Any) -> int:
    """Return how much there is in a collection."""
    return len(value) if isinstance(value, _SIZED) else 0


def parts_of(value: Any) -> Iterator[tuple[Step, Any]]:
    """Yield what lies in a collection, and how to come to it; nothing for other values.

    A key is a part of a dict, too, where it holds something itself: an object, no text.

    >>> list(parts_of({"a": 1}))
    [(Item(key='a'), 1)]
    """
    if isinstance(value, types.SimpleNamespace | threading.local):
        yield from ((Attribute(k), v) for k, v in vars(value).items())
    elif isinstance(value, partial):
        yield from ((Attribute(k), getattr(value, k)) for k in ("func", "args", "keywords"))
    elif isinstance(value, types.MethodType):
        yield from ((Attribute(k), getattr(value, k)) for k in ("__self__", "__func__"))
    elif isinstance(value, ContextVar | weakref.ref):
        yield Content(), Content().of(value)
    elif isinstance(value, dict):
        yield from ((Item(k), v) for k, v in value.items())
        more = ((i, k) for i, k in enumerate(value) if is_watched(k) or isinstance(k, _COLLECTIONS))
        yield from ((Member(i), k) for i, k in more)
    elif isinstance(value, set | frozenset):
        yield from ((Member(i), x) for i, x in enumerate(value))
    elif isinstance(value, tuple | list | deque):
        yield from ((Item(i), x) for i, x in enumerate(value))


def same(a: Any, b: Any, *, loose: bool = False) -> bool:
    """Tell whether two values as told are the same.

    Args:
        a, b: the values.
        loose: tensors may be others of the same kind.
    """
    match = partial(same, loose=loose)
    if isinstance(a, Whole) and isinstance(b, Whole):
        alike = a.kind is b.kind and len(a.parts) == len(b.parts)
        return alike and all(map(match, a.parts, b.parts))
    if type(a) is type(b) is tuple:
        return len(a) == len(b) and all(map(match, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        kinds = [(type(t), t.shape, t.dtype, t.device) for t in (a, b)]
        real = type(a) in (Tensor, nn.Parameter) and not a.is_meta
        return a is b or (kinds[0] == kinds[1] and (loose or not real or torch.equal(a, b)))
    if isinstance(a, Item) and isinstance(b, Item) and type(a.key) is not type(b.key):
        return False  # True is no 1
    comparable = type(a) is type(b) and isinstance(a, (*_CONSTANTS, Step))
    return a is b or (comparable and bool(exact(a) == exact(b)))


def exact(value: Any) -> Any:
    """Return a plain value as one whose equality is identity: of ``nan``, 0.0 and -0.0, too.

    >>> exact(0.0) == exact(-0.0), exact(float("nan")) == exact(float("nan")), exact(1)
    (False, True, 1)
    """
    return repr(value) if isinstance(value, float | complex) else value


def quickly(value: Any, *, loose: bool, depth: int = 0) -> Any:
    """Return a value as a hashable one, quick enough for every step, another where it is told so.

    Args:
        value: as it is now.
        loose: tensors may be others of the same kind.
        depth: as for ``told``.
    """
    kind = type(value)
    if kind in PLAIN:
        return kind, value  # True is no 1
    # asked once, not by every isinstance: some classes make that cost more than all else
    own = getattr(value, "__class__", kind) is kind
    if own and kind in _KNOWN_OBJECTS:
        return kind
    if isinstance(value, Tensor):
        return (value.shape, value.dtype) if loose else token_of(value)
    contents: Any
    if is_array(value):
        contents = contents_of(value)
    elif isinstance(value, _COLLECTIONS) and not isinstance(value, torch.Size):
        contents = _quick_contents(value, loose=loose, depth=depth)
    elif isinstance(value, _CONSTANTS):
        contents = repr(value) if kind is slice else exact(value)
    elif not is_object(value):
        return token_of(value)
    else:  # an object is watched by itself
        if own:
            _KNOWN_OBJECTS.add(kind)
        return kind
    return kind, contents


_KNOWN_OBJECTS = weakref.WeakSet[type]()
"""Classes whose instances are objects, all that do not say that they are of another class."""


_TOKENS = WeakIdKeyDictionary()
_COUNT = itertools.count()


def token_of(value: Any) -> int:
    """Return a number that no other object has or will have, as its id may when it is gone.

    Args:
        value: any; of what cannot be told from afar when it is gone, it is the id.
    """
    try:
        if value not in _TOKENS:
            _TOKENS[value] = -1 - next(_COUNT)  # no id
    except TypeError:
        return id(value)
    return int(_TOKENS[value])


def _quick_contents(value: Any, *, loose: bool, depth: int) -> Any:
    if size_of(value) > LARGE or depth == DEEPEST:
        return id(value), size_of(value)
    parts = (quickly(part, loose=loose, depth=depth + 1) for _, part in parts_of(value))
    if isinstance(value, dict):
        return tuple((type(k), k) for k in value), tuple(parts)
    return tuple(parts)
