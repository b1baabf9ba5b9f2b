"""What a traced step has fixed of a model beyond its tensors' values: to be noticed if it changes.

The code of a model runs once, when it is traced. What it read then, how its tensors lie and which
are tied, and the hooks of its submodules are part of the program from then on. Knows how to compare
that with a model later. Knows nothing of graphs or plans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from planner.graphs.capture.guards.reads import Changed, Read
from planner.graphs.torch_api.module_internals import (
    hooks_of,
    hooks_of_every_module,
    tensor_stores,
)


@dataclass(frozen=True)
class Fixed:
    """What of a model is part of a traced step."""

    reads: tuple[Read, ...]
    layout: Mapping[str, tuple[Any, ...]]
    hooks: Mapping[str, tuple[Any, ...]]


def fixed_in(model: nn.Module, reads: Sequence[Read]) -> Fixed:
    """Describe what a step just traced has fixed of a model.

    >>> model = nn.Linear(2, 3)
    >>> fixed_in(model, ()).layout["weight"]
    ((2, 1), 'cpu', 'weight')
    """
    return Fixed(tuple(reads), _layout(model), _hooks(model))


def changes(fixed: Fixed, model: nn.Module) -> Iterator[str]:
    """Yield which tensors do not lie, or are not tied, as they were when the step was traced.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> fixed = fixed_in(model, ())
    >>> model[1].weight = model[0].weight
    >>> list(changes(fixed, model))
    ["'1.weight' is now tied to '0.weight', and was not when the plan was applied"]
    """
    yield from _layout_changes(fixed.layout, _layout(model))


def hook_changes(fixed: Fixed, model: nn.Module) -> Iterator[str]:
    """Yield which submodules have other hooks than when the step was traced.

    Some change nothing of the step, as those that a library adds when it is asked for more outputs.
    """
    found = _hooks(model)
    for path in {**fixed.hooks, **found}:
        if path == _EVERY and fixed.hooks[path] != found[path]:
            yield "hooks of every module (register_module_forward_hook) changed after the plan"
        elif fixed.hooks.get(path) != found.get(path):
            yield f"hooks or the forward of submodule {path!r} changed after the plan was applied"


def read_changes(fixed: Fixed, model: nn.Module) -> Iterator[Changed]:
    """Yield what the step read of Python's state and would find otherwise."""
    modules = list(model.modules())
    for read in fixed.reads:
        if not read.holds(now := read.now(modules)):
            yield read.change(now)


def quick_look(modules: Sequence[nn.Module], reads: Sequence[Read]) -> tuple[Any, ...]:
    """Return all that ``changes`` depends on as one hashable value, quick enough for every step."""
    members = [t for m in modules for d in tensor_stores(m) for t in d.values()]
    first: dict[int, int] = {}
    return (
        tuple(
            None if t is None else (first.setdefault(id(t), i), t.stride(), t.device)
            for i, t in enumerate(members)
        ),
        (hooks_of_every_module(), *(_hooks_of(m) for m in modules[1:])),
        tuple(read.quick(modules) for read in reads),
    )


def _layout(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Return strides and device of each parameter and buffer, and the first name it has."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    first: dict[int, str] = {}
    return {n: (t.stride(), str(t.device), first.setdefault(id(t), n)) for n, t in named}


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
    own = {path: _hooks_of(m) for path, m in model.named_modules() if m is not model}
    return {**own, _EVERY: hooks_of_every_module()}


_EVERY = ""
"""The name of the model itself, under which are the hooks that run around all its submodules."""


def _hooks_of(module: nn.Module) -> tuple[Any, ...]:
    return (*hooks_of(module), "forward" in vars(module))
