"""Turn a schedule into two torch.fx programs, forward and backward, and run them under autograd.

Every COMPUTE step becomes one call, in order; every value dies where the schedule frees it, because
the generated code drops each variable after its last use and the arguments are given up by the
caller. Knows nothing of models or guards.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.function import once_differentiable
from torch.fx.graph import _BoxedCodeGen

from graphs import Action, Graph, Schedule
from graphs.assemble import Lowered, Lowering, Role
from graphs.costs import tensors_in
from graphs.joint import Joint
from graphs.kernels import RECURRENT, is_functional_batch_norm, is_random, is_view
from planner.errors import InvalidPlan, PlanMismatch

_WITHOUT_STATISTICS = torch.ops.aten._native_batch_norm_legit.no_stats


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


def rng_state(device: torch.device) -> Tensor:
    """Return the state of a device's default generator."""
    if device.type == "cpu":
        return torch.get_rng_state()
    return torch.get_device_module(device).get_rng_state(device)  # type: ignore[no-any-return]


def run_with_rng_state(
    state: Tensor, device: torch.device, target: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """Call an op as if the generator were in another state; leave the generator as it is."""
    now = rng_state(device)
    _set_rng_state(state, device)
    try:
        return target(*args, **kwargs)
    finally:
        _set_rng_state(now, device)


def run_for_backward(target: Callable[..., Any], *args: Any) -> Any:
    """Call a kernel that makes its workspace for backward only if gradients are enabled."""
    with torch.enable_grad():
        return target(*(a.detach() if isinstance(a, Tensor) else a for a in args))


def _set_rng_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


@dataclass
class _Half:
    """One program being written; ``env`` maps joint nodes that are live to nodes of this graph."""

    joint: Joint
    lowering: Lowering
    repeated: frozenset[fx.Node]
    graph: fx.Graph = field(default_factory=fx.Graph)
    env: dict[Any, fx.Node] = field(default_factory=dict)
    arguments: list[Any] = field(default_factory=list)
    placeholders: dict[Any, fx.Node] = field(default_factory=dict)
    ran: set[fx.Node] = field(default_factory=set)
    can_save: bool = False

    def get(self, node: fx.Node) -> fx.Node:
        """Return the live copy of a joint node, writing views anew and asking for arguments."""
        if node not in self.env:
            if node.op == "call_function" and not self._is_root(node):
                self.env[node] = self.graph.node_copy(node, self.get)
            elif node.op == "get_attr":
                self.env[node] = self.graph.node_copy(node)
            else:
                self.env[node] = self.argument(node, node.meta.get("val"))
        return self.env[node]

    def _is_root(self, node: fx.Node) -> bool:
        if node.target is operator.getitem:
            parent = node.args[0]
            assert isinstance(parent, fx.Node)
            return not is_view(parent)
        return not is_view(node)

    def argument(self, key: Any, value: Any) -> fx.Node:
        """Add a placeholder for a joint node or the RNG state of one."""
        kernel = isinstance(key, tuple) or key.op == "call_function"
        assert self.can_save or not kernel, f"{key} is used before it is computed"
        assert key not in self.placeholders, f"{key} is used after it is freed"
        label = f"{key[1].name}_rng" if isinstance(key, tuple) else key.name
        spot = self.placeholders[self.arguments[-1]] if self.arguments else self.graph._root
        with self.graph.inserting_after(spot):
            made = self.graph.placeholder(label)
        made.meta["val"] = value
        self.arguments.append(key)
        self.env[key] = self.placeholders[key] = made
        return made

    def run(self, lowered: Lowered, outputs: Sequence[int]) -> None:
        """Write one COMPUTE step."""
        node = lowered.node
        if node is None or lowered.role is Role.TANGENT:
            return
        if lowered.role is Role.RNG_STATE:
            if node in self.repeated:
                state = self.graph.call_function(rng_state, (_device(node),))
                self.env[(Role.RNG_STATE, node)] = state
        elif lowered.role is Role.BUFFER_UPDATE:
            buffer = self.joint.buffers[lowered.buffer]
            self.graph.call_function(
                torch.ops.aten.copy_.default, (self.get(buffer), self.get(node))
            )
        else:
            self.forget(outputs)
            self._kernel(node)
            for follower, overwrite in lowered.then:
                operand = self.get(overwrite.operand)
                args = fx.node.map_arg(follower.args, self.get)
                kwargs = fx.node.map_arg(follower.kwargs, self.get) | {overwrite.keyword: operand}
                self.env[follower] = self.graph.call_function(overwrite.target, args, kwargs)

    def _kernel(self, node: fx.Node) -> None:
        again = node in self.ran
        self.ran.add(node)
        blind = again and is_functional_batch_norm(node)
        if again and is_random(node):
            made = self._replayed(node)
        elif blind:
            # other forward passes may have changed the statistics, which it ignores, meanwhile
            args = fx.node.map_arg((*node.args[:3], *node.args[5:]), self.get)
            made = self.graph.call_function(_WITHOUT_STATISTICS, args)
        elif node.target is RECURRENT:
            args = (RECURRENT, *fx.node.map_arg(node.args, self.get))
            made = self.graph.call_function(run_for_backward, args)
        else:
            made = self.graph.node_copy(node, self.get)
        self.env[node] = made
        for user in node.users:
            if user.target is operator.getitem and not (blind and user.args[1] in (3, 4)):
                self.env[user] = self.graph.node_copy(user, self.get)

    def _replayed(self, node: fx.Node) -> fx.Node:
        key = (Role.RNG_STATE, node)
        state = self.env.get(key) or self.argument(key, None)
        args = fx.node.map_arg(node.args, self.get)
        kwargs = fx.node.map_arg(node.kwargs, self.get)
        head: tuple[Any, ...] = (state, _device(node), node.target)
        return self.graph.call_function(run_with_rng_state, (*head, *args), kwargs)

    def forget(self, values: Sequence[int]) -> None:
        """Drop every node that lives in one of these values: they are dead, or made anew."""
        dead = set(values)
        lives_in = self.lowering.value_of
        for key in [k for k in self.env if not isinstance(k, tuple) and k.op == "call_function"]:
            if dead.intersection(lives_in.get(key, ())):
                del self.env[key]

    def compile(self, results: Sequence[Any]) -> Callable[[list[Any]], list[Any]]:
        """Finish the program: drop what nobody reads, generate boxed code."""
        self.graph.output(list(results))
        for made in reversed(list(self.graph.nodes)):
            cheap = made.target is operator.getitem or made.op == "get_attr" or is_view_call(made)
            if made.op != "placeholder" and cheap and not made.users:
                self.graph.erase_node(made)
        self.graph.set_codegen(_BoxedCodeGen())
        module = fx.GraphModule(self.joint.module, self.graph)
        return module.forward


def is_view_call(node: fx.Node) -> bool:
    """Tell a written call that only makes a view, by the operator's own schema."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.is_view


def _device(node: fx.Node) -> torch.device:
    return next(iter(tensors_in(node.meta["val"]))).device


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
    forward = _Half(joint, lowering, repeated)
    for placeholder in (*joint.parameters.values(), *joint.buffers.values(), *joint.inputs):
        forward.argument(placeholder, placeholder.meta["val"])
    backward = _Half(joint, lowering, repeated, ran=forward.ran, can_save=True)
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


def _returned(joint: Joint, forward: _Half, backward: _Half) -> list[fx.Node | None]:
    """Return the gradient of each of forward's arguments, ``None`` where there is none."""
    gradients = dict(zip((*joint.parameters.values(), *joint.inputs), joint.gradients, strict=True))
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
    joint: Joint, forward: _Half, backward: _Half, returned: list[fx.Node | None]
) -> Program:
    inputs = list(forward.arguments)
    position = {node: i for i, node in enumerate(inputs)}
    tangents = {node: index for index, node in joint.tangents.items()}
    reads = [k for k in backward.arguments if k in position]
    arrived = [k for k in backward.arguments if k in tangents]
    saved = [k for k in backward.arguments if k not in position and k not in tangents]
    _reorder(backward, [*reads, *saved, *arrived])
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
    gradients = dict(zip((*joint.parameters.values(), *joint.inputs), joint.gradients, strict=True))
    made = (gradients.get(node) for node in inputs)
    return tuple(frozenset() if g is None else found[g] for g in made)


