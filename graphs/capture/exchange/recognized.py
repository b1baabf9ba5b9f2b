"""Where a traced model sends tokens to experts by transformers' all-to-all, one operator instead.

By the class that does it, which is public (``AllToAllEP``, which ``AutoEP`` runs in training), not
by what a model is called. A class of somebody's own that does it otherwise is traced as it is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from planner.graphs.capture.exchange.exchange_operator import FORWARD, exchanged
from planner.graphs.capture.exchange.layers import (
    INDEX,
    MODULE,
    LayerSpec,
    experts_of,
    group_of,
    likeness,
    name_of,
)
from planner.graphs.capture.exchange.on_fakes import ran_on_fakes
from planner.graphs.capture.placed import entered
from planner.graphs.capture_error import CaptureError
from planner.graphs.expert_capacity import CAPACITY_FACTOR
from planner.graphs.torch_api.dispatch import without_modes
from planner.graphs.torch_api.patches import Patches
from planner.graphs.torch_api.symbolic_sizes import largest


@dataclass(frozen=True)
class Capacity:
    """How many rows a rank may receive: ``factor`` times the even share, of the largest call.

    ``rows`` are those of a step that was captured before, by the paths of the experts.
    """

    factor: float = CAPACITY_FACTOR
    rows: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, signature: Mapping[str, Any]) -> Capacity:
        """Return what a signature says."""
        rows = signature.get("capacity_rows", {})
        return cls(signature.get("capacity_factor", CAPACITY_FACTOR), rows)


def capacity_of(graph: fx.Graph, capacity: Capacity) -> dict[str, Any]:
    """Return what a signature has to say of a step, nothing where no tokens are sent to experts.

    Args:
        graph: the step.
        capacity: that it was captured with.
    """
    sent = [LayerSpec.of(str(n.args[-1])) for n in graph.nodes if n.target is FORWARD]
    rows: dict[str, int] = {}
    for spec in sent:
        rows[spec.path] = max(spec.most_rows, rows.get(spec.path, 0))
    said = {"capacity_factor": float(capacity.factor), "capacity_rows": rows}
    return said if sent else {}


def exchange_as_operator(patches: Patches, model: nn.Module, capacity: Capacity) -> None:
    """Let layers whose tokens are sent by all-to-all become operators of the graph.

    Args:
        patches: in force while a step is traced.
        model: that is traced.
        capacity: how many rows a rank may receive.
    """
    module: Any = sys.modules.get(MODULE)  # slow to import: then there is none
    layer = getattr(module, "AllToAllEP", None)
    if layer is None:
        return
    own, inside = layer.__call__, False
    paths = {part: path for path, part in model.named_modules()}
    known: dict[Any, str] = {}

    def called(implementation: Any, tokens: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        nonlocal inside
        if inside or not patches.mine():
            made: Tensor = own(implementation, tokens, index, weights)
            return made
        inside = True
        try:
            spec, inputs = _call(implementation, [tokens, index, weights], paths, capacity)
            if (alike := likeness(spec, inputs)) not in known:
                (looks,) = ran_on_fakes(spec, inputs, spec.even_rows).made
                with without_modes():  # what is asked here once is no call of the model's
                    known[alike] = _name(looks.dtype)
            return exchanged(group_of(implementation), replace(spec, dtype=known[alike]), inputs)
        finally:
            inside = False

    patches.attribute(layer, "__call__", called)


def _call(
    implementation: Any, given: list[Tensor], paths: Mapping[nn.Module, str], capacity: Capacity
) -> tuple[LayerSpec, list[Tensor]]:
    """Return what the operator of a layer is called with."""
    experts = experts_of(implementation)
    path = paths.get(experts, type(experts).__name__)
    members = dict((*experts.named_parameters(), *experts.named_buffers()))
    inputs = [*given, *map(entered, members.values())]
    even, most = _rows(implementation, given[INDEX], capacity.factor)
    device = given[0].device.type
    cast = torch.is_autocast_enabled(device)
    spec = LayerSpec(
        layer=name_of(implementation),
        path=path,
        members=tuple(members),
        even_rows=even,
        most_rows=capacity.rows.get(path, most),
        factor=capacity.factor,
        dtype="",
        wanted=tuple(i for i, t in enumerate(inputs) if t.requires_grad),
        autocast=(device, _name(torch.get_autocast_dtype(device))) if cast else (),
    )
    return spec, inputs


def _rows(implementation: Any, index: Tensor, factor: float) -> tuple[int, int]:
    """Return how many rows a rank receives if all receive as many, and how many are planned for.

    Raises:
        CaptureError: ranks that see the same tokens cannot share them evenly.
    """
    tokens, picked = map(largest, index.shape)
    shared, ranks = implementation.tp_mesh.size(), implementation.ep_mesh.size()
    if tokens % shared:
        raise CaptureError(
            f"{shared} ranks share {tokens} tokens, in parts of different sizes, and one plan is "
            "to serve all ranks: choose samples and tokens that they divide"
        )
    even = tokens * picked // shared
    return even, min(math.ceil(factor * even), even * ranks)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
