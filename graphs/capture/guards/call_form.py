"""One form for calls that mean the same: an argument by position or by name, a default or nothing.

And what each is called. Knows the parameters of a model's forward. Knows nothing of what the
arguments are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from planner.graphs.torch_api.pytree import TreeSpec, tree_leaves, tree_unflatten

_EMPTY = inspect.Parameter.empty


def in_form(
    forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], spec: TreeSpec
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call's arguments as a planned call passed them, or as they are if they cannot be.

    Args:
        forward: of the model's class; its first parameter is the model.
        args: by position.
        kwargs: by name.
        spec: of the planned call's arguments: those by position, those by name, the targets.

    >>> from planner.graphs.capture.call_arguments import arguments
    >>> def forward(self, x, mask=None): ...
    >>> in_form(forward, (), {"mask": None, "x": 1}, arguments((2,), {}).spec)
    ((1,), {})
    """
    by_position, by_name, _ = tree_unflatten([None] * spec.num_leaves, spec)
    if len(args) == len(by_position) and kwargs.keys() == by_name.keys():
        return tuple(args), dict(kwargs)
    parameters = _parameters(forward)
    given = None if parameters is None else _by_name(parameters, args, kwargs)
    if parameters is None or given is None:
        return tuple(args), dict(kwargs)
    wanted = [*list(parameters)[: len(by_position)], *by_name]
    values = {n: given.pop(n, parameters.get(n, _EMPTY)) for n in wanted}
    others = [n for n, value in given.items() if value is not parameters.get(n, _EMPTY)]
    if len(values) < len(wanted) or others or any(v is _EMPTY for v in values.values()):
        return tuple(args), dict(kwargs)
    return (
        tuple(values[n] for n in wanted[: len(by_position)]),
        {n: values[n] for n in by_name},
    )


def argument_names(spec: TreeSpec, forward: Callable[..., Any] | None = None) -> list[str]:
    """Return what each leaf of a call's arguments is called by people, in order.

    Args:
        spec: of those by position, those by name, the targets.
        forward: of the model's class, whose parameters name what is passed by position.

    >>> from planner.graphs.capture.call_arguments import arguments
    >>> def forward(self, x, mask=None): ...
    >>> argument_names(arguments((1,), {"mask": [2, 3]}, 4).spec, forward)
    ["'x'", "'mask'[0]", "'mask'[1]", "'targets'"]
    """
    args, kwargs, targets = tree_unflatten(list(range(spec.num_leaves)), spec)
    known = list((forward and _parameters(forward)) or ())
    labels = [repr(known[i]) if i < len(known) else str(i) for i in range(len(args))]
    named = [*zip(labels, args, strict=True), *((repr(k), v) for k, v in kwargs.items())]
    named.append(("'targets'", targets[0] if len(targets) == 1 else targets))
    found: dict[int, str] = {}
    for label, part in named:
        leaves = tree_leaves(part)
        found |= {i: f"{label}[{n}]" if len(leaves) > 1 else label for n, i in enumerate(leaves)}
    return [found[i] for i in range(spec.num_leaves)]


def _by_name(
    parameters: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return all arguments by name; ``None`` if there are too many, or one twice."""
    named = dict(zip(parameters, args, strict=False))
    if len(args) > len(parameters) or named.keys() & kwargs.keys():
        return None
    return {**named, **kwargs}


_KNOWN: WeakKeyDictionary[Callable[..., Any], dict[str, Any] | None] = WeakKeyDictionary()
"""What functions take, for as long as they live: a planned forward holds a plan and its memory."""


def _parameters(forward: Callable[..., Any]) -> dict[str, Any] | None:
    """Return the defaults of what may be passed by position or name, in order, without the model.

    ``None`` if some may be passed by position only, or any number of them.
    """
    try:
        return _KNOWN[forward]
    except KeyError:
        _KNOWN[forward] = found = _looked_up(forward)
        return found
    except TypeError:  # it takes no weak references
        return _looked_up(forward)


def _looked_up(forward: Callable[..., Any]) -> dict[str, Any] | None:
    _, *parameters = inspect.signature(forward).parameters.values()
    kinds = {p.kind for p in parameters}
    if kinds & {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL}:
        return None
    plain = [p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    return {p.name: p.default for p in plain}
