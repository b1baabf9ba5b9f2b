"""What Python holds, told as values that do not change and can be compared later, or quickly.

Knows constants, collections, arrays, tensors and objects of somebody's own classes. Knows nothing
of where they were found.
"""

from __future__ import annotations

import enum
import sys
import types
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from planner.graphs.capture.guards.paths import MISSING, Attribute, Item, Path, Step

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
    """Yield where a float is another float now.

    Args:
        path: of the values.
        was, now: as told.
    """
    if isinstance(was, Whole) and isinstance(now, Whole):
        after = dict(now.parts)
        for step, part in was.parts:
            if step is not None and step in after:
                yield from floats_changed(path.then(step), part, after[step])
    elif type(was) is type(now) is float and repr(was) != repr(now):
        yield path


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
    """Tell a value that can be told and compared."""
    # a tensor of another type was made by the trace itself
    kinds = (*_CONSTANTS, *_FUNCTIONS, tuple, list, dict, set, frozenset, deque)
    return (
        isinstance(value, (*kinds, types.SimpleNamespace, nn.Module))
        or type(value) is Tensor
        or is_array(value)
        or is_object(value)
    )


def is_object(value: Any) -> bool:
    """Tell an instance of somebody's own class, whose attributes can be watched."""
    return _is_own_class(type(value))  # type: ignore[arg-type] # classes are hashable


def written_in_python(cls: type) -> bool:
    """Tell a class whose attributes can be set.

    Args:
        cls: any class.
    """
    return bool(cls.__flags__ & (1 << 9))  # Py_TPFLAGS_HEAPTYPE


@lru_cache(maxsize=4096)
def _is_own_class(cls: type) -> bool:
    foreign = cls.__module__.partition(".")[0] not in {"torch", *sys.stdlib_module_names}
    heap = written_in_python(cls)
    plain = issubclass(cls, (*_CONSTANTS, Tensor, nn.Module, types.ModuleType, BaseException))
    return foreign and heap and not plain


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


def told(value: Any) -> Any:
    """Return a value as one that does not change, as deep as its collections go."""
    if is_array(value):
        return Whole(type(value), ((None, contents_of(value)),))
    if isinstance(value, torch.Size) or not isinstance(value, _COLLECTIONS):
        return Whole(type(value)) if is_object(value) else value
    pairs: list[tuple[Step | None, Any]]
    if isinstance(value, types.SimpleNamespace):
        pairs = [(Attribute(k), told(v)) for k, v in vars(value).items()]
    elif len(value) > LARGE:
        pairs = [(None, (id(value), len(value)))]
    elif isinstance(value, dict):
        pairs = [(Item(k), told(v)) for k, v in value.items()]
    elif isinstance(value, set | frozenset):
        pairs = [(None, tuple(sorted(map(repr, value))))]
    else:
        pairs = [(Item(i), told(v)) for i, v in enumerate(value)]
    return Whole(type(value), tuple(pairs))


_COLLECTIONS = (tuple, list, deque, dict, set, frozenset, types.SimpleNamespace)


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
    comparable = type(a) is type(b) and isinstance(a, (*_CONSTANTS, Attribute, Item))
    return a is b or (comparable and bool(exact(a) == exact(b)))


def exact(value: Any) -> Any:
    """Return a plain value as one whose equality is identity: of ``nan``, 0.0 and -0.0, too.

    >>> exact(0.0) == exact(-0.0), exact(float("nan")) == exact(float("nan")), exact(1)
    (False, True, 1)
    """
    return repr(value) if isinstance(value, float | complex) else value


def quickly(value: Any, *, loose: bool) -> Any:
    """Return a value as a hashable one, quick enough for every step.

    Args:
        value: as it is now.
        loose: tensors may be others of the same kind.
    """
    if is_object(value):
        return type(value)  # watched by itself
    if isinstance(value, _CONSTANTS) and not isinstance(value, slice):
        return type(value), exact(value)  # True is no 1
    if isinstance(value, Tensor):
        return (value.shape, value.dtype) if loose else id(value)
    if is_array(value):
        return type(value), contents_of(value)
    if isinstance(value, (*_COLLECTIONS, slice)):
        return _quick_contents(value, loose=loose)
    return id(value)


def _quick_contents(value: Any, *, loose: bool) -> Any:
    if isinstance(value, types.SimpleNamespace):
        value = vars(value)
    elif not isinstance(value, tuple | list | deque | dict):
        return repr(value)
    if len(value) > LARGE:
        return id(value), len(value)
    if isinstance(value, dict):
        return tuple((type(k), k, quickly(part, loose=loose)) for k, part in value.items())
    return tuple(quickly(part, loose=loose) for part in value)
