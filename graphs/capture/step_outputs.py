"""What a training step returns, and which outputs the backward pass starts from.

Knows nothing of the model that made them, nor of tracing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from planner.graphs.capture.effects import NO_EFFECTS, Effects
from planner.graphs.capture.guards.checks import Check
from planner.graphs.capture.guards.pending import Pending, tells_a_value
from planner.graphs.capture.late_outputs import LateOutput
from planner.graphs.capture.placed import is_placed
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.pytree import TreeSpec, flatten_made, tree_unflatten
from planner.graphs.torch_api.symbolic_sizes import is_size


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


def of_its_own(tensor: Tensor) -> Tensor:
    """Return a tensor as an output that a gradient may arrive at.

    Args:
        tensor: which may be a view.
    """
    own: Callable[[Tensor], Tensor] = _Own.apply
    return own(tensor)


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
    kept = [of_its_own(t) if c else t.detach() for t, c in zip(tensors, chosen, strict=True)]
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
