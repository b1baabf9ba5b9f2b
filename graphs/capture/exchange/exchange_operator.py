"""The operator of a layer of experts that tokens are sent to, and the operator of its backward.

The result is as large as the tokens are, whatever the router says. Backward keeps nothing of
forward but its inputs: it sends and computes the same again, then the gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planner.graphs.capture.exchange.layers import INDEX, TOKENS, LayerSpec, require_room, run

_LIBRARY: Any = torch.library.Library("remat_planner", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("expert_exchange(Tensor[] inputs, str group_name, str spec) -> Tensor")
_LIBRARY.define(
    "expert_exchange_backward(Tensor grad, Tensor[] inputs, str group_name, str spec) -> Tensor[]"
)


def _forward(inputs: list[Tensor], group_name: str, spec: str) -> Tensor:
    told = LayerSpec.of(spec)
    require_room(told, inputs[INDEX])
    with torch.no_grad():
        return run(told, inputs)


def gradients(grad: Tensor, inputs: list[Tensor], told: LayerSpec) -> list[Tensor]:
    """Run a layer once more, and backwards; return the gradients that are wanted, laid as inputs.

    Args:
        grad: of its result.
        inputs: as ``layers.run`` takes them.
        told: which layer it is.
    """
    leaves = [t.detach().requires_grad_(i in told.wanted) for i, t in enumerate(inputs)]
    with torch.enable_grad():
        made = run(told, leaves)
    wanted = [leaves[i] for i in told.wanted]
    found = list(torch.autograd.grad(made, wanted, grad))
    for k, i in enumerate(told.wanted):
        found[k] = _laid_as(inputs[i], found[k])
    return found


def _laid_as(tensor: Tensor, gradient: Tensor) -> Tensor:
    if gradient.stride() == tensor.stride() and not gradient.storage_offset():
        return gradient
    return torch.empty_like(tensor, dtype=gradient.dtype).copy_(gradient)


def _backward(grad: Tensor, inputs: list[Tensor], group_name: str, spec: str) -> list[Tensor]:
    return gradients(grad, inputs, LayerSpec.of(spec))


def _fake_forward(inputs: list[Tensor], group_name: str, spec: str) -> Tensor:
    tokens, dtype = inputs[TOKENS], getattr(torch, LayerSpec.of(spec).dtype)
    return tokens.new_empty(tokens.shape, dtype=dtype)


def _fake_backward(grad: Tensor, inputs: list[Tensor], group_name: str, spec: str) -> list[Tensor]:
    return [torch.empty_like(inputs[i]) for i in LayerSpec.of(spec).wanted]


for _name, _run, _fake in (
    ("expert_exchange", _forward, _fake_forward),
    ("expert_exchange_backward", _backward, _fake_backward),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"remat_planner::{_name}", _fake, lib=_LIBRARY)

FORWARD = torch.ops.remat_planner.expert_exchange.default
BACKWARD = torch.ops.remat_planner.expert_exchange_backward.default


def exchanges(target: object) -> bool:
    """Tell the operators of this file.

    >>> exchanges(FORWARD), exchanges(torch.ops.aten.relu.default)
    (True, False)
    """
    return target in {FORWARD, BACKWARD}


class _Exchange(torch.autograd.Function):
    """The operator under autograd."""

    @staticmethod
    def forward(ctx: Any, group_name: str, told: LayerSpec, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.told, ctx.group_name = told, group_name
        made: Tensor = FORWARD(list(inputs), group_name, str(told))
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, told = list(ctx.saved_tensors), ctx.told
        made = BACKWARD(grads[0], inputs, ctx.group_name, str(told))
        found = dict(zip(told.wanted, made, strict=True))
        return (None, None, *(found.get(i) for i in range(len(inputs))))


def exchanged(group_name: str, told: LayerSpec, inputs: list[Tensor]) -> Tensor:
    """Call the operator where autograd sees it.

    Args:
        group_name: over which it sends.
        told: which layer it is.
        inputs: as ``layers.run`` takes them.
    """
    made: Tensor = _Exchange.apply(group_name, told, *inputs)  # type: ignore[no-untyped-call]
    return made
