"""The forward half of a training step as a function from tensors to tensors.

Knows how to call the user's model and loss with given parameters and buffers, and which outputs
the backward pass starts from. Knows nothing of tracing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from planner.graphs.capture.effects import NO_EFFECTS, Effects, effects_of
from planner.graphs.capture.guards.checks import Check
from planner.graphs.capture.guards.paths import Path
from planner.graphs.capture.guards.pending import Pending, tells_a_value
from planner.graphs.capture.guards.python_state import PythonState
from planner.graphs.capture.late_outputs import LateOutput
from planner.graphs.capture.placed import is_placed, placed_as
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.module_internals import (
    flat_weights,
    renew_flat_weights,
    restore_flat_weights,
    tensor_stores,
)
from planner.graphs.torch_api.pytree import TreeSpec, flatten_made, tree_flatten, tree_unflatten
from planner.graphs.torch_api.symbolic_sizes import is_size

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call, flattened: tensors apart, everything else a constant.

    ``answers`` are what the model is told when it asks for values of tensors without data.
    """

    leaves: tuple[Any, ...]
    spec: TreeSpec
    answers: tuple[Any, ...] | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensor leaves, in order."""
        return tuple(x for x in self.leaves if isinstance(x, Tensor))

    def rebuild(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any], tuple[Any]]:
        """Return ``args, kwargs, targets`` with other tensors in place of these."""
        fresh = iter(tensors)
        leaves = [next(fresh) if isinstance(x, Tensor) else x for x in self.leaves]
        args, kwargs, targets = tree_unflatten(leaves, self.spec)
        return args, kwargs, targets


def arguments(args: Sequence[Any], kwargs: Mapping[str, Any], targets: Any = None) -> Arguments:
    """Flatten a call.

    Args:
        args: the positional arguments.
        kwargs: the named ones, in any order.
        targets: further arguments of the loss callable: one, or a tuple.
    """
    extra = () if targets is None else targets if isinstance(targets, tuple) else (targets,)
    leaves, spec = tree_flatten((tuple(args), dict(sorted(kwargs.items())), extra))
    return Arguments(tuple(leaves), spec)


def arguments_of(inputs: Inputs | Arguments, targets: Any = None) -> Arguments:
    """Flatten ``inputs`` as users write them: a tensor, a tuple (positional) or a dict (keywords).

    Raises:
        CaptureError: none of these.

    >>> arguments_of({"x": torch.zeros(2), "flag": True}).tensors
    (tensor([0., 0.]),)
    """
    if isinstance(inputs, Arguments):
        return inputs
    if isinstance(inputs, Tensor):
        return arguments((inputs,), {}, targets)
    if isinstance(inputs, tuple | list):
        return arguments(inputs, {}, targets)
    if isinstance(inputs, Mapping) and all(isinstance(k, str) for k in inputs):
        return arguments((), inputs, targets)
    raise CaptureError(
        f"inputs are a {type(inputs).__name__}; expected a tensor, a tuple of positional arguments "
        "or a dict of keyword arguments"
    )


@dataclass(frozen=True)
class Outputs:
    """How to build the user's output from the traced tensors.

    ``slots[i]`` is the index of leaf ``i`` among the traced tensors, or ``None`` for a constant
    kept in ``constants[i]``. ``differentiable[j]`` says that a gradient may arrive at tensor ``j``;
    ``refused[j]`` that eager mode would let one arrive there but the plan does not. Tensors beyond
    the output's own are what ``effects`` puts elsewhere, and what ``checks`` tests by index.
    ``late`` are outputs in whose place the step returns what they are computed from.
    """

    spec: TreeSpec
    slots: tuple[int | None, ...]
    constants: tuple[Any, ...]
    names: tuple[str, ...]
    differentiable: tuple[bool, ...]
    refused: tuple[bool, ...]
    effects: Effects = NO_EFFECTS
    checks: tuple[tuple[int, Check], ...] = ()
    late: tuple[LateOutput, ...] = ()

    def rebuild(
        self,
        tensors: Sequence[Any],
        arguments: Sequence[Any] = (),
        error: Callable[[str], Exception] = RuntimeError,
    ) -> Any:
        """Return the user's output.

        Args:
            tensors: what the step returned.
            arguments: of the step, for outputs that are computed from them when they are read.
            error: makes what is raised if such an output is read when they are others.
        """
        if self.late:
            computed = {
                late.index: late.of(tensors[late.index], arguments, error) for late in self.late
            }
            tensors = [computed.get(i, x) for i, x in enumerate(tensors)]
        pairs = zip(self.slots, self.constants, strict=True)
        return tree_unflatten([c if s is None else tensors[s] for s, c in pairs], self.spec)

    def at(self, number: Callable[[Any], Any]) -> Outputs:
        """Return what comes out at some sizes.

        Args:
            number: what a size that was a symbol is there.
        """
        constants = tuple(map(number, self.constants))
        return replace(self, constants=constants, effects=self.effects.at(number))


class _Own(torch.autograd.Function):
    """Identity whose output is no view, so that autograd has one place for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def split_outputs(output: Any) -> tuple[list[Tensor], Outputs]:
    """Flatten the model's output and choose what is differentiated.

    Every output that requires grad is differentiable, but for those that a scalar among them was
    made of (logits beside the loss) and, where one is named ``loss``, for all that are no scalars.

    Raises:
        CaptureError: nothing to differentiate, or an output that is neither tensor nor constant.
    """
    leaves, spec = flatten_made(output)
    names = _names(output, len(leaves))
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    labels = [n for n, x in zip(names, leaves, strict=True) if isinstance(x, Tensor)]
    for name, leaf in zip(names, leaves, strict=True):
        plain = isinstance(leaf, Tensor | int | float | str | bool | torch.Size | None)
        if tells_a_value(leaf) or isinstance(leaf, Pending):
            raise CaptureError(
                f"output {name!r} is a number of the step, or a text made of one, which a plan "
                "cannot make again at each call; return the tensor, detached, and take the number "
                "outside"
            )
        if is_placed(leaf):
            raise CaptureError(
                f"output {name!r} is a DTensor, which lies on a mesh; return the tensor of this "
                "rank (to_local() of it, or use_local_output=True of the parallel style) or the "
                "whole (full_tensor()), in the model or in loss="
            )
        if not plain and not is_size(leaf):
            raise CaptureError(
                f"output {name!r} is a {type(leaf).__name__}, which is neither a tensor nor a "
                "constant; do not return it (for a cache: use_cache=False) or pass "
                "loss=lambda output: output.loss"
            )
    wants = [t.requires_grad for t in tensors]
    if not any(wants):
        raise CaptureError(
            "no output requires grad, so there is no backward pass to plan; call model.train(), "
            "unfreeze a parameter, or return the loss"
        )
    named = labels if isinstance(output, Mapping) else ()
    chosen = _differentiable(tensors, named)
    own: Callable[[Tensor], Tensor] = _Own.apply
    kept = [own(t) if c else t.detach() for t, c in zip(tensors, chosen, strict=True)]
    counter = iter(range(len(tensors)))
    slots = tuple(next(counter) if isinstance(x, Tensor) else None for x in leaves)
    constants = tuple(None if isinstance(x, Tensor) else x for x in leaves)
    refused = tuple(w and not c for w, c in zip(wants, chosen, strict=True))
    return kept, Outputs(spec, slots, constants, tuple(labels), tuple(chosen), refused)


