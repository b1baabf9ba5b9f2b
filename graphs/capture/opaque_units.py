"""A submodule as one opaque operator, and the calls a model makes of its submodules.

Lets a model of many blocks be traced at the price of what is around them. Knows how to stand in for
``forward``. Knows nothing of what the blocks compute or cost.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from planner.graphs.capture.call_arguments import Arguments, arguments
from planner.graphs.capture.placed import entered
from planner.graphs.capture.step_outputs import Outputs
from planner.graphs.capture.trace import blank, run_forward
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.cuda.card import Card
from planner.graphs.torch_api.dispatch import without_modes
from planner.graphs.torch_api.fake_tensors import FakeTensorMode
from planner.graphs.torch_api.pytree import tree_map

FORWARD, BACKWARD = "remat_planner.unit.default", "remat_planner.unit_backward.default"

_LIBRARY: Any = torch.library.Library("remat_planner", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("unit(Tensor[] inputs, str spec) -> Tensor[]")
_LIBRARY.define("unit_backward(Tensor[] tangents, Tensor[] inputs, str spec) -> Tensor[]")


def unit_called(target: Any, args: Sequence[Any]) -> dict[str, Any] | None:
    """Return what the operator of a unit was told, forward or backward; ``None`` for any other.

    Args:
        target, args: of a node of a captured graph.
    """
    return json.loads(str(args[-1])) if str(target) in (FORWARD, BACKWARD) else None


def _fake_unit(inputs: list[Tensor], spec: str) -> list[Tensor]:
    return [_empty(inputs[0], *made) for made in json.loads(spec)["outputs"]]


def _fake_backward(tangents: list[Tensor], inputs: list[Tensor], spec: str) -> list[Tensor]:
    return [torch.empty_like(inputs[i]) for i in json.loads(spec)["wanted"]]


torch.library.register_fake("remat_planner::unit", _fake_unit, lib=_LIBRARY)
torch.library.register_fake("remat_planner::unit_backward", _fake_backward, lib=_LIBRARY)


def _empty(like: Tensor, shape: list[int], stride: list[int], dtype: str) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=getattr(torch, dtype), device=like.device)


class _UnitFunction(torch.autograd.Function):
    """The operator under autograd; its spec says for which inputs gradients are wanted."""

    @staticmethod
    def forward(ctx: Any, spec: dict[str, Any], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.spec = spec
        made = torch.ops.remat_planner.unit(list(inputs), json.dumps(spec))
        silent = [t for t, wanted in zip(made, spec["differentiable"], strict=True) if not wanted]
        ctx.mark_non_differentiable(*silent)
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        arrived = [i for i, t in enumerate(tangents) if t is not None]
        spec = ctx.spec | {"arrived": arrived}
        given = [t for t in tangents if t is not None]
        inputs = list(ctx.saved_tensors)
        made = torch.ops.remat_planner.unit_backward(given, inputs, json.dumps(spec))
        found = dict(zip(spec["wanted"], made, strict=True))
        return (None, *(found.get(i) for i in range(len(inputs))))


@dataclass(frozen=True)
class Stub:
    """What stands in for a unit: how its outputs look, traced tensors and the user's structure."""

    outputs: Outputs
    tensors: tuple[Tensor, ...]


@contextmanager
def stubbed(
    units: Mapping[str, nn.Module], stubs: Mapping[str, Stub], dtype: torch.dtype | None = None
) -> Iterator[None]:
    """Replace the forward of every unit by its operator; the spec of each call names the unit.

    One trainable parameter of the unit is the last input, so that a backward always exists.

    Args:
        units: the modules by their paths.
        stubs: what each returns, by the same paths.
        dtype: what inputs in floating point are cast to first, if given.
    """

    def replacement(path: str, unit: nn.Module) -> Callable[..., Any]:
        stub = stubs[path]

        def forward(*args: Any, **kwargs: Any) -> Any:
            anchor = next(p for p in unit.parameters() if p.requires_grad)
            return called(path, stub, cast(arguments(args, kwargs), dtype).tensors, anchor)

        return forward

    with _replaced(units, replacement):
        yield


