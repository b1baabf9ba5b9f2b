"""What a traced step has fixed of a model beyond its tensors' values: to be noticed if it changes.

The code of a model runs once, when it is traced. What it read of its modules then (a dropout rate,
an activation function), how its tensors lie and which are tied, and the hooks of its submodules are
part of the program from then on. Knows how to see what is read, and how to compare it with a model
later. Knows nothing of graphs or plans.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from planner.graphs.torch_api.module_internals import hooks_of, tensor_stores
from planner.graphs.torch_api.module_watch import watch_attributes
from planner.graphs.torch_api.patches import Patches

_CONSTANTS = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, type)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
_MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Read:
    """An attribute that the traced step read: of which module, by path and place, and its value."""

    path: str
    place: int
    name: str
    value: Any


@dataclass(frozen=True)
class Fixed:
    """What of a model is part of a traced step."""

    reads: tuple[Read, ...]
    layout: Mapping[str, tuple[Any, ...]]
    hooks: Mapping[str, tuple[Any, ...]]


@contextmanager
def watched_reads(model: nn.Module, patches: Patches) -> Iterator[list[Read]]:
    """Collect the attributes that are read of a model's modules inside the block.

    Of interest are constants, functions and tensors that are plain attributes. What the block
    itself changes, such as a count of its calls, is left out.

    >>> from planner.graphs.torch_api.patches import patching
    >>> model = nn.Sequential(nn.Dropout(0.1))
    >>> with patching() as patches, watched_reads(model, patches) as found:
    ...     _ = model(torch.ones(2))
    >>> [(read.path, read.name, read.value) for read in found]
    [('0', 'p', 0.1), ('0', 'inplace', False)]
    """
    places = {id(m): (n, i) for i, (n, m) in enumerate(model.named_modules())}
    modules = list(model.modules())
    seen: dict[tuple[int, str], Read] = {}

    def look(module: nn.Module, name: str, value: Any) -> None:
        if id(module) in places and name != "training" and not name.startswith("__"):
            path, place = places[id(module)]
            if (place, name) not in seen and name in vars(module) and _is_told(value):
                seen[place, name] = Read(path, place, name, _told(value))

    found: list[Read] = []
    watch_attributes(patches, look)
    yield found
    found += [r for r in seen.values() if _same(r.value, _now(modules[r.place], r.name))]


def _is_told(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_told(part) and not isinstance(part, Tensor) for part in value)
    # a tensor of another type was made by the trace itself
    return isinstance(value, (*_CONSTANTS, *_FUNCTIONS)) or type(value) is Tensor


def _told(value: Any) -> Any:
    """Return the value as one that does not change: a list becomes a tuple."""
    return tuple(map(_told, value)) if isinstance(value, tuple | list) else value


def _now(module: nn.Module, name: str) -> Any:
    value = vars(module).get(name, _MISSING)
    return _told(value) if _is_told(value) else id(value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        alike = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        return a is b or (alike and (a.is_meta or torch.equal(a, b)))
    return a is b or (type(a) is type(b) and bool(a == b))


def fixed_in(model: nn.Module, reads: Sequence[Read]) -> Fixed:
    """Describe what a step just traced has fixed of a model.

    >>> model = nn.Linear(2, 3)
    >>> fixed_in(model, ()).layout["weight"]
    ((2, 1), 'cpu', 'weight')
    """
    return Fixed(tuple(reads), _layout(model), _hooks(model))


def changes(fixed: Fixed, model: nn.Module) -> Iterator[str]:
    """Yield what is not as it was when the step was traced.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> fixed = fixed_in(model, ())
    >>> model[1].weight = model[0].weight
    >>> list(changes(fixed, model))
    ["'1.weight' is now tied to '0.weight', and was not when the plan was applied"]
    """
    yield from _layout_changes(fixed.layout, _layout(model))
    found = _hooks(model)
    for path in {**fixed.hooks, **found}:
        if fixed.hooks.get(path) != found.get(path):
            yield f"hooks or the forward of submodule {path!r} changed after the plan was applied"
    modules = list(model.modules())
    for read in fixed.reads:
        value = _now(modules[read.place], read.name)
        if not _same(read.value, value):
            where = f"attribute {read.name!r} of {_named(read.path)} is"
            if isinstance(read.value, Tensor):
                yield f"{where} another tensor than when the plan was applied"
            else:
                was = f"and was {_shown(read.value)} when the plan was applied"
                yield f"{where} {_shown(value)}, {was}"


def quick_look(modules: Sequence[nn.Module], reads: Sequence[Read]) -> tuple[Any, ...]:
    """Return all that ``changes`` depends on as one hashable value, quick enough for every step."""
    members = [t for m in modules for d in tensor_stores(m) for t in d.values()]
    first: dict[int, int] = {}
    return (
        tuple(
            None if t is None else (first.setdefault(id(t), i), t.stride(), t.device.type)
            for i, t in enumerate(members)
        ),
        tuple(_hooks_of(m) for m in modules[1:]),
        tuple(
            _quick(vars(modules[r.place]).get(r.name, _MISSING))
            for r in reads
            if r.place < len(modules)
        ),
    )


def _quick(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(_quick, value))
    return value if isinstance(value, _CONSTANTS) else id(value)


def _layout(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Return strides and device of each parameter and buffer, and the first name it has."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    first: dict[int, str] = {}
    return {n: (t.stride(), t.device.type, first.setdefault(id(t), n)) for n, t in named}


def _layout_changes(
    before: Mapping[str, tuple[Any, ...]], after: Mapping[str, tuple[Any, ...]]
) -> Iterator[str]:
    since = "when the plan was applied"
    for name in {**before, **after}:
        if name not in before or name not in after:
            yield f"{name!r} {'appeared' if name in after else 'vanished'} after the plan was made"
            continue
        (stride, device, tie), (stride_now, device_now, tie_now) = before[name], after[name]
        if tie_now != tie:
            now = f"now tied to {tie_now!r}" if tie_now != name else "no longer tied"
            was = "was not" if tie == name else f"was tied to {tie!r}"
            yield f"{name!r} is {now}, and {was} {since}"
        elif (stride, device) != (stride_now, device_now):
            yield (
                f"{name!r} has strides {list(stride_now)} on {device_now}, and had strides "
                f"{list(stride)} on {device} {since}"
            )


def _hooks(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Return the hooks of each submodule; those of the model itself run around the plan."""
    return {path: _hooks_of(m) for path, m in model.named_modules() if m is not model}


def _hooks_of(module: nn.Module) -> tuple[Any, ...]:
    return (*hooks_of(module), "forward" in vars(module))


def _named(path: str) -> str:
    return f"submodule {path!r}" if path else "the model"


def _shown(value: Any) -> str:
    return str(getattr(value, "__name__", repr(value)))
