"""The forward half of a training step as a function from tensors to tensors.

Knows how to call the user's model and loss with given parameters and buffers. Knows nothing of
tracing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from planner.graphs.capture.call_arguments import Arguments
from planner.graphs.capture.effects import effects_of
from planner.graphs.capture.guards.checks import Check
from planner.graphs.capture.guards.paths import Path
from planner.graphs.capture.guards.python_state import PythonState
from planner.graphs.capture.placed import placed_as
from planner.graphs.capture.source_line import short_line
from planner.graphs.capture.step_outputs import Outputs, of_its_own, split_outputs
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.annotations import IN_LOSS, annotate
from planner.graphs.torch_api.module_internals import (
    STAND_IN,
    attributes_of_tensor,
    flat_weights,
    has_hooks,
    named_parameters_of,
    renew_flat_weights,
    restore_flat_weights,
    tensor_stores,
)
from planner.graphs.torch_api.pytree import tree_flatten


class StepFunction(nn.Module):
    """Parameters, buffers and input tensors in; output tensors out. Tied tensors are one argument.

    After a call ``outputs`` describes what came out. ``numbers`` are put where Python holds others
    while the model runs, and stay there until ``put_back``. ``aside`` stand for parameters that are
    no arguments.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        call: Arguments,
        loss: Callable[..., Any] | None,
        *,
        state: PythonState,
        aside: Mapping[str, Tensor] = {},
    ) -> None:
        super().__init__()
        self._model = [model]  # in a list: its tensors are arguments here, not members
        self._state = [state]
        self._names = (tuple(parameters), tuple(buffers))
        own = {n: t for part in unique_tensors(model) for n, t in part.items()}
        self._placed = [placed_as(own[n]) for part in self._names for n in part]
        self._own = [own[n] for part in self._names for n in part]
        self._aside = aside
        self._call, self._loss = call, loss
        self.outputs: Outputs | None = None
        self.numbers: tuple[tuple[Path, Any], ...] = ()
        self._others = ExitStack()
        for i, value in enumerate(parameters.values()):
            self.register_parameter(f"p{i}", nn.Parameter(value, value.requires_grad))
        for i, value in enumerate(buffers.values()):
            self.register_buffer(f"b{i}", value)

    def members(self, kind: str, count: int) -> list[Tensor]:
        """Return the tensors that stand for parameters ("p") or buffers ("b") in this call."""
        return [getattr(self, f"{kind}{i}") for i in range(count)]

    @property
    def buffers_now(self) -> list[Tensor]:
        """The tensors that stand for the model's buffers in this call."""
        return self.members("b", len(self._names[1]))

    def add_checks(self, kept: list[Tensor], checks: Sequence[tuple[Tensor, Check]]) -> None:
        """Make what the model asked in order to raise or log further outputs of the step.

        Args:
            kept: the outputs of the call just made.
            checks: what was asked, and what it should be.
        """
        assert self.outputs is not None, "there was a call"
        first, count = len(kept), len(checks)
        kept += [tensor.detach() for tensor, _ in checks]
        self.outputs = replace(
            self.outputs,
            names=(*self.outputs.names, *(f"check at {short_line(c.source)}" for _, c in checks)),
            differentiable=(*self.outputs.differentiable, *[False] * count),
            refused=(*self.outputs.refused, *[False] * count),
            checks=tuple((first + i, check) for i, (_, check) in enumerate(checks)),
        )

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        """Call the model with the current arguments; return its output tensors."""
        names = [*self._names[0], *self._names[1]]
        values = [*self.members("p", len(self._names[0])), *self.buffers_now]
        args, kwargs, targets = self._call.rebuild(tensors)
        self.put_back()
        self._state[0].restore()
        whole = [
            value if placed is None else placed.around(value)
            for value, placed in zip(values, self._placed, strict=True)
        ]
        self._put_numbers()
        found = [_dressed(x, t) for x, t in zip(whole, self._own, strict=True)]
        with swapped(self._model[0], {**self._aside, **dict(zip(names, whole, strict=True))}):
            output = self._model[0].forward(*args, **kwargs)  # its own hooks run around the plan
            if self._loss is not None:
                with annotate({IN_LOSS: True}):
                    output = self._loss(output, *targets)
        self.put_back()
        for name, tensor, before_call in zip(names, whole, found, strict=True):
            _refuse_marks(name, tensor, before_call)
        kept, outputs = split_outputs(output)
        leaves = [x for x in tree_flatten(output)[0] if isinstance(x, Tensor)]
        self.outputs = self._with_effects(kept, leaves, outputs, [*values, *tensors])
        self._put_numbers()  # the backward pass may read them, too
        return kept

    def _put_numbers(self) -> None:
        """Have numbers where Python holds others, until ``put_back``."""
        modules = list(self._model[0].modules())
        for path, number in self.numbers:
            self._others.callback(path.replace, modules, path.replace(modules, number))

    def put_back(self) -> None:
        """Have what Python held where numbers were put."""
        self._others.close()

    def _with_effects(
        self,
        kept: list[Tensor],
        leaves: list[Tensor],
        outputs: Outputs,
        arguments: Sequence[Tensor],
    ) -> Outputs:
        """Add to the outputs what the model leaves elsewhere; undo that it did."""
        names, wanted = [], []

        def add(name: str, tensor: Tensor) -> int:
            for index, leaf in enumerate(leaves):
                if leaf is tensor:
                    return index
            kept.append(of_its_own(tensor) if tensor.requires_grad else tensor.detach())
            names.append(name)
            wanted.append(tensor.requires_grad)
            return len(kept) - 1

        state = self._state[0]
        effects = effects_of(state, arguments, add)
        state.restore()
        return replace(
            outputs,
            names=(*outputs.names, *names),
            differentiable=(*outputs.differentiable, *wanted),
            refused=(*outputs.refused, *(False for _ in names)),
            effects=effects,
        )