def called(path: str, stub: Stub, tensors: Sequence[Tensor], anchor: Tensor) -> Any:
    """Call the operator of a unit, and return what the unit does.

    Args:
        path: of the unit.
        stub: how its outputs look.
        tensors: that it is called with.
        anchor: a trainable parameter, the last input.
    """
    inputs = [*tensors, entered(anchor)]
    spec = {
        "unit": path,
        "outputs": [_spec(t) for t in stub.tensors],
        "differentiable": stub.outputs.differentiable,
        "wanted": [i for i, t in enumerate(inputs) if t.requires_grad],
    }
    return stub.outputs.rebuild(_UnitFunction.apply(spec, *inputs))  # type: ignore[no-untyped-call]


def cast(call: Arguments, dtype: torch.dtype | None) -> Arguments:
    """Return a call with its inputs in floating point cast to ``dtype``, if one is given."""
    if dtype is None:
        return call

    def one(leaf: Any) -> Any:
        floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.to(dtype) if floating else leaf

    args, kwargs, targets = call.rebuild(call.tensors)
    args, kwargs = tree_map(one, (args, kwargs))
    return arguments(args, kwargs, targets or None)


def _spec(tensor: Tensor) -> list[Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return [list(tensor.shape), list(tensor.stride()), dtype]


def record_calls(
    model: nn.Module,
    call: Arguments,
    units: Mapping[str, nn.Module],
    *,
    loss: Callable[..., Any] | None,
    kind: Callable[[str, nn.Module, Arguments], Hashable],
    dtype: torch.dtype | None = None,
    card: Card | None = None,
    aside: Collection[str] = (),
) -> list[tuple[str, Arguments, Hashable]]:
    """Run the model's forward on fake tensors and list the calls of its units, in order.

    A call of ``unit.forward`` itself, past the unit's hooks, is none.

    Args:
        model: whose forward is run.
        call: what it is called with.
        units: the modules to watch, by their paths.
        loss: called with the output, if given.
        kind: units for which it returns the same are taken to return alike: only one is run.
        dtype: what a unit's inputs in floating point are cast to first, as ``stubbed`` does.
        card, aside: as for ``trace``.

    Raises:
        CaptureError: the model cannot run without data; the message names the user's line.
    """
    calls: list[tuple[str, Arguments, Hashable]] = []
    known: dict[Hashable, Any] = {}

    def replacement(path: str, unit: nn.Module) -> Callable[..., Any]:
        own = unit.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not _is_called_by_torch():
                return own(*args, **kwargs)
            inner = cast(arguments(args, kwargs), dtype)
            with without_modes():  # which would see every shape that is asked for
                key = kind(path, unit, inner)
            calls.append((path, inner, key))
            if key not in known:
                args, kwargs, _ = inner.rebuild(inner.tensors)
                known[key] = own(*args, **kwargs)
                return known[key]
            return tree_map(_alike, known[key])

        return forward

    with _replaced(units, replacement):
        mode = run_forward(model, call, loss=loss, card=card, aside=aside)
    return [(path, _outside(inner, mode), key) for path, inner, key in calls]


def _is_called_by_torch() -> bool:
    """Tell whether who called the caller is ``nn.Module.__call__``, which runs hooks, too."""
    return sys._getframe(2).f_code.co_filename == nn.modules.module.__file__


def _outside(call: Arguments, mode: FakeTensorMode) -> Arguments:
    """Return a call like one seen inside a capture."""
    fresh = [blank(t, mode, t.device) for t in call.tensors]
    args, kwargs, targets = call.rebuild(fresh)
    return arguments(args, kwargs, targets)


def _alike(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    fresh = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
    return fresh.requires_grad_(leaf.requires_grad)


@contextmanager
def _replaced(
    units: Mapping[str, nn.Module], replacement: Callable[[str, nn.Module], Callable[..., Any]]
) -> Iterator[None]:
    for path, unit in units.items():
        if "forward" in vars(unit):
            raise CaptureError(
                f"{path}.forward was replaced on the instance; wrap the module instead"
            )
    for path, unit in units.items():
        unit.forward = replacement(path, unit)
    try:
        yield
    finally:
        for unit in units.values():
            del unit.forward
