"""Capture a training step as one joint forward-backward torch.fx graph, allocating nothing.

Knows AOTAutograd's joint export, fake tensors, and what must be set up around a capture. Knows
nothing of what the traced graph means, nor of costs, values or schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from planner.graphs.capture.call_arguments import Arguments
from planner.graphs.capture.effects import (
    not_read_before,
    only_appended,
    refuse_backward_effects,
    tensors_left_at,
)
from planner.graphs.capture.exchange.recognized import Capacity, exchange_as_operator
from planner.graphs.capture.first_call import Called, of_second_call
from planner.graphs.capture.guards.call import device_type
from planner.graphs.capture.guards.paths import Path
from planner.graphs.capture.guards.python_state import PythonState, unchanged
from planner.graphs.capture.guards.reads import loosened, watched_reads
from planner.graphs.capture.guards.values import NOT_THE_USERS
from planner.graphs.capture.joint_graph import Joint, joint_of, refuse_baked_tensors
from planner.graphs.capture.node_kinds import drop_idle_waits, tie_shared_storage
from planner.graphs.capture.placed import local_of, placed_as, require_even_parts
from planner.graphs.capture.step_function import StepFunction, unique_tensors
from planner.graphs.capture.trace_errors import explained
from planner.graphs.capture.watched_step import WatchedStep
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.annotations import annotate, preserve_node_meta
from planner.graphs.torch_api.autocast_cache import (
    Casts,
    Keeping,
    casts_on_cpu,
    keeping_now,
)
from planner.graphs.torch_api.collective_ops import trace_collectives
from planner.graphs.torch_api.compiled_code import run_as_written
from planner.graphs.torch_api.cuda.autocast import autocast_of_cuda, casts_on_cuda
from planner.graphs.torch_api.cuda.card import Card
from planner.graphs.torch_api.cuda.cudnn_batch_norm import batch_norm_of_cuda
from planner.graphs.torch_api.cuda.cudnn_recurrent import recurrent_of_cuda
from planner.graphs.torch_api.cuda.kernels import grids_by_torch, kernels_of_cuda
from planner.graphs.torch_api.decompositions import eager_pieces
from planner.graphs.torch_api.fake_kernels import lenient_kernels
from planner.graphs.torch_api.fake_tensors import (
    FakeTensor,
    FakeTensorMode,
    detect_fake_mode,
    with_numbers,
)
from planner.graphs.torch_api.functional_tensors import let_lists_be_asked_for
from planner.graphs.torch_api.joint_export import export_joint
from planner.graphs.torch_api.module_watch import watch_forwards
from planner.graphs.torch_api.patches import Patches, patching
from planner.graphs.torch_api.quiet import silence_fake_tensors, silence_warnings
from planner.graphs.torch_api.random_state import leave_generators_alone
from planner.graphs.torch_api.recurrent import lstm_of_any_size
from planner.graphs.torch_api.refused import (
    refuse_checkpointed_writes,
    refuse_what_cannot_be_traced,
)
from planner.graphs.torch_api.symbolic_sizes import SymbolicSizes, as_numbers_to_the_user
from planner.graphs.torch_api.versions import require_supported


@of_second_call
def trace(
    model: nn.Module,
    call: Arguments,
    *,
    loss: Callable[..., Any] | None = None,
    device: torch.device | None = None,
    answers: Sequence[Any] | None = None,
    lean: bool = True,
    card: Card | None = None,
    lifted: Sequence[Path] = (),
    sizes: SymbolicSizes | None = None,
    checks: bool = True,
    keeping: Keeping | None = None,
    aside: Collection[str] = (),
    capacity: Capacity | None = None,
) -> tuple[Joint, Called]:
    """Trace forward, loss and backward of one call under fake tensors.

    Args:
        model: in the modes it will be trained in.
        call: what it is called with; real, fake or on meta.
        loss: called with the output and the targets of the call, if given.
        device: where parameters on meta are taken to be; by default the CPU.
        answers: what the model is told where it branches on values of inputs without data.
        lean: take the leaner of two equal dropouts, which eager mode on a CPU does not.
        card: whose kernels and autocast are taken, instead of those of the tensors' device.
        lifted: where Python holds floats that are to be inputs of the graph, not constants.
        sizes: makes symbols of some sizes, instead of tracing these very ones.
        checks: keep what the model checks in order to raise or log, as outputs.
        keeping: how autocast keeps casts of weights; by default as it does now.
        aside: names of parameters that are no inputs of the graph, which must not read them.
        capacity: how many rows are planned for where tokens are sent to experts of other ranks.

    Raises:
        CaptureError: the step cannot be captured; the message names the user's line.
    """
    parameters, buffers = unique_tensors(model)
    state = PythonState(model, () if loss is None else (loss,))
    watched, inputs, _ = _watch(
        model,
        call,
        loss,
        device,
        answers=answers,
        state=state,
        lifted=lifted,
        sizes=sizes,
        aside=aside,
    )
    step, watched.checks = watched.step, checks
    if (where := state.reached.compares_type_with_tensor()) is not None:
        raise CaptureError(
            f"{where} compares type(...) with that of tensors or parameters, for which others "
            "stand while a step is captured: ask with isinstance"
        )
    with (
        unchanged(state),
        _capturing(watched, model, call, lean=lean, card=card, keeping=keeping) as (stack, patches),
    ):
        state.watch_draws(patches)
        exchange_as_operator(patches, model, capacity or Capacity())
        if sizes:
            lstm_of_any_size(patches)
        if lifted and state.reached.asks_for_types:
            raise CaptureError(
                "the model's code asks for types, and a number that is no constant has another"
            )
        if sizes or lifted:
            as_numbers_to_the_user(patches, NOT_THE_USERS)
        reads = stack.enter_context(watched_reads(model, patches, lifted))
        reads.take(state.reached)
        state.written = reads.written
        stack.callback(step.put_back)
        module = export_joint(stack, watched, inputs)
        step.put_back()
        assert step.outputs is not None
        refuse_backward_effects(state)
        found = tuple(reads.kept())
        effects = not_read_before(step.outputs.effects, state, {r.path for r in found})
        outputs = replace(step.outputs, effects=effects)
    written = [e.path for e in effects.items if e.has_tensors]
    appended = only_appended(effects, state)
    known = [t for read in found for t in read.tensors] + state.cached_tensors()
    refuse_baked_tensors(model, module, tensors_left_at(effects, model), known)
    module.graph.eliminate_dead_code()
    drop_idle_waits(module.graph)
    tie_shared_storage(module.graph)
    held = {id(getattr(module, str(n.target))) for n in module.graph.find_nodes(op="get_attr")}
    found = tuple(read.only_held(held) for read in found)
    names = tuple(n for n in parameters if n not in aside), tuple(buffers)
    joint = joint_of(module, outputs, watched.decisions, *names, lifted=len(lifted))
    return replace(joint, reads=loosened(found, written, appended)), watched.called


def run_forward(
    model: nn.Module,
    call: Arguments,
    *,
    loss: Callable[..., Any] | None = None,
    card: Card | None = None,
    aside: Collection[str] = (),
) -> FakeTensorMode:
    """Run the forward half of a call once, under the conditions of a capture; return their mode.

    For what hooks in the model see of it.

    Args:
        model: whose forward is run.
        call: what it is called with.
        loss: called with the output and the targets of the call, if given.
        card, aside: as for ``trace``.

    Raises:
        CaptureError: the forward pass cannot run without data.
    """
    return _forward(model, call, loss, card, aside)[1]


def answers_of(
    model: nn.Module, call: Arguments, *, loss: Callable[..., Any] | None = None
) -> tuple[Any, ...]:
    """Return what the data of a call answer to what the model asks of them, in order.

    Args:
        model, call, loss: as for ``run_forward``, which raises the same errors.
    """
    return _forward(model, call, loss)[0].decisions.answers


@of_second_call
def _forward(
    model: nn.Module,
    call: Arguments,
    loss: Callable[..., Any] | None,
    card: Card | None = None,
    aside: Collection[str] = (),
) -> tuple[tuple[WatchedStep, FakeTensorMode], Called]:
    state = PythonState(model, () if loss is None else (loss,))
    watched, inputs, mode = _watch(model, call, loss, None, answers=None, state=state, aside=aside)
    try:
        with unchanged(state), _capturing(watched, model, call, card=card) as (stack, _):
            export_joint(stack, _ForwardOnly(watched), inputs)
    except _Enough:
        return (watched, mode), watched.called
    raise AssertionError("a capture runs the forward pass")


class _Enough(Exception):
    """The forward pass has run."""


class _ForwardOnly(nn.Module):
    def __init__(self, watched: WatchedStep) -> None:
        super().__init__()
        self.watched = watched

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        self.watched(*tensors)
        raise _Enough


@contextmanager
def _capturing(
    watched: WatchedStep,
    model: nn.Module,
    call: Arguments,
    *,
    lean: bool = True,
    card: Card | None = None,
    keeping: Keeping | None = None,
) -> Iterator[tuple[ExitStack, Patches]]:
    """Set up everything around a capture."""
    kernels = "cpu" if card is None and device_type(model, call) == "cpu" else "cuda"
    watched.casts = casts = Casts(kernels, keeping or keeping_now())
    require_supported()
    with patching() as patches, ExitStack() as stack:
        silence_warnings(patches)
        silence_fake_tensors(patches)
        leave_generators_alone(patches)
        lenient_kernels(patches)
        eager_pieces(patches, lean=lean)
        if kernels == "cuda":
            recurrent_of_cuda(patches, card)
            batch_norm_of_cuda(patches, card)
            grids_by_torch(patches)
        if card is not None:
            kernels_of_cuda(patches, card)
            stack.enter_context(autocast_of_cuda(patches, casts))
        elif casts.device == "cuda":
            casts_on_cuda(patches, casts)
        else:
            casts_on_cpu(patches, casts)
        let_lists_be_asked_for(patches)
        refuse_what_cannot_be_traced(patches)
        refuse_checkpointed_writes(patches, model.buffers)
        run_as_written(patches)
        trace_collectives(patches)
        stack.enter_context(preserve_node_meta())
        stack.enter_context(_module_paths(model, patches))
        stack.enter_context(explained(model))
        yield stack, patches


def _watch(
    model: nn.Module,
    call: Arguments,
    loss: Callable[..., Any] | None,
    device: torch.device | None,
    *,
    answers: Sequence[Any] | None,
    state: PythonState,
    lifted: Sequence[Path] = (),
    sizes: SymbolicSizes | None = None,
    aside: Collection[str] = (),
) -> tuple[WatchedStep, tuple[Tensor, ...], FakeTensorMode]:
    """Return a step of a model around fake tensors, what to call it with, and their mode."""
    parameters, buffers = unique_tensors(model)
    require_even_parts(model)
    members = [*map(local_of, (*parameters.values(), *buffers.values())), *call.tensors]
    mode = sizes.mode if sizes else detect_fake_mode(members)
    if lifted and mode is not None and mode.shape_env is None:
        raise CaptureError("numbers of a model that is fake already cannot be inputs")
    mode = mode or (with_numbers() if lifted else FakeTensorMode(allow_non_fake_inputs=True))
    target = device or torch.device("cpu")
    fake: Callable[[Tensor], Tensor] = lambda t: _fake(t, mode, target)  # noqa: E731
    known = [*call.tensors, *map(local_of, buffers.values())]
    places = [target if t.is_meta else t.device for t in call.tensors]
    inputs = tuple(
        sizes.like(t, i, at) if sizes else blank(t, mode, at)
        for i, (t, at) in enumerate(zip(call.tensors, places, strict=True))
    )
    step = StepFunction(
        model,
        {n: fake(p) for n, p in parameters.items() if n not in aside},
        {n: fake(b) for n, b in buffers.items()},
        call,
        loss,
        state=state,
        aside={n: _placed_fake(parameters[n], mode, target) for n in aside},
    )
    with mode:
        numbers = [torch.empty((), dtype=torch.float64) for _ in lifted]
    data = [None if isinstance(t, FakeTensor) or t.is_meta else t for t in known]
    return WatchedStep(step, data, answers, lifted), (*inputs, *numbers), mode


def _fake(member: Tensor, mode: FakeTensorMode, device: torch.device) -> Tensor:
    """Return a fake copy, on ``device`` if the member is on meta, that allocates nothing.

    Of one that lies on a mesh it is a copy of this rank's part.
    """
    tensor = local_of(member)
    if tensor is not member:
        tensor = tensor.detach().requires_grad_(member.requires_grad)
    if isinstance(tensor, FakeTensor) and not tensor.is_meta:
        return tensor
    if not tensor.is_meta:
        fresh = mode.from_tensor(tensor.detach(), static_shapes=True)
        return fresh.requires_grad_(tensor.requires_grad)
    return blank(tensor, mode, device)


def _placed_fake(member: Tensor, mode: FakeTensorMode, device: torch.device) -> Tensor:
    """Return a fake copy that lies on a mesh as the member does, if it does."""
    part, placed = local_of(member), placed_as(member)
    if isinstance(part, FakeTensor) and not part.is_meta:
        return member
    fake = _fake(member, mode, device)
    return fake if placed is None else placed.around(fake)


def blank(tensor: Tensor, mode: FakeTensorMode, device: torch.device) -> Tensor:
    """Return a fake tensor like another that shares nothing with it: a batch may alias itself."""
    shape, stride = tensor.shape, tensor.stride()
    with mode:
        fresh = torch.empty_strided(shape, stride, dtype=tensor.dtype, device=device)
        return fresh.requires_grad_(tensor.requires_grad)


@contextmanager
def _module_paths(model: nn.Module, patches: Patches) -> Iterator[None]:
    """Annotate every op with the path of the submodule it runs in."""
    paths = {module: name for name, module in model.named_modules()}
    open_annotations: list[Any] = []

    def enter(module: nn.Module) -> None:
        if module in paths:
            annotation = annotate({"module": paths[module]})
            annotation.__enter__()
            open_annotations.append(annotation)

    def leave(module: nn.Module) -> None:
        if module in paths:
            open_annotations.pop().__exit__(None, None, None)

    watch_forwards(patches, enter, leave)
    try:
        yield
    finally:
        while open_annotations:  # an interrupt goes past what is called after an exception
            open_annotations.pop().__exit__(None, None, None)
