"""Where a traced model sends tokens to experts by transformers' all-to-all, one operator instead.

By the class that does it, which is public (``AllToAllEP``, which ``AutoEP`` runs in training), not
by what a model is called. A class of somebody's own that does it otherwise is traced as it is.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from planner.graphs.capture.exchange.exchange_operator import exchanged
from planner.graphs.capture.exchange.layers import (
    LayerSpec,
    experts_of,
    group_of,
    likeness,
    name_of,
)
from planner.graphs.capture.exchange.on_fakes import MODULE, ran_on_fakes
from planner.graphs.capture.placed import entered
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.patches import Patches
from planner.graphs.torch_api.symbolic_sizes import largest

DEFAULT_FACTOR = 2.0
"""How many times the even share of rows is planned for, unless something else is said."""


def exchange_as_operator(patches: Patches, factor: float) -> None:
    """Let layers whose tokens are sent by all-to-all become operators of the graph.

    Args:
        patches: in force while a step is traced.
        factor: how many times the even share of rows is planned for.
    """
    module: Any = sys.modules.get(MODULE)  # slow to import: then there is none
    layer = getattr(module, "AllToAllEP", None)
    if layer is None:
        return
    own, inside = layer.__call__, False
    known: dict[Any, str] = {}

    def called(implementation: Any, tokens: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        nonlocal inside
        if inside or not patches.mine():
            made: Tensor = own(implementation, tokens, index, weights)
            return made
        inside = True
        try:
            return _exchanged(implementation, [tokens, index, weights], factor, known)
        finally:
            inside = False

    patches.attribute(layer, "__call__", called)


def _exchanged(
    implementation: Any, given: list[Tensor], factor: float, known: dict[Any, str]
) -> Tensor:
    experts = experts_of(implementation)
    members = dict((*experts.named_parameters(), *experts.named_buffers()))
    inputs = [*given, *map(entered, members.values())]
    even, most = _rows(implementation, given[1], factor)
    device = given[0].device.type
    cast = torch.is_autocast_enabled(device)
    spec = LayerSpec(
        layer=name_of(implementation),
        members=tuple(members),
        even_rows=even,
        most_rows=most,
        dtype="",
        wanted=tuple(i for i, t in enumerate(inputs) if t.requires_grad),
        autocast=(device, _name(torch.get_autocast_dtype(device))) if cast else (),
    )
    if (alike := likeness(spec, inputs)) not in known:
        (looks,) = ran_on_fakes(spec, inputs, even).made
        known[alike] = _name(looks.dtype)
    return exchanged(group_of(implementation), replace(spec, dtype=known[alike]), inputs)


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
