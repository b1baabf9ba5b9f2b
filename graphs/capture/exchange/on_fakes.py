"""A layer of experts run on fake tensors, as if a stated number of rows arrived at this rank.

Tells what it returns, every call of an operator, and what is held at that moment. Knows how
transformers asks for the sizes that it sends by.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planner.graphs.capture.exchange.exchange_operator import gradients
from planner.graphs.capture.exchange.layers import (
    INDEX,
    MODULE,
    LayerSpec,
    experts_of,
    named,
    rows_of_each,
    run,
)
from planner.graphs.capture.guards.python_state import PythonState, unchanged
from planner.graphs.capture.storage_meter import StorageMeter
from planner.graphs.capture_error import CaptureError
from planner.graphs.costs.operator_call import OperatorCall
from planner.graphs.costs.roofline import tensors_in
from planner.graphs.torch_api.collective_ops import waits
from planner.graphs.torch_api.dispatch import without_modes
from planner.graphs.torch_api.fake_kernels import lenient_kernels
from planner.graphs.torch_api.fake_tensors import DATA_DEPENDENT, FakeTensor, FakeTensorMode
from planner.graphs.torch_api.operators import draws, overwritten
from planner.graphs.torch_api.patches import Patches, patching
from planner.graphs.torch_api.pytree import tree_map_only
from planner.graphs.torch_api.quiet import silence_fake_tensors
from planner.graphs.torch_api.storages import storage_key
from planner.graphs.torch_api.symbolic_sizes import largest


@dataclass(frozen=True, eq=False)
class Moment:
    """A call of an operator, what it returns, and the bytes alive after it, those included."""

    call: OperatorCall
    outputs: Any
    level_bytes: int


@dataclass(frozen=True)
class Ran:
    """What running a layer, forward or backward, was seen to do; ``held_bytes`` are left by it."""

    moments: tuple[Moment, ...]
    made: tuple[Tensor, ...]
    held_bytes: int


def ran_on_fakes(
    told: LayerSpec, inputs: Sequence[Tensor], rows: int, grad: Tensor | None = None
) -> Ran:
    """Run a layer on fake tensors, as its operator does.

    Args:
        told: which layer it is.
        inputs: of which only shapes, dtypes and devices are used.
        rows: that arrive at this rank.
        grad: of the result, if the layer is run backwards.

    Raises:
        CaptureError: the experts draw, write to what they are given, or need data.
    """

    def forward(fakes: list[Tensor]) -> list[Tensor]:
        rows_of_each(told, fakes[INDEX])
        with torch.no_grad():
            return [run(told, fakes)]

    def backward(fakes: list[Tensor]) -> list[Tensor]:
        *own, tangent = fakes
        return gradients(tangent, own, told)

    if grad is None:
        return _watched(forward, told, inputs, rows)
    return _watched(backward, told, [*inputs, grad], rows)


def _watched(
    function: Callable[[list[Tensor]], list[Tensor]],
    told: LayerSpec,
    inputs: Sequence[Tensor],
    rows: int,
) -> Ran:
    # inside a capture modes and functions are watched: this is no part of what they see
    with patching() as patches, without_modes():
        silence_fake_tensors(patches)
        lenient_kernels(patches)
        with FakeTensorMode() as mode:
            fakes = list(map(_blank, inputs))
        _answer_sizes(patches, _sizes(told, inputs, rows))
        meter = _Meter(fakes[0].device.type, mode, fakes)
        with _explained(told), _leaving_python_alone(told), mode, meter:
            made = function(fakes)
        return Ran(tuple(meter.moments), tuple(made), meter.level_bytes)


def _sizes(told: LayerSpec, inputs: Sequence[Tensor], rows: int) -> list[list[int]]:
    """Return how many rows go to each rank, and how many come from each."""
    implementation = named(told.layer)
    ranks, shared = implementation.ep_mesh.size(), implementation.tp_mesh.size()
    return [_spread(largest(inputs[INDEX].numel()) // shared, ranks), _spread(rows, ranks)]


def _spread(rows: int, ranks: int) -> list[int]:
    return [rows // ranks + (r < rows % ranks) for r in range(ranks)]


def _answer_sizes(patches: Patches, sizes: list[list[int]]) -> None:
    """Let the counts that ranks exchange be what is assumed."""
    module = sys.modules[MODULE]

    def answered(counts: Tensor) -> list[list[int]]:
        if tuple(counts.shape) != (2, len(sizes[0])):
            raise NotImplementedError(f"sizes are asked of a tensor of shape {list(counts.shape)}")
        return [list(row) for row in sizes]

    for kind in (FakeTensor, Tensor):
        patches.attribute(kind, "tolist", answered)
    patches.attribute(module, "all_to_all_single", _exchanged)


def _exchanged(received: Tensor, sent: Tensor, group: Any) -> None:
    """Stand for the exchange of counts, which a ``FakeTensorMode`` does not know in place."""
    each = [len(sent) // group.size()] * group.size()
    torch.ops._c10d_functional.all_to_all_single(sent, each, each, group.group_name)


def _blank(tensor: Tensor) -> Tensor:
    shape, stride = ([largest(n) for n in found] for found in (tensor.shape, tensor.stride()))
    return torch.empty_strided(shape, stride, dtype=tensor.dtype, device=tensor.device)


class _Meter(StorageMeter):  # type: ignore[no-untyped-call] # torch's own
    """Note every call beside what is alive; calls that a layer of experts may not make raise."""

    def __init__(self, device_type: str, mode: FakeTensorMode, inputs: Sequence[Tensor]) -> None:
        super().__init__(device_type)
        self.moments: list[Moment] = []
        self._mode = mode
        self._given = {storage_key(t) for t in inputs}
        self.watch(inputs)  # from the first call on, not from where each is read

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if draws(func, args, kwargs):
            raise NotImplementedError(f"the experts draw ({func}), and would draw otherwise again")
        written = {storage_key(t) for t in tensors_in(list(overwritten(func, args)))}  # type: ignore[arg-type]
        if written & self._given:
            raise NotImplementedError(f"the experts write to what they are given ({func})")
        if waits(func):
            return args[0]  # as the true one does: a fake one's result would count once more
        call = OperatorCall(func, self._copied(args), self._copied(kwargs))  # type: ignore[arg-type]
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.moments.append(Moment(call, self._copied(result), self.level_bytes))
        return result

    def _copied(self, tree: Any) -> Any:
        """Return arguments or results that look the same and keep no storage alive."""
        with self._mode:
            return tree_map_only(Tensor, _blank, tree)


@contextmanager
def _leaving_python_alone(told: LayerSpec) -> Iterator[None]:
    """Put back what the experts change of Python's state, and refuse those that change any."""
    experts = experts_of(named(told.layer))
    state = PythonState(experts, ())
    with unchanged(state):
        yield
        changed = [str(change.path) for change in state.changes()]
        changed += map(str, (*state.keys_moved(), *state.rewritten()))
        if (generator := state.drawn_from()) is not None:
            changed.append(generator)
        if changed:
            raise CaptureError(
                f"{type(experts).__name__}, whose tokens are sent by all-to-all, changes "
                f"{changed[0]} when it runs, and runs once more in each backward pass: do so "
                "outside the experts"
            )


@contextmanager
def _explained(told: LayerSpec) -> Iterator[None]:
    """Say of which experts it is that they cannot be run without data, and what to do."""
    kind = type(experts_of(named(told.layer))).__name__
    try:
        yield
    except DATA_DEPENDENT as error:
        raise CaptureError(
            f"{kind} computes with sizes that depend on data ({error}): choose an implementation "
            'of experts that does not, experts_implementation="grouped_mm"'
        ) from error
    except (NotImplementedError, RuntimeError, AssertionError) as error:
        said = str(error).strip().partition("\n")[0]
        if any(words in said for words in _OF_OTHERS):
            said = (
                "the experts use a tensor that is no parameter or buffer of theirs, or is one "
                "under two names; register it there, once"
            )
        elif isinstance(error, AssertionError):
            raise
        raise CaptureError(
            f"{kind}, whose tokens are sent by all-to-all, cannot be planned: {said}; "
            'ep_implementation="all_reduce" sends none'
        ) from error


_OF_OTHERS = ("FunctionalTensor on its own", "convert all Tensors to FakeTensors")
