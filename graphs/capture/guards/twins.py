"""Whether what was traced of one module seems to be what another would be traced to.

A model repeats its layers, and each trace takes a second. To plan, one trace stands for another
module if what it was seen to depend on is the same there: code, tensors, modes, and the values that
the code was seen to read of Python's state. A value that differs and was not read, such as a
layer's number, is no matter. Reads that nobody watches (``vars(config)``, registries keyed by
module) are not seen, so whatever runs a plan traces each module itself. Knows nothing of graphs or
plans.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from planner.graphs.capture.guards.paths import MISSING, Item, Outside
from planner.graphs.capture.guards.reads import Read
from planner.graphs.capture.guards.same_code import same_code
from planner.graphs.capture.guards.told_values import Whole, is_object, is_told, tensors_told
from planner.graphs.capture.placed import placed_as
from planner.graphs.torch_api.module_internals import STORED, hooks_inside


@dataclass(frozen=True)
class Make:
    """What a module was when it was traced: its ``members``, and the attributes in its tree.

    ``hooks`` run around the code inside, each with where it is; around all of it is outside.
    ``replaced`` says that some module inside has a ``forward`` of its own.
    """

    members: tuple[Any, ...]
    attributes: tuple[dict[str, Any], ...]
    hooks: tuple[tuple[tuple[int, str], Any], ...]
    replaced: bool


def make_of(model: nn.Module) -> Make:
    """Describe a module as it is now; nothing keeps its tensors alive."""
    own = tuple({k: v for k, v in vars(m).items() if k not in STORED} for m in model.modules())
    inside = list(model.modules())[1:]
    replaced = any("forward" in vars(m) for m in inside)
    return Make(tuple(_members(model)), own, tuple(hooks_inside(inside)), replaced)


def is_twin(make: Make, reads: Sequence[Read], other: nn.Module) -> bool:
    """Tell whether the trace of a module is that of another, called alike, as well.

    Hooks inside have to be the same code with the same around it: what they are told, the module
    that they are called for, they read as its own code does.

    Args:
        make: of the module that was traced, as it was then.
        reads: what the trace read of Python's state.
        other: what may be like it.

    >>> import torch
    >>> from planner.graphs.capture.call_arguments import arguments_of
    >>> from planner.graphs.capture.trace import trace
    >>> first, second, third = nn.Dropout(0.1), nn.Dropout(0.1), nn.Dropout(0.2)
    >>> reads = trace(first, arguments_of(torch.zeros(2, requires_grad=True))).reads
    >>> is_twin(make_of(first), reads, second), is_twin(make_of(first), reads, third)
    (True, False)
    """
    found = make_of(other)
    if make.replaced or found.replaced or make.members != found.members:
        return False
    if not _same_hooks(make.hooks, found.hooks):
        return False
    seen = set[tuple[int, int]]()
    pairs = zip(make.attributes, found.attributes, strict=True)
    if not all(_noticed(a, b, seen) for a, b in pairs):
        return False
    modules = list(other.modules())
    return all(_found_there(read, modules) for read in reads)


def _same_hooks(a: Sequence[tuple[Any, Any]], b: Sequence[tuple[Any, Any]]) -> bool:
    places = [at for at, _ in a] == [at for at, _ in b]
    return places and all(same_code(x, y) for (_, x), (_, y) in zip(a, b, strict=True))


def same_data(traced: nn.Module, other: nn.Module) -> bool:
    """Tell whether the buffers of two modules hold the same, or both no data.

    What a model asks of its buffers' values is answered alike then.

    Args:
        traced, other: of the same make.
    """
    pairs = zip(traced.buffers(), other.buffers(), strict=True)
    return all(
        a is b
        or a.is_meta
        or b.is_meta
        or (type(a) is type(b) and a.shape == b.shape and bool((a == b).all()))
        for a, b in pairs
    )


def _members(model: nn.Module) -> Iterator[Any]:
    """Yield classes, modes, tensors and ties of a module's tree as what can be compared."""
    first: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        yield name, type(module), module.training, first.setdefault(id(module), name)
    tensors = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    for name, t in tensors:
        tie = first.setdefault(id(t), name)
        yield name, type(t), t.shape, t.stride(), t.dtype, t.device, t.requires_grad, tie
        yield placed_as(t)


def _noticed(a: dict[str, Any], b: dict[str, Any], seen: set[tuple[int, int]]) -> bool:
    """Tell whether a read of whatever differs between two objects' attributes would be noted."""
    names = {*a} | {*b}
    return all(_note_taken(a.get(n, MISSING), b.get(n, MISSING), seen) for n in names)


def _note_taken(a: Any, b: Any, seen: set[tuple[int, int]]) -> bool:
    if a is b or (id(a), id(b)) in seen:
        return True
    if not (is_told(a) and is_told(b)):
        return False
    seen.add((id(a), id(b)))
    if is_object(a) and type(a) is type(b):
        return all(hasattr(x, "__dict__") for x in (a, b)) and _noticed(vars(a), vars(b), seen)
    if type(a) is type(b) and isinstance(a, list | tuple) and len(a) == len(b):
        return all(_note_taken(x, y, seen) for x, y in zip(a, b, strict=True))
    if type(a) is type(b) is dict and a.keys() == b.keys():
        return all(_note_taken(a[k], b[k], seen) for k in a)
    return True


def _found_there(read: Read, modules: Sequence[nn.Module]) -> bool:
    """Tell whether a module holds what a trace read, the very same tensors and modules."""
    now = read.now(modules)
    before, after = tuple(tensors_told(read.value)), tuple(tensors_told(now))
    if len(before) != len(after) or any(a is not b for a, b in zip(before, after, strict=True)):
        return False
    if isinstance(read.path.root, Outside) and any(_modules_told(read.value)):
        return False  # what is looked up there by module may be another for another
    return read.holds(now)


def _modules_told(value: Any) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, Whole):
        for step, part in value.parts:
            if isinstance(step, Item) and isinstance(step.key, nn.Module):
                yield step.key
            yield from _modules_told(part)
