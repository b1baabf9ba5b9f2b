"""From a joint torch.fx graph to a ``Graph``, and from its ops back to the nodes they stand for.

Knows what each storage is and which kernels make up an op. Knows nothing of how the joint graph was
captured or of what a kernel costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import fx

from planner.graphs.capture.eager_lifetimes import AutogradFacts, held_by_autograd
from planner.graphs.capture.hand_over import early_hand_overs
from planner.graphs.capture.joint_graph import Joint, in_loss, module_of, source_of
from planner.graphs.capture.lowered import Lowered, Lowering, Price, Role
from planner.graphs.capture.node_kinds import (
    added_to,
    is_random,
    is_scalar,
    is_view,
    target_name,
)
from planner.graphs.capture.optimizer_step import OptimizerStep
from planner.graphs.capture.passes.autograd_nodes import AutogradNodes
from planner.graphs.capture.passes.eager_semantics import first_backward
from planner.graphs.capture.passes.inplace import Readers
from planner.graphs.capture.passes.mutations import once_only, update_points, written_in_place
from planner.graphs.capture.source_line import short_line
from planner.graphs.capture.target import Target
from planner.graphs.costs.roofline import tensors_in
from planner.graphs.graph import Graph, Kind, Op, Phase, Value
from planner.graphs.torch_api.collective_ops import communicates
from planner.graphs.torch_api.storages import storage_key


@dataclass
class _Builder:
    joint: Joint
    price: Callable[[fx.Node], Price]
    target: Target
    granularity_bytes: int
    readers: Readers | None
    nodes: AutogradNodes | None = None
    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    lowered: list[Lowered] = field(default_factory=list)
    storage: dict[int, int] = field(default_factory=dict)  # address -> value
    value_of: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    direct: dict[fx.Node, str] = field(default_factory=dict)
    """New values of buffers that are written where the old ones lie."""
    additions: set[int] = field(default_factory=set)
    """Values of no bytes: that something was added to a sum in place."""

    def add_value(self, name: str, size_bytes: int, kind: Kind) -> int:
        rounded = -(-size_bytes // self.granularity_bytes) * self.granularity_bytes
        self.values.append(Value(name, rounded, kind))
        return len(self.values) - 1

    def own(self, node: fx.Node, kind: Kind, sizes: Sequence[int] = ()) -> tuple[int, ...]:
        """Make a value of every storage of the node that is new; return the new ones.

        ``sizes`` are the true bytes of the new ones, where fake tensors may understate them.
        """
        found: list[int] = []
        fresh: list[int] = []
        for tensor in tensors_in(node.meta.get("val")):
            key = storage_key(tensor)
            if key not in self.storage:
                true = sizes[len(fresh)] if len(fresh) < len(sizes) else 0
                size = max(true, tensor.untyped_storage().nbytes())
                self.storage[key] = self.add_value(node.name, size, kind)
                fresh.append(self.storage[key])
            found.append(self.storage[key])
        done = (v for n in node.all_input_nodes for v in self.value_of.get(n, ()))
        found += [v for v in done if v in self.additions] if found and not fresh else ()
        self.value_of[node] = tuple(dict.fromkeys(found))
        return tuple(fresh)

    def add_to(self, node: fx.Node, operand: fx.Node) -> tuple[int, ...]:
        """Make the value that tells that a kernel has written into an operand."""
        done = self.add_value(f"{node.name}.done", 0, Kind.GRADIENT)
        self.additions.add(done)
        self.value_of[node] = (self.value_of[operand][0], done)
        return (done,)

    def add(self, op: Op, lowered: Lowered) -> None:
        self.ops.append(op)
        self.lowered.append(lowered)


def assemble(
    joint: Joint,
    price: Callable[[fx.Node], Price],
    *,
    target: Target,
    optimizer: OptimizerStep | None,
    optimizer_seconds: float = 0.0,
    accumulate: bool = False,
    eager: bool = False,
    looped: bool = False,
    in_place: bool = True,
    name: str = "",
) -> tuple[Graph, Lowering]:
    """Build the graph of a training step and the lowering of its ops.

    Ops keep the order of the joint graph: forward, buffer updates, tangents, backward, optimizer.

    Args:
        joint: the captured step.
        price: what each of its kernels costs.
        target: what it was captured for.
        optimizer: what follows backward; ``None`` leaves it out.
        optimizer_seconds: how long that takes.
        accumulate: count gradients of earlier micro-batches as resident.
        eager: keep kernels apart that a plan would run one into the storage of the other, and hold
            what autograd holds until each of its nodes is done.
        looped: hold the model's output, for which a loop has a name while its loss is computed and
            differentiated.
        in_place: write new values of buffers where the old ones lie, where nobody else reads them;
            plans of earlier versions copy all of them.
        name: of the graph.
    """
    readers, granularity = Readers(joint.graph), target.device.granularity_bytes
    builder = _Builder(joint, price, target, granularity, None if eager else readers)
    builder.nodes = AutogradNodes(joint.graph) if eager else None
    _add_resident(builder)
    nodes = joint.graph.nodes
    kernels = [n for n in nodes if n.op == "call_function" and not is_scalar(n)]
    border = first_backward(joint)
    position = {n: i for i, n in enumerate(joint.graph.nodes)}
    tainted = once_only(joint)
    updates = update_points(joint, border)
    builder.direct = written_in_place(joint, readers) if in_place else {}
    for new, buffer in builder.direct.items():
        builder.storage[storage_key(new.meta["val"])] = builder.value_of[joint.buffers[buffer]][0]
    for node in (n for n in kernels if position[n] < border):
        _add_kernel(builder, node, Phase.FORWARD, recomputable=node not in tainted)
        for buffer in updates.get(node, ()):
            if joint.mutations[buffer] not in builder.direct:
                _add_update(builder, buffer)
    for node in joint.tangents.values():
        made = builder.own(node, Kind.GRADIENT)
        op = Op(node.name, "tangent", (), made, phase=Phase.BACKWARD, recomputable=False)
        builder.add(op, Lowered(Role.TANGENT, node))
    backward = [n for n in kernels if position[n] >= border]
    early = early_hand_overs(joint, backward) if accumulate else {}
    for node in backward:
        _add_kernel(builder, node, Phase.BACKWARD, recomputable=node not in tainted)
        if node in early:
            _add_hand_over(builder, early[node])
    if builder.nodes is not None:
        _hold_as_autograd(builder, builder.nodes)
    held = _held(builder) | (_left_with_the_loop(builder, border) if looped else set())
    gradients = _gradients(builder)
    _add_optimizer(builder, gradients, optimizer, optimizer_seconds, accumulate=accumulate)
    _add_reserved(builder, optimizer, target.device.reserve_bytes, accumulate=accumulate)
    outputs = frozenset(held | (set() if accumulate else set(gradients)))
    made_values = {v for op in builder.ops for v in op.outputs}
    graph = Graph(tuple(builder.ops), tuple(builder.values), outputs & made_values, name)
    return graph, Lowering(tuple(builder.lowered), builder.value_of, builder.direct)


def _left_with_the_loop(b: _Builder, border: int) -> set[int]:
    """Return what a loss reads of the model's output."""
    forward = [n for n in list(b.joint.graph.nodes)[:border] if n in b.value_of]
    operands = (x for n in forward if in_loss(n) for x in n.all_input_nodes)
    read = {v for x in operands for v in b.value_of.get(x, ())}
    return {v for n in forward if not in_loss(n) for v in b.value_of[n]} & read


