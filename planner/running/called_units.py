"""Units that a planned root calls: modules that run under autograd, inside the root's program.

The root's program calls a unit in its forward half and differentiates it in its backward half, so
that what shards a unit (hooks around its call, on what it returns, at its parameters' gradients)
works as it always does. Knows nothing of how programs are written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from planner.graphs.capture.hollow_units import HollowUnit
from planner.graphs.torch_api.pytree import flatten_made
from planner.running.autograd_node import laid_out


@dataclass
class Called:
    """A unit that has run: where its gradients arrive, and what of it leaves.

    ``edges`` are those of the tensors that it returned, ``arrived`` the gradients of its inputs, by
    index, once they are made; ``like`` are shape, strides, dtype and device of each.
    """

    edges: list[GradientEdge | None]
    like: dict[int, tuple[Any, ...]]
    arrived: dict[int, Tensor | None] = field(default_factory=dict)


class _Border(torch.autograd.Function):
    """Where a unit's inputs enter: their gradients are put aside, and the inputs are not held."""

    @staticmethod
    def forward(
        ctx: Any, called: Called, indices: Sequence[int], gate: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.called, ctx.indices = called, indices
        return tuple(x.view_as(x) for x in inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        ctx.called.arrived.update(zip(ctx.indices, gradients, strict=True))
        return (None, None, None, *(None for _ in gradients))


@dataclass(frozen=True)
class CalledUnit:
    """How a program calls a unit; ``precision`` makes the autocast state that it is called in."""

    unit: HollowUnit
    precision: Callable[[], AbstractContextManager[Any]]

    def run(self, inputs: Sequence[Tensor], wanted: Sequence[int]) -> tuple[Called, list[Tensor]]:
        """Call the unit; return what its backward pass needs, and the tensors that it returned.

        Args:
            inputs: of its operator: the tensors that it is called with, then its anchor.
            wanted: of which inputs gradients are wanted, by index.
        """
        planned, given = self.unit.call, list(inputs[:-1])
        assert planned is not None, "the root was traced"
        like = {i: _layout(inputs[i]) for i in wanted}
        called, entering = Called([], like), [i for i in wanted if i < len(given)]
        with torch.enable_grad(), self.precision():
            if entering:
                gate = torch.empty(0, requires_grad=True)
                inside = _Border.apply(called, entering, gate, *(given[i] for i in entering))  # type: ignore[no-untyped-call]
                for i, x in zip(entering, inside, strict=True):
                    given[i] = x
            args, kwargs, _ = planned.rebuild(given)
            output = self.unit.unit(*args, **kwargs)
        made = [x for x in flatten_made(output)[0] if isinstance(x, Tensor)]
        called.edges += [get_gradient_edge(x) if x.requires_grad else None for x in made]
        return called, [x.detach() for x in made]

    def differentiate(
        self, called: Called, tangents: list[Tensor], arrived: Sequence[int], wanted: Sequence[int]
    ) -> list[Tensor]:
        """Run the unit's backward pass; return the gradients of its wanted inputs.

        Args:
            called: what ``run`` returned.
            tangents: the gradients that arrive.
            arrived: at which of the tensors that the unit returned, by index.
            wanted: as for ``run``.
        """
        pairs = ((called.edges[i], t) for i, t in zip(arrived, tangents, strict=True))
        given = {edge: t for edge, t in pairs if edge is not None}
        torch.autograd.backward(tuple(given), tuple(given.values()))
        found = called.arrived
        return [laid_out(found.pop(i, None), *called.like[i]) for i in wanted]


def _layout(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.stride(), x.dtype, x.device
