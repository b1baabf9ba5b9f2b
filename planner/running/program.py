"""A schedule as two torch.fx programs, forward and backward, and how they fit each other.

Every COMPUTE step becomes one call, in order; every value dies where the schedule frees it. Knows
what the halves hand over: what is saved, which tangents arrive, which gradients leave. Knows
nothing of autograd, models or guards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from planner.errors import InvalidPlan
from planner.graphs import Action, Graph, Schedule
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.lowering import Lowering, Role
from planner.running.engines.op_by_op import Half


@dataclass(frozen=True)
class Program:
    """Both halves of a step. Arguments are lists, emptied by the call.

    ``forward`` takes parameters, buffers and input tensors and returns the outputs, then what it
    saves. ``backward`` takes the tensors at ``reads`` (indices into forward's arguments), what was
    saved, then the tangents at ``tangents`` (indices of outputs), and returns a gradient or
    ``None`` for each of forward's arguments. ``behind`` are the tangents each gradient is made of.
    """

    forward: Callable[[list[Any]], list[Any]]
    backward: Callable[[list[Any]], list[Any]]
    output_count: int
    reads: tuple[int, ...]
    tangents: tuple[int, ...]
    behind: tuple[frozenset[int], ...]
    output_names: tuple[str, ...]
    tangent_specs: tuple[tuple[Any, ...], ...]
    refused: tuple[bool, ...]
    differentiable: tuple[bool, ...]


def build(joint: Joint, lowering: Lowering, graph: Graph, schedule: Schedule) -> Program:
    """Write the two programs of a schedule.

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
    forward = Half(joint, lowering, repeated)
    for placeholder in (*joint.parameters.values(), *joint.buffers.values(), *joint.inputs):
        forward.argument(placeholder, placeholder.meta["val"])
    backward = Half(joint, lowering, repeated, ran=forward.ran, can_save=True)
    half, returned = forward, list[fx.Node | None]()
    for step in schedule.steps:
        if step.action is Action.FREE:
            half.forget((step.index,))
            continue
        lowered = lowering.ops[step.index]
        if lowered.role is Role.TANGENT:
            half = backward
        elif lowered.role is Role.HAND_OVER:
            returned = _returned(joint, forward, backward)
        half.run(lowered, graph.ops[step.index].outputs)
    return _program(joint, forward, backward, returned)


def _returned(joint: Joint, forward: Half, backward: Half) -> list[fx.Node | None]:
    """Return the gradient of each of forward's arguments, ``None`` where there is none."""
    gradients = joint.gradient_of
    wanted = [gradients.get(node) for node in forward.arguments]
    return [None if g is None else backward.get(g) for g in wanted]


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
    joint: Joint, forward: Half, backward: Half, returned: list[fx.Node | None]
) -> Program:
    inputs = list(forward.arguments)
    position = {node: i for i, node in enumerate(inputs)}
    tangents = {node: index for index, node in joint.tangents.items()}
    reads = [k for k in backward.arguments if k in position]
    arrived = [k for k in backward.arguments if k in tangents]
    saved = [k for k in backward.arguments if k not in position and k not in tangents]
    backward.reorder([*reads, *saved, *arrived])
    outputs = [forward.get(node) for node in joint.forward_outputs]
    kept = [forward.env[k] if isinstance(k, tuple) else forward.get(k) for k in saved]
    fakes = [k.meta["val"] for k in arrived]
    return Program(
        forward=forward.compile([*outputs, *kept]),
        backward=backward.compile(returned),
        output_count=len(outputs),
        reads=tuple(position[k] for k in reads),
        tangents=tuple(tangents[k] for k in arrived),
        behind=_behind(joint, inputs),
        output_names=joint.outputs.names,
        tangent_specs=tuple((f.shape, f.stride(), f.dtype, f.device) for f in fakes),
        refused=joint.outputs.refused,
        differentiable=joint.outputs.differentiable,
    )


def _behind(joint: Joint, inputs: Sequence[fx.Node]) -> tuple[frozenset[int], ...]:
    """Return for each of forward's arguments the outputs whose tangents its gradient is made of."""
    found = {node: frozenset((index,)) for index, node in joint.tangents.items()}
    for node in joint.graph.nodes:
        if node not in found:
            found[node] = frozenset().union(*(found[n] for n in node.all_input_nodes))
    gradients = joint.gradient_of
    made = (gradients.get(node) for node in inputs)
    return tuple(frozenset() if g is None else found[g] for g in made)