def unique_tensors(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """Return the parameters and buffers by their first name, each tensor once."""
    return dict(named_parameters_of(model)), dict(nn.Module.named_buffers(model))


def _dressed(stand_in: Tensor, tensor: Tensor) -> dict[str, Any]:
    """Hang on a stand-in what somebody's code hung on the tensor; return all that hangs on it."""
    inside = vars(stand_in)
    inside.update(attributes_of_tensor(tensor))
    if isinstance(tensor, nn.Parameter):
        inside[STAND_IN] = True
    return dict(inside)


def _refuse_marks(name: str, tensor: Tensor, before: Mapping[str, Any]) -> None:
    """Refuse what forward left on the stand-in of a tensor, and would leave on it at each call."""
    if has_hooks(tensor):
        raise CaptureError(
            f"the forward pass sets a hook on {name!r} (register_hook), one more at each call; set "
            "it once, outside the model's forward, or on a tensor that is computed in it"
        )
    for key, value in vars(tensor).items():
        if not key.startswith("_") and value is not before.get(key):
            raise CaptureError(
                f"the forward pass sets attribute {key!r} of {name!r}, which a plan, that runs no "
                "Python, would not do again; keep it in a buffer or an attribute of the module"
            )


@contextmanager
def swapped(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other tensors in the place of a model's, tied ones everywhere, and put them back after.

    What no other is given for stays.

    A buffer that the model rebinds (``self.count = self.count + 1``) is written back to the value
    given, so that the change is seen as the mutation it means.
    """
    parameters, buffers = unique_tensors(model)
    given = {id(t): values.get(name, t) for name, t in (parameters | buffers).items()}
    stores = [d for m in model.modules() for d in tensor_stores(m)]
    before = [dict(d) for d in stores]
    flat = flat_weights(model)
    try:
        for store in stores:
            for key, tensor in store.items():
                if tensor is not None:
                    store[key] = given[id(tensor)]
        renew_flat_weights(model)
        yield
        _write_back(stores, before, given)
    finally:
        for store, old in zip(stores, before, strict=True):
            store.clear()
            store.update(old)
        restore_flat_weights(flat)


def _write_back(
    stores: Sequence[Mapping[str, Any]],
    before: Sequence[Mapping[str, Any]],
    given: Mapping[int, Tensor],
) -> None:
    for store, old in zip(stores, before, strict=True):
        for key, tensor in store.items():
            original = old.get(key)
            if original is None or tensor is given[id(original)]:
                continue
            if tensor is None or tensor.shape != original.shape:
                raise CaptureError(
                    f"the forward pass replaces {key!r} by a value of another shape; if it grows "
                    "to the largest input, call the model once with that before planning"
                )
            given[id(original)].copy_(tensor)