def _add_resident(b: _Builder) -> None:
    for label, nodes, kind in (
        ("parameter", b.joint.parameters, Kind.PARAMETER),
        ("buffer", b.joint.buffers, Kind.BUFFER),
    ):
        for name, node in nodes.items():
            if b.own(node, kind):
                b.values[-1] = replace(b.values[-1], name=name or label)
    for index, node in enumerate(b.joint.inputs):
        if b.own(node, Kind.INPUT):
            b.values[-1] = replace(b.values[-1], name=f"input[{index}]")
    for node in b.joint.graph.find_nodes(op="get_attr"):
        b.own(node, Kind.BUFFER)


def _add_reserved(
    b: _Builder, optimizer: OptimizerStep | None, reserve_bytes: int, *, accumulate: bool
) -> None:
    """Add what no kernel reads, last: the indices of all other values do not depend on it."""
    if accumulate:
        owners = zip(b.joint.parameters.items(), b.joint.gradients, strict=False)
        for (name, _), gradient in owners:
            if gradient is not None:
                size = gradient.meta["val"].untyped_storage().nbytes()
                b.add_value(f"accumulated.{name}", size, Kind.GRADIENT)
    if optimizer is not None and optimizer.state_bytes:
        b.add_value(f"{optimizer.name} state", optimizer.state_bytes, Kind.OPTIMIZER)
    if reserve_bytes:
        b.add_value("device reserve", reserve_bytes, Kind.RESERVE)


