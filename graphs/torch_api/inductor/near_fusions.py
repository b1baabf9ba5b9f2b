"""Kernels beside each other are fused, kernels far apart are not: an order that fusion keeps.

Inductor makes one kernel of what loops over the same sizes and reads something in common, up to 64
operations apart. Of the parts of a loss in chunks it makes one kernel for all chunks, which are in
memory at once then, in whatever order they were written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx
from torch._inductor.choices import InductorChoices
from torch._inductor.virtualized import V

from planner.graphs.torch_api.annotations import note, noted

APART = "remat_planner_apart"
NEAR = 4
"""So many operations may lie between two kernels that become one, neither reading the other's."""


def keep_apart(node: fx.Node) -> None:
    """Let no kernel be made of what a graph with this node computes far apart."""
    note(node, APART, value=True)


@contextmanager
def near_fusions(module: fx.GraphModule) -> Iterator[None]:
    """Let Inductor fuse only what is near while it compiles a graph of which that is asked.

    Args:
        module: that is compiled.
    """
    if not any(noted(node, APART) for node in module.graph.nodes):
        yield
        return
    usual: type[InductorChoices] = type(V.choices)

    class Near(usual):  # type: ignore[misc, valid-type]
        @staticmethod
        def can_fuse_horizontal(scheduler: Any, one: Any, other: Any, score: int) -> bool:
            between = max(one.min_order - other.max_order, other.min_order - one.max_order)
            return between <= NEAR and usual.can_fuse_horizontal(scheduler, one, other, score)

    with V.set_choices_handler(Near()):
        yield
