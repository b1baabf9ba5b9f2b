"""Turn the text a person types for a model into the model: ``path.py:function``.

Knows how to import a function from a file or a package and what it may return. Knows nothing of
what is done with the model.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from planner.errors import BadSpec

if TYPE_CHECKING:
    from torch import nn

_FORM = "expected 'path.py:function' or 'package.module:function'"


@dataclass(frozen=True, slots=True)
class Example:
    """A model and what to run it on; ``inputs`` is ``None`` if the model knows its own."""

    model: nn.Module
    inputs: Any


def load_example(spec: str, inputs_spec: str | None = None) -> Example:
    """Call the function ``spec`` names, which returns a model or ``(model, inputs)``.

    Args:
        spec: ``path.py:function`` or ``package.module:function``.
        inputs_spec: the same for a function that returns the inputs; it overrides the model's.

    Raises:
        BadSpec: there is no such function, it raises, or it returns no model.
    """
    import torch

    found = _call(spec)
    model, inputs = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(model, torch.nn.Module):
        raise BadSpec(
            f"{spec} returned {type(found).__name__}, expected an nn.Module or (nn.Module, inputs)"
        )
    return Example(model, inputs if inputs_spec is None else _call(inputs_spec))


def load_function(spec: str) -> Callable[..., Any]:
    """Return the function ``spec`` names, which explains itself when it fails.

    Raises:
        BadSpec: there is no such function, or, when called, it raises.
    """
    resolve(spec)
    return lambda *arguments: _call(spec, *arguments)


def _call(spec: str, *arguments: Any) -> Any:
    function = resolve(spec)
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise BadSpec(f"{spec} raised {_last_line(error)}") from error


def resolve(spec: str) -> Callable[..., Any]:
    """Import the function a text names.

    Raises:
        BadSpec: the text is malformed, or there is no such file, module or function.

    >>> resolve("collections:OrderedDict")
    <class 'collections.OrderedDict'>
    >>> resolve("model.py")
    Traceback (most recent call last):
    planner.errors.BadSpec: 'model.py' names no function: expected 'path.py:function' or ...
    """
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise BadSpec(f"{spec!r} names no function: {_FORM}")
    module = _import_file(place) if place.endswith(".py") else _import_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise BadSpec(f"{place} has no function {name!r}; it has {', '.join(names) or 'none'}")
    return function  # type: ignore[no-any-return] # any callable will do, its result is checked


def _import_file(place: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        raise BadSpec(f"there is no file {place}: {_FORM}")
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_from_{path.parent.name}"
    for known in (path.stem, name):
        if getattr(sys.modules.get(known), "__file__", None) == str(path):
            return sys.modules[known]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None  # every .py file has one
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that its classes can be pickled and found again
    _find_neighbours(path.parent)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        del sys.modules[name]
        raise BadSpec(f"{place} cannot be imported: {_last_line(error)}") from error
    return module


def _import_module(place: str) -> ModuleType:
    _find_neighbours(Path.cwd())
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise BadSpec(f"{place} cannot be imported: {_last_line(error)}; {_FORM}") from error


def _find_neighbours(folder: Path) -> None:
    """Let the user's file import what lies beside it, as ``python path.py`` does."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _last_line(error: BaseException) -> str:
    """Say what an error is and in which line of which file it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
