"""PyTorch's own partitioner on the graphs we plan, its decisions as schedules that we can judge.

Knows how to ask ``min_cut_rematerialization_partition`` what it would save for the backward pass of
a joint graph, at an ``activation_memory_budget`` and by one of its knapsack solvers. What it saves
is kept from the forward to the backward pass; everything else is recomputed just before its first
reader and dropped after its last, which holds no more than the backward graph it would build.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch._functorch.config as functorch_config
from torch import fx, nn
from torch._functorch._aot_autograd.descriptors import InputMutationAOTOutput, PlainAOTOutput
from torch._functorch.partitioners import min_cut_rematerialization_partition

from planner.graphs import Graph
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.lowered import Lowering
from planner.graphs.capture.recapture import recapture
from planner.graphs.capture.training_step import Captured
from planner.solvers.model.order_from_kept import order_from_kept

SOLVERS = ("greedy", "dp", "ilp")
"""What ``activation_memory_budget_solver`` may be; ilp needs scipy."""


@dataclass(frozen=True)
class Partitioner:
    """The joint graph behind a captured step; each question is asked of a copy of it."""

    graph: Graph
    joint: Joint
    lowering: Lowering

    def order(self, budget: float, solver: str) -> list[int]:
        """Return the order that keeps what PyTorch would save at a fraction of its activations."""
        kept = {
            value
            for name in self._saved(budget, solver)
            for value in self.lowering.value_of.get(self._nodes[name], ())
        }
        return order_from_kept(self.graph, kept)

    @property
    def _nodes(self) -> dict[str, fx.Node]:
        return {node.name: node for node in self.joint.graph.nodes}

    def _saved(self, budget: float, solver: str) -> Sequence[str]:
        """Return the names of the nodes that the forward graph hands to the backward graph."""
        patch = functorch_config.patch(
            activation_memory_budget=budget, activation_memory_budget_solver=solver
        )
        with patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about its own internals
            module = copy.deepcopy(self.joint.module)
            forward_outputs = _forward_outputs(module)
            forward, _ = min_cut_rematerialization_partition(
                module, (), num_fwd_outputs=forward_outputs
            )
        results = forward.graph.output_node().args[0]
        assert isinstance(results, tuple | list)
        return [n.name for n in results[forward_outputs:] if isinstance(n, fx.Node)]


def partitioner(model: nn.Module, captured: Captured) -> Partitioner:
    """Capture the joint graph of a step again, with the lowering of its ops."""
    again = recapture(model, captured.signature, None)
    assert len(again.graph.values) <= len(captured.graph.values), "the same step"
    return Partitioner(captured.graph, again.joint, again.lowering)


def _forward_outputs(module: fx.GraphModule) -> int:
    descriptors = module.graph.output_node().meta["desc"]
    return sum(isinstance(d, PlainAOTOutput | InputMutationAOTOutput) for d in descriptors)
