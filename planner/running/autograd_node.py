"""A program run as one node of the autograd graph.

Knows what autograd hands over and what of it a plan must refuse. Knows nothing of how programs are
written, of models or of guards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from planner.errors import PlanMismatch
from planner.graphs.torch_api.dispatch import without_autocast
from planner.graphs.torch_api.storages import write_count
from planner.running.program import Program


def execute(program: Program, arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Run the forward program on parameters, buffers and inputs; autograd runs the other half."""
    with without_autocast():
        return _Run.apply(program, *arguments)  # type: ignore[no-any-return, no-untyped-call]


class _Run(torch.autograd.Function):
    """A planned step as one node of the autograd graph."""

    @staticmethod
    def forward(ctx: Any, program: Program, *arguments: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        results = program.forward(list(arguments))
        outputs, ctx.saved = results[: program.output_count], results[program.output_count :]
        ctx.versions = [write_count(x) for x in ctx.saved]
        ctx.program = program
        ctx.save_for_backward(*(arguments[i] for i in program.read))
        found = program.outputs
        silent = zip(outputs, found.differentiable, found.refused, strict=True)
        ctx.mark_non_differentiable(*(o for o, wanted, refused in silent if not wanted | refused))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        program: Program = ctx.program
        _refuse_mode(program)
        _refuse_gradients(program, gradients)
        saved, ctx.saved = ctx.saved, None
        if saved is None:
            raise RuntimeError(
                "backward ran twice through a planned step, whose saved values are gone; "
                "retain_graph is not supported by a plan"
            )
        _refuse_changes(saved, ctx.versions)
        arguments = [*ctx.saved_tensors, *saved]
        for index, spec in zip(program.tangents, program.tangent_specs, strict=True):
            arguments.append(_tangent(gradients[index], *spec))
        arrived = {i for i, g in enumerate(gradients) if g is not None}
        del saved, gradients
        with without_autocast():
            made = program.backward(arguments)
        found = zip(made, program.behind, strict=True)
        return (None, *(g if arrived & behind else None for g, behind in found))


def _refuse_mode(program: Program) -> None:
    """Refuse a backward pass that would have to be differentiated, or to cast by itself."""
    if torch.is_grad_enabled():
        raise PlanMismatch(
            "backward runs with create_graph=True, and a plan cannot be differentiated twice: "
            "compute what needs it (a gradient penalty) with the model that was given to "
            "plan.apply, which is as it was"
        )
    if program.recast():
        raise PlanMismatch(
            "backward runs inside a torch.autocast block, which would change its dtypes; the plan "
            "is made for a backward pass outside of it, as torch advises: leave the block first"
        )


def _tangent(
    gradient: Tensor | None,
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return the gradient that arrived, in the layout that was traced, or zeros for none."""
    if gradient is None:
        return torch.zeros(shape, dtype=dtype, device=device)
    if gradient.stride() == stride:
        return gradient
    return torch.empty_strided(shape, stride, dtype=dtype, device=device).copy_(gradient)


def _refuse_changes(saved: Sequence[Tensor], versions: Sequence[int]) -> None:
    """Notice, as autograd does, that somebody wrote into what the backward pass needs."""
    for x, version in zip(saved, versions, strict=True):
        if write_count(x) != version:
            raise RuntimeError(
                f"a {x.dtype} tensor of shape {tuple(x.shape)} that the backward pass of a planned "
                "step needs was changed in place after the forward pass; it is an output of the "
                "model, or shares its memory with one: change a clone instead"
            )


def _refuse_gradients(program: Program, gradients: Sequence[Tensor | None]) -> None:
    outputs = program.outputs
    for name, refused, gradient in zip(outputs.names, outputs.refused, gradients, strict=True):
        if refused and gradient is not None:
            raise PlanMismatch(
                f"a gradient reached output {name!r}, and the plan holds nothing for it beside the "
                "scalars that the model returns; say what is differentiated with loss=, a function "
                "of the model's output, or have the model return only that"
            )
