"""A captured step: which node of its joint graph is a parameter, an output, a gradient.

Knows AOTAutograd's descriptors, what of a traced graph a plan cannot carry out, and where a node
came from. Knows nothing of how the graph was traced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from planner.graphs.capture.guards.reads import Read
from planner.graphs.capture.guards.tape import Decisions, roots_of
from planner.graphs.capture.placed import local_of
from planner.graphs.capture.step_outputs import Outputs
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.annotations import IN_LOSS, IN_PLACE, noted
from planner.graphs.torch_api.joint_export import descriptors as desc
from planner.graphs.torch_api.storages import storage_key


@dataclass(frozen=True)
class Joint:
    """A captured step.

    ``graph`` holds placeholders for parameters, buffers, input tensors and tangents, each listed
    here in the order of the model's own; ``forward_outputs``, ``mutations`` (buffer name -> new
    value) and ``gradients`` (of each parameter, then of each input tensor; ``None`` where there
    is none) are nodes of it. ``rewired`` are backward nodes that read an updated buffer in place;
    ``reads`` are what of Python's state the trace depends on; ``lifted`` are placeholders for
    numbers of that state which are no constants of the graph, after the inputs.
    """

    module: fx.GraphModule
    parameters: Mapping[str, fx.Node]
    buffers: Mapping[str, fx.Node]
    inputs: tuple[fx.Node, ...]
    tangents: Mapping[int, fx.Node]
    forward_outputs: tuple[fx.Node, ...]
    mutations: Mapping[str, fx.Node]
    gradients: tuple[fx.Node | None, ...]
    outputs: Outputs
    decisions: Decisions
    rewired: frozenset[fx.Node] = frozenset()
    reads: tuple[Read, ...] = ()
    lifted: tuple[fx.Node, ...] = ()

    @property
    def graph(self) -> fx.Graph:
        """The joint graph."""
        return self.module.graph

    @property
    def gradient_of(self) -> dict[fx.Node, fx.Node | None]:
        """The gradient of each parameter and of each input tensor."""
        owners = (*self.parameters.values(), *self.inputs)
        return dict(zip(owners, self.gradients, strict=True))


def copied(joint: Joint) -> Joint:
    """Return the same step with a graph of its own, which may be changed."""
    graph, twin = fx.Graph(), dict[fx.Node, fx.Node]()
    results = graph.graph_copy(joint.graph, twin)
    graph.output(results).meta = dict(joint.graph.output_node().meta)

    def all_of(nodes: Mapping[Any, fx.Node]) -> dict[Any, fx.Node]:
        return {key: twin[node] for key, node in nodes.items()}

    return replace(
        joint,
        module=fx.GraphModule(joint.module, graph),
        parameters=all_of(joint.parameters),
        buffers=all_of(joint.buffers),
        inputs=tuple(twin[n] for n in joint.inputs),
        tangents=all_of(joint.tangents),
        forward_outputs=tuple(twin[n] for n in joint.forward_outputs),
        mutations=all_of(joint.mutations),
        gradients=tuple(None if n is None else twin[n] for n in joint.gradients),
        rewired=frozenset(twin[n] for n in joint.rewired),
        lifted=tuple(twin[n] for n in joint.lifted),
    )


def joint_of(
    module: fx.GraphModule,
    outputs: Outputs,
    decisions: Decisions,
    parameter_names: tuple[str, ...],
    buffer_names: tuple[str, ...],
    *,
    lifted: int = 0,
) -> Joint:
    """Read the descriptors of a joint graph's placeholders and outputs.

    Args:
        module: what AOTAutograd exported of a ``StepFunction``.
        outputs: how the user's output is built from the step's.
        decisions: what the model asked of its inputs while it was traced.
        parameter_names: of the model, in the order of the step's own.
        buffer_names: likewise.
        lifted: how many inputs, the last, are numbers of Python's state.

    Raises:
        CaptureError: the step does what a plan cannot carry out.
    """
    where: dict[Any, fx.Node] = {}
    for node in module.graph.find_nodes(op="placeholder"):
        where[node.meta["desc"]] = node
    output_node = module.graph.output_node()
    results = zip(output_node.meta["desc"], output_node.args[0], strict=True)  # type: ignore[arg-type]
    made: dict[Any, Any] = {d: node for d, node in results if d is not None}
    parameter: list[Any] = [desc.ParamAOTInput(f"step.p{i}") for i in range(len(parameter_names))]
    changed = [
        desc.InputMutationAOTOutput(desc.BufferAOTInput(f"step.b{i}"))
        for i in range(len(buffer_names))
    ]
    plain = [d for d in where if isinstance(d, desc.PlainAOTInput)]
    plain.sort(key=lambda d: d.idx)
    tangents = {
        d.output.idx: n
        for d, n in where.items()
        if isinstance(d, desc.TangentAOTInput) and isinstance(d.output, desc.PlainAOTOutput)
    }
    mutated = {name: made[d] for name, d in zip(buffer_names, changed, strict=True) if d in made}
    returned = [made.get(desc.PlainAOTOutput(i)) for i in range(len(outputs.names))]
    joint = Joint(
        module=module,
        parameters={n: where[d] for n, d in zip(parameter_names, parameter, strict=True)},
        buffers={n: where[d.mutated_input] for n, d in zip(buffer_names, changed, strict=True)},
        inputs=tuple(where[d] for d in plain[: len(plain) - lifted]),
        tangents=tangents,
        forward_outputs=tuple(n for n in returned if isinstance(n, fx.Node)),
        mutations=mutated,
        gradients=tuple(
            made.get(desc.GradAOTOutput(d)) for d in [*parameter, *plain[: len(plain) - lifted]]
        ),
        outputs=outputs,
        decisions=decisions,
        lifted=tuple(where[d] for d in plain[len(plain) - lifted :]),
    )
    _refuse_unknown(joint, where, made)
    _refuse_moving_questions(joint)
    _refuse_resized_buffers(joint)
    _refuse_no_gradients(joint)
    return joint


def _refuse_no_gradients(joint: Joint) -> None:
    """Refuse a step that is differentiated with respect to nothing outside of it."""
    if all(gradient is None for gradient in joint.gradients):
        raise CaptureError(
            "no parameter and no input gets a gradient from what the step returns, though it "
            "requires grad: it depends only on tensors that are made inside with requires_grad_()"
        )


def _refuse_resized_buffers(joint: Joint) -> None:
    """Refuse buffers that get their size at the first call, as observers of quantization do."""
    for name, made in joint.mutations.items():
        before, after = (n.meta["val"].shape for n in (joint.buffers[name], made))
        if before != after or 0 in before:
            raise CaptureError(
                f"the step gives buffer {name!r}, whose shape is {list(before)}, another one; if "
                "that is at the first call only, call the model once before planning"
            )


def _refuse_moving_questions(joint: Joint) -> None:
    """Refuse a question about a buffer that the step itself changes: the answer is soon another."""
    known = [*(None for _ in joint.inputs), *joint.buffers]
    for decision in joint.decisions.items:
        names = {known[i] for i in roots_of(decision.entry)} & joint.mutations.keys()
        for name in sorted(n for n in names if n is not None):
            raise CaptureError(
                f"{decision.source} asks for a value of buffer {name!r}, that it changes in every "
                "call (a batch norm with momentum=None does); compute with the buffer instead, or "
                "if it is set up at the first call only, call the model once before planning"
            )


def _refuse_unknown(joint: Joint, where: Mapping[Any, fx.Node], made: Mapping[Any, Any]) -> None:
    """Refuse what the runtime does not carry out: mutated inputs, outputs that are inputs."""
    known = (desc.PlainAOTOutput, desc.GradAOTOutput, desc.InputMutationAOTOutput)
    for d in made:
        if not isinstance(d, known) or (
            isinstance(d, desc.InputMutationAOTOutput)
            and not isinstance(d.mutated_input, desc.BufferAOTInput)
        ):
            raise CaptureError(
                f"the step has an effect that a plan cannot reproduce: {d.expr()}; do not change "
                "inputs or parameters in place inside the forward pass (an embedding with max_norm "
                "does), nor call operators with effects of their own"
            )
    strange = set(where.values()) - {
        *joint.parameters.values(),
        *joint.buffers.values(),
        *joint.inputs,
        *joint.lifted,
        *joint.tangents.values(),
    }
    if strange or len(joint.forward_outputs) != len(joint.outputs.names):
        raise CaptureError(
            "the step returns an input, a parameter or a view of one; return a clone of it, or "
            "pass loss=lambda output: output.loss to drop it"
        )


def refuse_baked_tensors(
    model: nn.Module, module: fx.GraphModule, left: Sequence[Tensor], known: Sequence[Tensor]
) -> None:
    """Refuse tensors that the graph would hold for ever: a batch, or a parameter by the back door.

    Literals made inside the forward pass and tensors that Python holds for it are constants in
    eager mode, too.

    Args:
        model: what was traced.
        module: the graph.
        left: what other calls left where this one leaves something: it must not be read.
        known: what Python holds, and is noticed if it is another at a later call.
    """
    attributes = {id(x) for x in known}
    attributes |= {
        id(x) for m in model.modules() for x in vars(m).values() if isinstance(x, Tensor)
    }
    members = {storage_key(local_of(t)) for t in (*model.parameters(), *model.buffers())}
    for node in module.graph.find_nodes(op="get_attr"):
        tensor = getattr(module, str(node.target))
        literal = all(u.target is torch.ops.aten.lift_fresh_copy.default for u in node.users)
        if literal or not isinstance(tensor, Tensor):
            continue
        where = source_of(node) or next((s for u in node.users if (s := source_of(u))), "a line")
        if any(tensor is other for other in left):
            raise CaptureError(
                f"{where} reads a tensor of shape {tuple(tensor.shape)} that the call before left "
                "there; keep it in a buffer (register_buffer), or pass it as an input"
            )
        if storage_key(tensor) in members:
            raise CaptureError(
                f"{where} reaches a parameter or buffer through another reference than the module "
                "attribute it is registered as; use the attribute"
            )
        if id(tensor) not in attributes:
            raise CaptureError(
                f"{where} uses a tensor of shape {tuple(tensor.shape)} that is neither an input "
                "nor part of the model; it would stay the same for every batch. Pass it as an "
                "input, or for a loss callable as targets="
            )


def module_of(node: fx.Node) -> str:
    """Return the path of the submodule a node came from, backward nodes included."""
    return str(noted(node, "module") or "")


def in_loss(node: fx.Node) -> bool:
    """Tell whether a node came from the loss that a person said, backward nodes included."""
    return bool(noted(node, IN_LOSS))


def in_place(node: fx.Node) -> bool:
    """Tell whether a node came from a call that writes into its first argument, or its gradient."""
    return bool(noted(node, IN_PLACE))


def source_of(node: fx.Node) -> str:
    """Return the user's ``file:line`` a node came from, backward nodes included."""
    return str(noted(node, "source") or "")