def _reorder(half: _Half, keys: Sequence[Any]) -> None:
    """Put the placeholders in the order of these keys."""
    for key in reversed(keys):
        half.graph._root.append(half.placeholders[key])


class _Run(torch.autograd.Function):
    """A planned step as one node of the autograd graph."""

    @staticmethod
    def forward(ctx: Any, program: Program, *arguments: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        results = program.forward(list(arguments))
        outputs, ctx.saved = results[: program.output_count], results[program.output_count :]
        ctx.versions = [x._version for x in ctx.saved]
        ctx.program = program
        ctx.save_for_backward(*(arguments[i] for i in program.reads))
        silent = zip(outputs, program.differentiable, program.refused, strict=True)
        ctx.mark_non_differentiable(*(o for o, wanted, refused in silent if not wanted | refused))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        program: Program = ctx.program
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
        found = zip(program.backward(arguments), program.behind, strict=True)
        return (None, *(g if arrived & behind else None for g, behind in found))


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
        if x._version != version:
            raise RuntimeError(
                f"a {x.dtype} tensor of shape {tuple(x.shape)} that the backward pass of a planned "
                "step needs was changed in place after the forward pass; it is an output of the "
                "model, or shares its memory with one: change a clone instead"
            )


def _refuse_gradients(program: Program, gradients: Sequence[Tensor | None]) -> None:
    for name, refused, gradient in zip(
        program.output_names, program.refused, gradients, strict=True
    ):
        if refused and gradient is not None:
            raise PlanMismatch(
                f"a gradient reached output {name!r}, but the plan differentiates only the loss; "
                "plan with loss=, or make the model return what you differentiate"
            )


def execute(program: Program, arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Run the forward program on parameters, buffers and inputs; autograd runs the other half."""
    with torch._C._DisableAutocast():
        return _Run.apply(program, *arguments)  # type: ignore[no-any-return, no-untyped-call]