def _add_kernel(b: _Builder, node: fx.Node, phase: Phase, *, recomputable: bool) -> None:
    reads = tuple(dict.fromkeys(v for n in node.all_input_nodes for v in b.value_of.get(n, ())))
    if _joins_last(b, node, reads, phase, recomputable=recomputable):
        return
    kind = Kind.ACTIVATION if phase is Phase.FORWARD else Kind.GRADIENT
    price = b.price(node)
    operand = None if b.nodes is None else b.nodes.written(node)
    if operand is not None:
        b.storage[storage_key(node.meta["val"])] = b.value_of[operand][0]
    summed = added_to(node)
    made = b.add_to(node, summed) if summed else b.own(node, kind, price.output_bytes)
    if not made and is_view(node):
        return
    fresh = set(made)
    workspace = price.workspace_bytes
    if is_random(node) and recomputable:
        size = b.target.rng_state_bytes
        workspace += size  # run again, the op sets the present state aside
        state = b.add_value(f"{node.name}.rng", size, Kind.ACTIVATION)
        save = Op(f"{node.name}.rng", "rng_state", (), (state,), phase=phase, recomputable=False)
        b.add(save, Lowered(Role.RNG_STATE, node))
        reads = (*reads, state)
    op = Op(
        node.name,
        target_name(node),
        tuple(v for v in reads if v not in fresh),
        made,
        price.seconds,
        price.flops,
        price.moved_bytes,
        workspace,
        Phase.COMMUNICATION if communicates(node.target) else phase,
        recomputable,
        module_of(node),
        short_line(source_of(node)),
    )
    b.add(op, Lowered(Role.KERNEL, node))


def _hold_as_autograd(b: _Builder, nodes: AutogradNodes) -> None:
    saved = {
        number: {v for node in operands for v in b.value_of[node]}
        for number, operands in nodes.saved_unread().items()
    }
    numbers = [nodes.number(lowered.node) for lowered in b.lowered]
    facts = AutogradFacts(numbers, saved, nodes.forked(), set(_gradients(b)))
    held_by_autograd(b.ops, b.values, facts)


