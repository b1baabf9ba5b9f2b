"""The engine that runs a plan op by op: eager kernels, bit for bit what eager mode computes.

Its graph is the step as captured. Every COMPUTE step becomes one call, in order; every value dies
where the schedule frees it. Knows how to check that a model still does what was planned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import fx, nn

from planner.errors import BadCluster, CaptureError, InvalidPlan, OtherKernels, PlanMismatch
from planner.graphs import Graph, Op, Schedule, Subject
from planner.graphs.capture.call_arguments import arguments
from planner.graphs.capture.exchange.exchange_operator import exchanges
from planner.graphs.capture.guards.call import (
    autocast_as,
    device_of,
    kernels_of,
    model_differences,
    signature_of,
)
from planner.graphs.capture.guards.paths import Path
from planner.graphs.capture.hollow_units import hollow_in
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.lowered import Lowering, Role
from planner.graphs.capture.passes.eager_semantics import first_backward
from planner.graphs.capture.placed import is_parallelized
from planner.graphs.capture.recapture import Recaptured, recapture
from planner.graphs.capture.training_step import Captured, capture
from planner.graphs.capture_error import CaptureError as GraphsCaptureError
from planner.graphs.hardware.cluster import Cluster
from planner.graphs.host_memory import host_layout, movable
from planner.graphs.torch_api.collective_ops import communicates, group_name
from planner.plan.step_plan import StepPlan
from planner.request import Request
from planner.running.called_units import CalledUnit
from planner.running.engines.actions import carry_out
from planner.running.engines.at_sizes import at_sizes
from planner.running.engines.engine import Engine, Sized, register_engine
from planner.running.engines.program_writer import HostSide, ProgramWriter
from planner.running.engines.recast import recast_by
from planner.running.host_copies import host_memory
from planner.running.planned_module import unplanned
from planner.running.program import Program


def captured(request: Request, rewrite: str) -> Captured:
    """Capture a variant of the step that a person asked for.

    Raises:
        CaptureError: the step cannot be captured.
    """
    model = unplanned(request.model)
    request.tell(f"capturing {type(model).__name__}")
    try:
        return capture(
            model,
            request.inputs,
            loss=request.loss,
            targets=request.targets,
            optimizer=request.optimizer,
            device=request.hardware,
            costs=request.costs,
            accumulate=request.accumulate,
            rewrite=rewrite,
            dynamic=request.dynamic,
            checks=request.checks,
            progress=request.tell,
            cluster=_cluster(request),
            capacity_factor=request.capacity_factor,
        )
    except BadCluster:
        raise
    except ValueError as error:  # a CaptureError of graphs, or an argument it does not know
        raise CaptureError(str(error)) from error


def _cluster(request: Request) -> Cluster | None:
    """Return the devices that a parallelized model runs on, as the process group has ranks.

    Raises:
        BadCluster: they do not divide into nodes, or a link is not known.
    """
    if not is_parallelized(request.model):
        return None
    import torch.distributed as dist

    return request.cluster(dist.get_world_size())


def program(
    plan: StepPlan,
    model: nn.Module,
    loss: Callable[..., Any] | None,
    lifted: Sequence[Path] = (),
) -> Program:
    """Write the programs of a plan for a model, which must do what the plan was made for.

    Args:
        plan: made on a graph of this engine.
        model: in the modes the plan was made for.
        loss: the callable the plan was made with.
        lifted: where Python holds floats that are to be inputs of the program, not constants.

    Raises:
        PlanMismatch: the model is another, or does something else.
        InvalidPlan: the schedule is none that can run.
    """
    again = _captured_again(plan, model, loss, lifted)
    host, units = _host_side(plan, model), _units_in(model, plan)
    made = build(again.joint, again.lowering, plan.graph, plan.schedule, host=host, units=units)
    return replace(made, lifted=tuple(lifted))


def _units_in(model: nn.Module, plan: StepPlan) -> dict[str, CalledUnit]:
    """Return how the program of a root calls its units, in the autocast state that was planned."""
    precision = partial(autocast_as, plan.signature, device_of(model).type)
    return {path: CalledUnit(unit, precision) for path, unit in hollow_in(model).items()}


def any_size(
    plan: StepPlan,
    model: nn.Module,
    loss: Callable[..., Any] | None,
    lifted: Sequence[Path] = (),
) -> Sized:
    """Write the programs of a plan once for all sizes up to the planned ones.

    Args:
        plan, model, loss, lifted: as for ``program``, which raises the same errors.
    """
    again = _captured_again(plan, model, loss, lifted, any_size=True)
    numbers = again.numbers
    assert numbers is not None, "it was captured for any size"
    made = build(
        again.joint,
        again.lowering,
        plan.graph,
        plan.schedule,
        numbers.nodes,
        host=_host_side(plan, model),
    )
    made = replace(made, lifted=tuple(lifted))
    return Sized(made, lambda inputs: at_sizes(made, numbers, inputs))


def _host_side(plan: StepPlan, model: nn.Module) -> HostSide | None:
    """Return where what a plan moves will lie on the host; room for it is taken at once.

    Raises:
        HostMemoryError: there is none.
    """
    if not plan.schedule.moves:
        return None
    layout = host_layout(plan.graph, plan.schedule)
    if not layout.size_bytes:
        return None
    directory = None if plan.host is None else plan.host.directory
    memory = host_memory(layout.size_bytes, device_of(model), directory)
    return HostSide(memory.opener(), layout, movable(plan.graph))


def _captured_again(
    plan: StepPlan,
    model: nn.Module,
    loss: Callable[..., Any] | None,
    lifted: Sequence[Path],
    *,
    any_size: bool = False,
) -> Recaptured:
    """Capture the planned call of a model, in the planned autocast state: it must be the same."""
    signature = plan.signature
    here = signature_of(model, arguments((), {}))
    for difference in model_differences(signature, here):
        raise PlanMismatch(f"the plan is not for this model: {difference}")
    device = device_of(model).type
    if (planned := kernels_of(signature)) != device:
        raise OtherKernels(f"it was made for kernels of {planned}, and the model is on {device}")
    with autocast_as(signature, device):
        try:
            again = recapture(model, dict(signature), loss, plan.rewrite, lifted, any_size=any_size)
        except GraphsCaptureError as error:
            raise PlanMismatch(f"the planned step can no longer be captured: {error}") from error
    if (changed := graph_difference(plan.graph, again.graph)) is not None:
        kind = PlanMismatch if signature["autocast"][0] == device else OtherKernels
        raise kind(
            f"{type(model).__name__} does not do what the plan was made for: {changed}; make "
            "the plan again with planner.fit"
        )
    return again


def graph_difference(planned: Graph, found: Graph) -> str | None:
    """Say where a captured graph stops being the planned one; the optimizer is not compared."""
    for a, b in zip(planned.ops, found.ops, strict=False):
        where = f"op {b.name!r} in {b.module or 'the model'} at {b.source or 'an unknown line'}"
        if (a.target, a.phase) != (b.target, b.phase):
            return f"{where} is a {b.target}, planned was {a.name!r}, a {a.target}"
        if (a.inputs, a.outputs) != (b.inputs, b.outputs):
            read, planned_read = (
                ", ".join(g.values[v].name for v in op.inputs)
                for g, op in ((found, b), (planned, a))
            )
            return f"{where}, a {b.target}, reads {read}; planned was {planned_read}"
    extra = len(found.ops) - len(planned.ops)
    if extra > 0 or extra < -1:
        return f"it has {len(found.ops)} ops, planned were {len(planned.ops)}"
    made = {v for op in found.ops for v in op.outputs}
    for v in sorted(made):
        if planned.values[v].size_bytes < found.values[v].size_bytes:
            return (
                f"value {found.values[v].name!r} has {found.values[v].size_bytes} bytes, planned "
                f"were {planned.values[v].size_bytes}"
            )
    return None


def build(
    joint: Joint,
    lowering: Lowering,
    graph: Graph,
    schedule: Schedule,
    numbers: Sequence[fx.Node] = (),
    *,
    host: HostSide | None = None,
    units: Mapping[str, CalledUnit] = {},
) -> Program:
    """Write the two programs of a schedule.

    Args:
        joint: the captured step.
        lowering: what its ops stand for.
        graph: its ops.
        schedule: the order in which they run.
        numbers: placeholders of the joint graph that both programs take last.
        host: where copies on the host lie, if the schedule moves values.
        units: that the step of a root calls, by their paths.

    Raises:
        InvalidPlan: random ops would first run in another order than the model's, or a forward op
            would first run after the backward pass began.
    """
    order = schedule.order
    _check_order(lowering, order)
    counts: dict[int, int] = {}
    for index in order:
        counts[index] = counts.get(index, 0) + 1
    repeated = frozenset(
        node for i, c in counts.items() if c > 1 and (node := lowering.ops[i].node) is not None
    )
    host = HostSide() if host is None else host
    forward = ProgramWriter(joint, lowering, repeated, host=host, units=units)
    taken = (*joint.parameters.values(), *joint.buffers.values(), *joint.inputs, *joint.lifted)
    for placeholder in (*taken, *numbers):
        forward.argument(placeholder, placeholder.meta["val"])
    backward = ProgramWriter(
        joint, lowering, repeated, ran=forward.ran, can_save=True, host=host, units=units
    )
    for placeholder in numbers:
        backward.argument(placeholder, placeholder.meta["val"])
    half, handed = forward, list[tuple[int, ...]]()
    for host.step, step in enumerate(schedule.steps):
        if step.action.subject is Subject.OP:
            role = lowering.ops[step.index].role
            if role is Role.TANGENT:
                half = backward
            elif given := _given(joint, lowering, graph.ops[step.index], role):
                backward.hand_over([backward.get(gradient) for gradient in given.values()])
                handed.append(tuple(given))
        carry_out(half, step, graph)
    return _program(joint, forward, backward, tuple(handed), len(taken))


def _given(joint: Joint, lowering: Lowering, op: Op, role: Role) -> dict[int, fx.Node]:
    """Return the gradients that an op hands over, by the argument of forward that each is of."""
    if role is not Role.HAND_OVER:
        return {}
    owners = (*joint.parameters.values(), *joint.buffers.values(), *joint.inputs)
    gradients = joint.gradient_of
    return {
        index: gradient
        for index, owner in enumerate(owners)
        if (gradient := gradients.get(owner)) is not None
        and lowering.value_of[gradient][0] in op.inputs
    }


def _check_order(lowering: Lowering, order: Sequence[int]) -> None:
    first = list(dict.fromkeys(order))
    draws = [i for i in first if lowering.ops[i].role is Role.RNG_STATE]
    border = next((k for k, i in enumerate(first) if lowering.ops[i].role is Role.TANGENT), 0)
    tangent = min(i for i in first if lowering.ops[i].role is Role.TANGENT)
    late = any(i < tangent for i in first[border:])
    if draws != sorted(draws) or late:
        raise InvalidPlan(
            "the schedule runs random ops, or forward and backward, in another order than the "
            "model does; make the plan again"
        )


def _program(
    joint: Joint,
    forward: ProgramWriter,
    backward: ProgramWriter,
    handed: tuple[tuple[int, ...], ...],
    count: int,
) -> Program:
    inputs, numbers = forward.arguments[:count], forward.arguments[count:]
    position = {node: i for i, node in enumerate(inputs)}
    tangents = {node: index for index, node in joint.tangents.items()}
    reads = [k for k in backward.arguments if k in position]
    arrived = [k for k in backward.arguments if k in tangents]
    known = {*position, *tangents, *numbers}
    saved = [k for k in backward.arguments if k not in known]
    backward.reorder([*reads, *saved, *arrived, *numbers])
    outputs = [forward.get(node) for node in joint.forward_outputs]
    kept = [forward.env[k] if isinstance(k, tuple) else forward.get(k) for k in saved]
    fakes = [k.meta["val"] for k in arrived]
    return Program(
        forward=forward.compile([*outputs, *kept]),
        backward=backward.compile(None),
        handed=handed,
        output_count=len(outputs),
        read=tuple(position[k] for k in reads),
        tangents=tuple(tangents[k] for k in arrived),
        behind=_behind(joint, inputs),
        tangent_specs=tuple((f.shape, f.stride(), f.dtype, f.device) for f in fakes),
        outputs=joint.outputs,
        decisions=joint.decisions,
        reads=joint.reads,
        recast=recast_by(list(joint.graph.nodes)[first_backward(joint) :]),
        groups=_groups(joint),
    )


def _groups(joint: Joint) -> tuple[str, ...]:
    """Return the groups of a step's collectives, in the order in which they are first called."""
    sent = [n for n in joint.graph.nodes if communicates(n.target) or exchanges(n.target)]
    names = (group_name(n.target, n.args, n.kwargs) for n in sent)
    return tuple(dict.fromkeys(names))


def _behind(joint: Joint, inputs: Sequence[fx.Node]) -> tuple[frozenset[int], ...]:
    """Return for each of forward's arguments the outputs whose tangents its gradient is made of."""
    found = {node: frozenset((index,)) for index, node in joint.tangents.items()}
    for node in joint.graph.nodes:
        if node not in found:
            found[node] = frozenset().union(*(found[n] for n in node.all_input_nodes))
    gradients = joint.gradient_of
    made = (gradients.get(node) for node in inputs)
    return tuple(frozenset() if g is None else found[g] for g in made)


OP_BY_OP = register_engine(
    Engine(
        "op_by_op",
        captured,
        program,
        any_size,
        moves_values=True,
        sharded=True,
        parallelized=True,
    )
)
