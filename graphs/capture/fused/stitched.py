"""A joint graph after torch's own cut: forward's nodes, then backward's, its free copies included.

Inductor runs again for nothing what a fused kernel can make on the way. A plan begins from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from planner.graphs.capture.fused.closures import unchanged, written_by
from planner.graphs.torch_api.inductor.inductor_kernels import mark
from planner.graphs.torch_api.inductor.partitioner import (
    JointStep,
    cut_by_torch,
    tag,
)


@dataclass(frozen=True)
class Stitched:
    """The step with the graph stitched, and which nodes are the backward pass's."""

    step: JointStep
    backward: frozenset[fx.Node]

    @property
    def graph(self) -> fx.Graph:
        """The nodes, forward's before backward's."""
        return self.step.module.graph

    @property
    def outputs(self) -> tuple[fx.Node | None, ...]:
        """What forward returns, then the gradients; ``None`` where there is no tensor."""
        (found,) = self.graph.output_node().args
        assert isinstance(found, tuple | list)
        return tuple(x if isinstance(x, fx.Node) else None for x in found)


def stitched(
    step: JointStep, share: float = 1.0, checkpointed: Mapping[str, int] | None = None
) -> Stitched:
    """Put the halves of torch's own cut together again, every node tagged and marked.

    Args:
        step: as Inductor hands it over; it is not changed.
        share: torch's own ``activation_memory_budget``.
        checkpointed: which nodes torch's own checkpoints are around, as for ``cut_by_torch``.
    """
    forward, backward = cut_by_torch(step, share, checkpointed)
    graph, known = fx.Graph(), dict[str, fx.Node]()
    for node in step.module.graph.find_nodes(op="placeholder"):
        known[node.name] = graph.node_copy(node)
    first = _append(graph, forward, known)
    known |= {n.name: copied for n, copied in first.items()}
    late = _append(graph, backward, known)
    (outputs,) = forward.graph.output_node().args
    (gradients,) = backward.graph.output_node().args
    assert isinstance(outputs, tuple | list)
    assert isinstance(gradients, tuple | list)
    made = [
        first.get(x, x) if isinstance(x, fx.Node) else x for x in outputs[: step.forward_outputs]
    ]
    made += [late.get(x, x) if isinstance(x, fx.Node) else x for x in gradients]
    out = graph.output(tuple(made))
    out.meta.update(step.module.graph.output_node().meta)
    new = frozenset(n for n in late.values() if n.op not in ("placeholder",)) - set(first.values())
    for node in graph.nodes:
        if node.op not in ("placeholder", "output"):
            tag(node, backward=node in new)
            # what is added to stays the buffer of who made it
            mark(node, (written_by(node) or unchanged(node)).name)
        step.largest.put(node)
    return Stitched(step.of(fx.GraphModule(step.module, graph)), new)


def _append(
    graph: fx.Graph, half: fx.GraphModule, known: dict[str, fx.Node]
) -> dict[fx.Node, fx.Node]:
    """Copy the nodes of a half, whose placeholders are known by name; return them by what they
    are copies of.
    """
    local: dict[fx.Node, fx.Node] = {}
    for node in half.graph.nodes:
        if node.op == "placeholder":
            local[node] = known[node.name]
        elif node.op != "output":
            local[node] = graph.node_copy(node, local.__getitem__)
            local[node].meta = dict(node.meta)
    return local