def _names(output: Any, count: int) -> list[str]:
    if isinstance(output, Mapping):
        spread: list[str] = []
        for key, part in output.items():
            width = len(flatten_made(part)[0])
            spread += [str(key)] if width == 1 else [f"{key}[{i}]" for i in range(width)]
        if len(spread) == count:
            return spread
    return ["output"] if count == 1 else [f"output[{i}]" for i in range(count)]


def _differentiable(tensors: Sequence[Tensor], names: Sequence[str]) -> list[bool]:
    """Choose the outputs that the caller differentiates, whose ``names`` are known in a mapping."""
    scalar = [t.requires_grad and t.dim() == 0 for t in tensors]
    alone = any(s and n == "loss" for s, n in zip(scalar, names, strict=False))
    used = _made_of([t for s, t in zip(scalar, tensors, strict=True) if s])
    return [
        s or (t.requires_grad and not alone and not _places(t) & used)
        for s, t in zip(scalar, tensors, strict=True)
    ]


def _made_of(tensors: Sequence[Tensor]) -> set[tuple[Any, int]]:
    """Return the places in the autograd graph whose tensors these were computed from."""
    found: set[tuple[Any, int]] = set()
    ahead = [edge for t in tensors if t.grad_fn for edge in t.grad_fn.next_functions]
    while ahead:
        node, index = ahead.pop()
        if node is not None and (node, index) not in found:
            found.add((node, index))
            ahead.extend(node.next_functions)
    return found


