"""A program run as one node of the autograd graph.

Knows what autograd hands over and what of it a plan must refuse. Knows nothing of how programs are
written, of models or of guards.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from planner.errors import PlanMismatch
from planner.graphs import Phase
from planner.graphs.capture.placed import entered
from planner.graphs.torch_api.dispatch import without_autocast
from planner.graphs.torch_api.gradients import acts_on_arrival
from planner.graphs.torch_api.storages import write_count
from planner.progress import PlannerWarning
from planner.running.out_of_memory import Account
from planner.running.program import Program


def execute(
    program: Program, arguments: Sequence[Tensor], account: Account | None = None
) -> tuple[Tensor, ...]:
    """Run the forward program on parameters, buffers and inputs; autograd runs the other half.

    Backward is a chain of nodes, one for each time that gradients are handed over.

    Args:
        program: of the step.
        arguments: of its forward half.
        account: what was planned, to be told if memory runs out.
    """
    owners = [arguments[i] for part in program.handed for i in part]
    arguments = [entered(x) for x in arguments]
    first, *later = ([arguments[i] for i in part] for part in program.handed)
    step, turn = _Step(program, owners, account), None
    with without_autocast():
        for part in reversed(later):
            turn = _Later.apply(step, turn, *part)  # type: ignore[no-untyped-call]
        return _Run.apply(step, arguments, turn, *first)  # type: ignore[no-any-return, no-untyped-call]


class _Step:
    """One run of a program, which the nodes of its backward pass take turns in."""

    def __init__(self, program: Program, owners: Sequence[Tensor], account: Account | None) -> None:
        self.program, self.account, self.device = program, account, owners[0].device
        self.leaves = [x for x in owners if x.is_leaf]  # others are no longer needed for themselves
        self.saved: list[Any] | None = None  # tensors, and what is on the host
        self.versions: list[int] = []
        self._gradients: Iterator[tuple[Tensor | None, ...]] = iter(())

    def half(self, phase: Phase) -> AbstractContextManager[None]:
        """Return what surrounds the running of a half."""
        return nullcontext() if self.account is None else self.account.kept(self.device, phase)

    def start(self, arguments: list[Tensor], arrived: set[int]) -> None:
        """Begin backward; only what is made of the tangents that arrived is a gradient."""
        wanted = [[bool(arrived & self.program.behind[i]) for i in p] for p in self.program.handed]
        self._gradients = _parts(self.program.backward(arguments), wanted)
        if any(map(acts_on_arrival, self.leaves)):  # it may change what later kernels read
            made = deque(self.hand_over() for _ in wanted)
            self._gradients = (made.popleft() for _ in wanted)

    def hand_over(self) -> tuple[Tensor | None, ...]:
        """Run backward until the next gradients are made, and return them."""
        with self.half(Phase.BACKWARD):
            return next(self._gradients)


def _parts(
    running: Iterator[list[Tensor]], wanted: list[list[bool]]
) -> Iterator[tuple[Tensor | None, ...]]:
    """Yield the gradients part by part; nothing else refers to them then."""
    for row in wanted:
        with without_autocast():
            made = next(running)
        yield _taken(made, row)


def _taken(made: list[Tensor], wanted: list[bool]) -> tuple[Tensor | None, ...]:
    found = tuple(g if w else None for g, w in zip(made, wanted, strict=True))
    made.clear()
    return found


class _Run(torch.autograd.Function):
    """A planned step as a node of the autograd graph; it hands over the gradients made first."""

    @staticmethod
    def forward(
        ctx: Any, step: _Step, arguments: Sequence[Tensor], turn: Tensor | None, *edges: Tensor
    ) -> tuple[Tensor, ...]:
        program = step.program
        ctx.turn = None if turn is None else turn.device
        ctx.set_materialize_grads(False)
        with step.half(Phase.FORWARD):
            results = program.forward(list(arguments))
        outputs, step.saved = results[: program.output_count], results[program.output_count :]
        step.versions = [write_count(x) for x in step.saved if isinstance(x, Tensor)]
        ctx.step = step
        ctx.save_for_backward(*(arguments[i] for i in program.read))
        found = program.outputs
        silent = zip(outputs, found.differentiable, found.refused, strict=True)
        ctx.mark_non_differentiable(*(o for o, wanted, refused in silent if not wanted | refused))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        step: _Step = ctx.step
        program = step.program
        _refuse_mode(program)
        _refuse_gradients(program, gradients)
        _tell_missing(program, gradients)
        saved, step.saved = step.saved, None
        if saved is None:
            raise RuntimeError(
                "backward ran twice through a planned step, whose saved values are gone; "
                "retain_graph is not supported by a plan"
            )
        _refuse_changes([x for x in saved if isinstance(x, Tensor)], step.versions)
        arguments = [*ctx.saved_tensors, *saved]
        for index, spec in zip(program.tangents, program.tangent_specs, strict=True):
            arguments.append(laid_out(gradients[index], *spec))
        arrived = {i for i, g in enumerate(gradients) if g is not None}
        del saved, gradients
        step.start(arguments, arrived)
        return (None, None, _turn(ctx), *step.hand_over())


class _Later(torch.autograd.Function):
    """The node that hands over what backward makes next; ``turn`` leads to the one after it."""

    @staticmethod
    def forward(ctx: Any, step: _Step, turn: Tensor | None, *edges: Tensor) -> Tensor:
        ctx.step, ctx.turn = step, None if turn is None else turn.device
        return torch.empty(0, device=edges[0].device)

    @staticmethod
    def backward(ctx: Any, *turns: Tensor) -> tuple[Any, ...]:
        step: _Step = ctx.step
        return (None, _turn(ctx), *step.hand_over())


def _tell_missing(program: Program, gradients: Sequence[Tensor | None]) -> None:
    """Say that part of the backward pass is run for nothing."""
    names = [program.outputs.names[i] for i in program.tangents if gradients[i] is None]
    if names:
        warnings.warn(
            f"no gradient arrived at {', '.join(map(repr, names))}: that part of the backward pass "
            "runs with zeros, which takes time and memory; say what is differentiated with loss=, "
            "or have the model return the rest detached",
            PlannerWarning,
            stacklevel=2,
        )


def _turn(ctx: Any) -> Tensor | None:
    """Return what lets the next node run, if there is one."""
    return None if ctx.turn is None else torch.empty(0, device=ctx.turn)


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


def laid_out(
    gradient: Tensor | None,
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return the gradient that arrived, in the layout that was traced, or zeros for none.

    Args:
        gradient: that arrived.
        shape, stride, dtype, device: as it was traced.
    """
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
