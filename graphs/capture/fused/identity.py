"""What tells one compiled step from another: its nodes, and their shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

from planner.graphs.capture.fused.stitched import Stitched
from planner.graphs.capture.node_kinds import layout_of, target_name
from planner.graphs.torch_api.inductor.partitioner import Halves


def identity(step: Stitched, calls: int = 1) -> dict[str, Any]:
    """Return what a plan's file says of the step that it is for.

    ``nodes`` is equal for the same step at other sizes, ``sizes`` for the very same one only.

    Args:
        step: with torch's own cut.
        calls: how many of it wait for backward at once.
    """
    nodes = [(n.name, n.op, target_name(n) if n.op == "call_function" else "") for n in _of(step)]
    sizes = [(repr(n.args), repr(n.kwargs), _shape(n)) for n in _of(step)]
    return {
        "torch": torch.__version__,
        "nodes": _hash(nodes),
        "sizes": _hash(sizes),
        **({} if calls == 1 else {"calls": calls}),
    }


def calls_of(signature: Mapping[str, Any]) -> int:
    """Return how many calls of a step a plan is for.

    Args:
        signature: of the plan.
    """
    calls: int = signature["compiled"].get("calls", 1)
    return calls


def call_of(step: Stitched) -> tuple[str, ...]:
    """Return what tells the calls that a step is compiled for, but for Python's own numbers.

    Args:
        step: with torch's own cut.
    """
    inputs = step.graph.find_nodes(op="placeholder")
    return (identity(step)["nodes"], *map(_shape, inputs))


def written(halves: Halves) -> str:
    """Return what tells the halves that a plan was asked for from others.

    Args:
        halves: forward and backward, for the compiler.
    """
    return _hash(str(half.graph) for half in halves)


def _of(step: Stitched) -> Iterable[fx.Node]:
    return (n for n in step.graph.nodes if n.op != "output")


def _shape(node: fx.Node) -> str:
    value = node.meta.get("val")
    return layout_of(value) if isinstance(value, torch.Tensor) else type(value).__name__


def _hash(lines: Iterable[object]) -> str:
    return hashlib.sha256("\n".join(map(repr, lines)).encode()).hexdigest()[:16]
