"""Inductor's documented hook for cutting a joint graph in two, and the cuts that torch has.

``torch.compile(model, options={"custom_partitioner_fn": P})`` hands every training graph to ``P``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import torch
from functorch.compile import default_partition, min_cut_rematerialization_partition
from torch import Tensor, fx
from torch._functorch import config as functorch_config
from torch._functorch import partitioners
from torch._inductor import config
from torch._inductor.custom_graph_pass import CustomPartitionerFn
from torch.utils.checkpoint import CheckpointPolicy

from planner.graphs.torch_api.inductor.symbols import NUMBERS, AtMost, NoSize, restore
from planner.graphs.torch_api.patches import Patches, patching

Halves = tuple[fx.GraphModule, fx.GraphModule]
TAG = "partitioner_tag"


@dataclass(frozen=True)
class JointStep:
    """Forward and backward as one graph, as Inductor is about to cut it.

    The first ``forward_outputs`` of its outputs are the forward pass's, the others gradients of its
    placeholders. ``static`` are the places of the placeholders that stay where they are from step
    to step: parameters and buffers. ``largest`` is what sizes that are symbols are at most.
    """

    module: fx.GraphModule
    inputs: Sequence[object]
    forward_outputs: int
    static: tuple[int, ...]
    largest: AtMost = NUMBERS

    @property
    def is_symbolic(self) -> bool:
        """Whether it is for numbers of which the most is not known."""
        try:
            for node in self.module.graph.find_nodes(op="placeholder"):
                value = node.meta.get("val")
                if isinstance(value, torch.SymFloat | torch.SymBool):
                    return True
                self.largest.of(value)
        except NoSize:
            return True
        return False

    @property
    def trained(self) -> tuple[Tensor, ...]:
        """The parameters that get gradients, without data."""
        placeholders = self.module.graph.find_nodes(op="placeholder")
        (outputs,) = self.module.graph.output_node().args
        assert isinstance(outputs, tuple | list)
        pairs = zip(placeholders, outputs[self.forward_outputs :], strict=False)
        found = enumerate(pairs)
        return tuple(n.meta["val"] for i, (n, g) in found if g is not None and i in self.static)

    def of(self, module: fx.GraphModule) -> JointStep:
        """Return the step with another graph of the same inputs and outputs."""
        return replace(self, module=module)


def cut_by_tags(step: JointStep) -> Halves:
    """Cut a step where its nodes are tagged to be backward's: nothing is computed twice.

    The halves have symbols where the step came with them.
    """
    module = copy_of(step.module)
    restore(module.graph.nodes)
    forward, backward = default_partition(
        module,
        step.inputs,
        num_fwd_outputs=step.forward_outputs,
        static_lifetime_input_indices=list(step.static),
    )
    # it runs a kernel of which parts are saved again, for the rest, which nobody reads
    backward.graph.eliminate_dead_code(lambda node: node.is_impure(impure_random=False))
    return forward, backward


def cut_by_torch(
    step: JointStep, share: float = 1.0, checkpointed: Mapping[str, int] | None = None
) -> Halves:
    """Cut a step as Inductor does by default: what costs nothing in a fused kernel runs again.

    Args:
        step: as Inductor hands it over; it is not changed.
        share: torch's own ``activation_memory_budget``, of what is saved by default.
        checkpointed: the number of the call of ``torch.utils.checkpoint`` in which a node of
            forward is taken to be, by its name.
    """
    module = copy_of(step.module)
    for node in module.graph.nodes:
        drawn = not node.all_input_nodes or node.is_impure(impure_random=False)  # such as seeds
        if checkpointed is not None and node.name in checkpointed and not drawn:
            node.meta["recompute"] = CheckpointPolicy.PREFER_RECOMPUTE
            node.meta["ac_graph_id"] = checkpointed[node.name]
    with functorch_config.patch(activation_memory_budget=share), patching() as patches:
        if checkpointed is not None:
            _without_states(patches)
        forward, backward = min_cut_rematerialization_partition(
            module,
            step.inputs,
            "inductor",
            num_fwd_outputs=step.forward_outputs,
            static_lifetime_input_indices=list(step.static),
        )
    return forward, backward


def _without_states(patches: Patches) -> None:
    """Leave out the states of generators that are kept for kernels that draw, such as attention's:
    a few bytes each, of which this is not asked.
    """
    usual = partitioners.functionalize_rng_ops

    def halves(joint: Any, forward: Any, backward: Any, *numbers: Any) -> Any:
        mine = patches.mine()
        return (forward, backward) if mine else usual(joint, forward, backward, *numbers)

    patches.attribute(partitioners, "functionalize_rng_ops", halves)


def copy_of(module: fx.GraphModule) -> fx.GraphModule:
    """Return a module whose graph, with what is known of its nodes, may be changed."""
    graph, seen = fx.Graph(), dict[fx.Node, fx.Node]()
    made = graph.graph_copy(module.graph, seen)
    for before, after in seen.items():
        after.meta = dict(before.meta)
    out = graph.output(made)
    out.meta = dict(module.graph.output_node().meta)
    return fx.GraphModule(module, graph)


def tag(node: fx.Node, *, backward: bool) -> None:
    """Say which half a node belongs to."""
    node.meta[TAG] = "is_backward" if backward else "is_forward"
    node.meta.pop("recompute", None)


class Partitioner(CustomPartitionerFn):
    """Cuts every training graph with a function of ours; what comes of it is not cached.

    ``cuts`` is how many it has cut, ``largest`` what sizes that are symbols are at most.

    Args:
        cut: from a joint graph to its halves.
        largest: what sizes that are symbols are at most.
    """

    def __init__(self, cut: Callable[[JointStep], Halves], largest: AtMost = NUMBERS) -> None:
        self._cut, self.largest, self.cuts = cut, largest, 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Partitioner:
        """Inductor copies its settings; what is planned is one thing."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Caches write settings down: no two are the same."""
        return str, (uuid4().hex,)

    def uuid(self) -> Any | None:
        """Return what compiled code is cached by: nothing, so that all is lowered and seen."""
        return None

    def __call__(
        self,
        gm: fx.GraphModule,
        joint_inputs: Sequence[object],
        **said: Any,
    ) -> Halves:
        """Cut a graph; Inductor calls this."""
        self.cuts += 1
        static = tuple(said.get("static_lifetime_input_indices") or ())
        step = JointStep(gm, joint_inputs, said["num_fwd_outputs"], static, self.largest)
        return self._cut(step)


def draws_outside() -> bool:
    """Tell whether random numbers come of torch's generator and not of seeds, as settings are."""
    return bool(config.fallback_random)