def _places(tensor: Tensor) -> set[tuple[Any, int]]:
    """Return where in the autograd graph a tensor comes from, or what it is a view of."""
    sources = [tensor, tensor._base] if tensor._is_view() else [tensor]
    return {(t.grad_fn, t.output_nr) for t in sources if t is not None and t.grad_fn}


class StepFunction(nn.Module):
    """Parameters, buffers and input tensors in; output tensors out. Tied tensors are one argument.

    After a call ``outputs`` describes what came out. ``numbers`` are put where Python holds others
    while the model runs.
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
    ) -> None:
        super().__init__()
        self._model = [model]  # in a list: its tensors are arguments here, not members
        self._state = [state]
        self._names = (tuple(parameters), tuple(buffers))
        self._placed = [placed_as(t) for part in unique_tensors(model) for t in part.values()]
        self._call, self._loss = call, loss
        self.outputs: Outputs | None = None
        self.numbers: tuple[tuple[Path, Any], ...] = ()
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
            names=(*self.outputs.names, *(f"check at {c.source}" for _, c in checks)),
            differentiable=(*self.outputs.differentiable, *[False] * count),
            refused=(*self.outputs.refused, *[False] * count),
            checks=tuple((first + i, check) for i, (_, check) in enumerate(checks)),
        )

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        """Call the model with the current arguments; return its output tensors."""
        names = [*self._names[0], *self._names[1]]
        values = [*self.members("p", len(self._names[0])), *self.buffers_now]
        args, kwargs, targets = self._call.rebuild(tensors)
        self._state[0].restore()
        modules = list(self._model[0].modules())
        before = [path.replace(modules, number) for path, number in self.numbers]
        whole = [
            value if placed is None else placed.around(value)
            for value, placed in zip(values, self._placed, strict=True)
        ]
        with swapped(self._model[0], dict(zip(names, whole, strict=True))):
            output = self._model[0].forward(*args, **kwargs)  # its own hooks run around the plan
            if self._loss is not None:
                output = self._loss(output, *targets)
        for (path, _), number in zip(self.numbers, before, strict=True):
            path.replace(modules, number)
        kept, outputs = split_outputs(output)
        leaves = [x for x in tree_flatten(output)[0] if isinstance(x, Tensor)]
        self.outputs = self._with_effects(kept, leaves, outputs, [*values, *tensors])
        return kept

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
            own: Callable[[Tensor], Tensor] = _Own.apply
            kept.append(own(tensor) if tensor.requires_grad else tensor.detach())
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
    return dict(model.named_parameters()), dict(model.named_buffers())


@contextmanager
def swapped(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other tensors in the place of a model's, tied ones everywhere, and put them back after.

    A buffer that the model rebinds (``self.count = self.count + 1``) is written back to the value
    given, so that the change is seen as the mutation it means.
    """
    parameters, buffers = unique_tensors(model)
    given = {id(t): values[name] for name, t in (parameters | buffers).items()}
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