def _joins_last(
    b: _Builder, node: fx.Node, reads: Sequence[int], phase: Phase, *, recomputable: bool
) -> bool:
    """Make a kernel part of the op before it, if it can write into what that op made for it.

    In the forward pass the op may make little else: what it makes besides would cost this kernel,
    too, to make again.
    """
    if b.readers is None or node in b.direct:
        return False
    overwrite = b.readers.overwrite(node)
    if overwrite is None or b.lowered[-1].role is not Role.KERNEL:
        return False
    last, (taken,) = b.ops[-1], b.value_of[overwrite.operand]
    others = sum(b.values[v].size_bytes for v in last.outputs if v != taken)
    small = phase is Phase.BACKWARD or 16 * others <= b.values[taken].size_bytes
    alike = last.phase is phase and last.recomputable == recomputable
    if taken not in last.outputs or not small or not alike:
        return False
    price = b.price(node)
    b.storage[storage_key(node.meta["val"])] = taken
    b.value_of[node] = (taken,)
    b.ops[-1] = replace(
        last,
        target=f"{last.target}+{target_name(node)}",
        inputs=tuple(dict.fromkeys((*last.inputs, *(v for v in reads if v not in last.outputs)))),
        seconds=last.seconds + price.seconds,
        flops=last.flops + price.flops,
        moved_bytes=last.moved_bytes + price.moved_bytes,
        workspace_bytes=max(last.workspace_bytes, price.workspace_bytes),
    )
    step = b.lowered[-1]
    b.lowered[-1] = replace(step, then=(*step.then, (node, overwrite)))
    return True


def _add_update(b: _Builder, buffer: str) -> None:
    node = b.joint.mutations[buffer]
    reads = tuple(v for v in b.value_of[node] if b.values[v].kind is not Kind.BUFFER)
    op = Op(f"update.{buffer}", "copy_", reads, (), recomputable=False)
    b.add(op, Lowered(Role.BUFFER_UPDATE, node, buffer))


def _held(b: _Builder) -> set[int]:
    """Return the values of the forward outputs, which the caller may hold to the end.

    The caller has the first copy, so what makes one may not run again.
    """
    held = {v for node in b.joint.forward_outputs for v in b.value_of[node]}
    for i, op in enumerate(b.ops):
        if held.intersection(op.outputs):
            b.ops[i] = replace(op, recomputable=False)
    for v in held:
        if b.values[v].kind is Kind.ACTIVATION:
            b.values[v] = replace(b.values[v], kind=Kind.OUTPUT)
    return held


def _gradients(b: _Builder) -> list[int]:
    return [v for node in b.joint.gradients if node is not None for v in b.value_of[node]]


def _add_hand_over(b: _Builder, gradients: Sequence[fx.Node]) -> None:
    """Add gradients to those of earlier micro-steps before all of them are made."""
    reads = tuple(v for node in gradients for v in b.value_of[node])
    done = sum(low.role is Role.HAND_OVER for low in b.lowered)
    name, target = f"accumulate_grad_{done}", "accumulate_grad"
    op = Op(name, target, reads, (), phase=Phase.BACKWARD, recomputable=False)
    b.add(op, Lowered(Role.HAND_OVER))


def _add_optimizer(
    b: _Builder,
    gradients: Sequence[int],
    optimizer: OptimizerStep | None,
    seconds: float,
    *,
    accumulate: bool,
) -> None:
    # autograd holds the tangents until the whole backward pass, one node to it, has returned
    held = [v for node in b.joint.tangents.values() for v in b.value_of[node]]
    given = {
        v
        for op, low in zip(b.ops, b.lowered, strict=True)
        if low.role is Role.HAND_OVER
        for v in op.inputs
    }
    reads = tuple(v for v in dict.fromkeys((*gradients, *held)) if v not in given)
    name = "accumulate_grad"
    op = Op(name, name, reads, (), phase=Phase.BACKWARD, recomputable=False)
    b.add(op, Lowered(Role.HAND_OVER))
    if optimizer is not None:
        reads = () if accumulate else tuple(dict.fromkeys(gradients))
        op = Op(
            "optimizer.step",
            optimizer.name,
            reads,
            (),
            seconds,
            moved_bytes=optimizer.moved_bytes,
            workspace_bytes=optimizer.workspace_bytes,
            phase=Phase.OPTIMIZER,
            recomputable=False,
        )
        b.add(op, Lowered(Role.OPTIMIZER))
