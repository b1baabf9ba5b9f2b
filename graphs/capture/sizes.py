"""Which sizes of a call may be smaller than those that a step was captured with.

A signature lists them as ``"dynamic": [[leaf, [dimension, ...], name], ...]``, by the place of the
tensor among the leaves of the call, with the name of its argument. Knows how they are named and
compared. Knows nothing of programs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from planner.graphs.capture.call_arguments import Arguments
from planner.graphs.capture.guards.call import Signature
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.pytree import tree_leaves, tree_unflatten, treespec_dumps

Dynamic = str | Mapping[str, int | Sequence[int]] | list[list[Any]]
"""Which dimensions may be smaller: "batch", "off", those of each argument by its name, or a list as
a signature has it."""

Sizes = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
"""Shape and strides of every tensor that may be smaller."""


def free_sizes(model: nn.Module, call: Arguments, dynamic: Dynamic) -> list[list[Any]]:
    """Return which sizes of a call may be smaller, as a signature lists them.

    Args:
        model: whose forward names the positional arguments.
        call: the largest one.
        dynamic: "batch" is dimension 0 of every tensor that has as many rows as the first; "off" is
            none; a mapping names an argument, or "targets", and its dimensions.

    Raises:
        CaptureError: no argument has this name, or no tensor of it this dimension.

    >>> import torch
    >>> from planner.graphs.capture.call_arguments import arguments
    >>> call = arguments((torch.zeros(4, 2),), {}, torch.zeros(4))
    >>> free_sizes(nn.Linear(2, 1), call, "batch")
    [[0, [0], 'input'], [1, [0], 'targets']]
    >>> free_sizes(nn.Linear(2, 1), call, {"input": (0, 1)})
    [[0, [0, 1], 'input']]
    """
    if isinstance(dynamic, list):
        return dynamic
    if dynamic == "off":
        return []
    tensors = {i: x for i, x in enumerate(call.leaves) if isinstance(x, Tensor) and x.dim()}
    names = leaf_names(model, call)
    if dynamic == "batch":
        rows = next((x.shape[0] for x in tensors.values()), 1)
        return [[i, [0], names[i]] for i, x in tensors.items() if x.shape[0] == rows > 1]
    if not isinstance(dynamic, Mapping):
        raise CaptureError(
            f'dynamic is {dynamic!r}; expected "batch", "off", or a mapping of argument names to '
            'dimensions, such as {"input_ids": (0, 1)}'
        )
    for name in dynamic:
        if name not in names:
            known = ", ".join(map(repr, dict.fromkeys(names)))
            raise CaptureError(f"dynamic names {name!r}, but the arguments are {known}")
    chosen = {i: (names[i], x) for i, x in tensors.items() if names[i] in dynamic}
    return [[i, _dims(name, dynamic[name], x), name] for i, (name, x) in chosen.items()]


def _dims(name: str, said: int | Sequence[int], tensor: Tensor) -> list[int]:
    dims = (said,) if isinstance(said, int) else tuple(said)
    for d in dims:
        if not -tensor.dim() <= d < tensor.dim():
            raise CaptureError(
                f"dynamic names dimension {d} of {name!r}, which has {tensor.dim()} dimensions"
            )
    return sorted({d % tensor.dim() for d in dims})


def free_dimensions(model: nn.Module, call: Arguments) -> Dynamic:
    """Return what a trainer's batches differ in: rows and, where there are tokens, their number.

    Args:
        model: whose forward names the positional arguments.
        call: the largest one.

    >>> import torch
    >>> from planner.graphs.capture.call_arguments import arguments
    >>> ids = torch.zeros(4, 9, dtype=torch.long)
    >>> free_dimensions(nn.Embedding(2, 2), arguments((), {"ids": ids, "labels": ids[:, 0]}))
    {'ids': (0, 1), 'labels': (0,)}
    """
    tensors = {i: x for i, x in enumerate(call.leaves) if isinstance(x, Tensor)}
    tokens = next((x for x in tensors.values() if x.dim() > 1 and not x.is_floating_point()), None)
    if tokens is None:
        return "batch"
    found: dict[str, tuple[int, ...]] = {}
    names = leaf_names(model, call)
    for i, x in tensors.items():
        pairs = enumerate(zip(x.shape, tokens.shape[:2], strict=False))
        dims = tuple(d for d, (a, b) in pairs if a == b)
        if found.setdefault(names[i], dims) != dims:
            return "batch"  # tensors of one argument differ
    return {name: dims for name, dims in found.items() if dims}


def leaf_names(model: nn.Module, call: Arguments) -> list[str]:
    """Name the argument that each leaf of a call belongs to, positional ones as forward does.

    >>> import torch
    >>> from planner.graphs.capture.call_arguments import arguments
    >>> leaf_names(nn.Linear(2, 1), arguments((torch.zeros(4, 2),), {}, torch.zeros(4)))
    ['input', 'targets']
    """
    args, kwargs, _ = tree_unflatten(list(range(len(call.leaves))), call.spec)
    own = [
        p.name
        for p in inspect.signature(type(model).forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ][1:]
    named = [(own[i] if i < len(own) else f"argument {i}", x) for i, x in enumerate(args)]
    found = {i: name for name, x in (*named, *kwargs.items()) for i in tree_leaves(x)}
    return [found.get(i, "targets") for i in range(len(call.leaves))]


def sizes_of(signature: Signature, call: Arguments) -> Sizes:
    """Return the sizes of a call where they may be smaller: a key, quick enough for every step."""
    leaves = call.leaves
    free = (leaves[i] for i, *_ in signature.get("dynamic", ()) if i < len(leaves))
    return tuple((tuple(x.shape), x.stride()) for x in free if isinstance(x, Tensor))


def by_tensor(signature: Signature, call: Arguments) -> dict[int, list[int]]:
    """Return the dimensions whose size may be smaller, by the place of the tensor among tensors."""
    places = [i for i, x in enumerate(call.leaves) if isinstance(x, Tensor)]
    return {places.index(i): dims for i, dims, _ in signature.get("dynamic", ())}


def at_smaller_sizes(planned: Signature, call: Arguments) -> Signature:
    """Return a signature at the sizes of a call: the same one if they are not smaller ones.

    Args:
        planned: of the largest call.
        call: another one.
    """
    if planned["spec"] != treespec_dumps(call.spec):
        return planned
    leaves = list(planned["leaves"])
    for i, dims, *_ in planned.get("dynamic", ()):
        if _smaller(leaves[i], call.leaves[i], dims):
            x = call.leaves[i]
            leaves[i] = [list(x.shape), list(x.stride()), *leaves[i][2:]]
    return planned if leaves == planned["leaves"] else {**planned, "leaves": leaves}


def _smaller(planned: Any, found: Any, dims: Sequence[int]) -> bool:
    if not isinstance(found, Tensor) or found.dim() != len(planned[0]):
        return False
    pairs = enumerate(zip(planned[0], found.shape, strict=True))
    fits = all(0 < b <= a if d in dims else a == b for d, (a, b) in pairs)
    return fits and planned[0] != list(found.shape)
