"""Whether autocast would change the backward pass of a captured step, which runs without it.

In eager mode a backward pass inside the block casts anew what its operators are handed. Most are
handed what autocast would make of it anyway. Knows nothing of programs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from planner.graphs.costs.roofline import tensors_in
from planner.graphs.torch_api.dispatch import heeds_autocast
from planner.graphs.torch_api.operators import OpOverload


def recast_by(nodes: Iterable[fx.Node]) -> Callable[[], bool]:
    """Return a function that tells whether autocast, as it then is, would change some of the calls.

    Args:
        nodes: the calls, as captured without autocast.
    """
    calls: dict[tuple[Any, ...], fx.Node] = {}
    devices: set[str] = set()
    for node in nodes:
        read = [t for n in node.all_input_nodes for t in tensors_in(n.meta.get("val"))]
        kinds = tuple((t.device.type, t.dtype) for t in read)
        if isinstance(node.target, OpOverload) and any(
            heeds_autocast(node.target, device) for device, _ in kinds
        ):
            calls.setdefault((node.target, kinds), node)
            devices.update(device for device, _ in kinds)

    @functools.cache
    def changed(device: str, dtype: torch.dtype) -> bool:
        with torch.autocast(device, dtype=dtype, cache_enabled=False):
            return any(map(_changed, calls.values()))

    def now() -> bool:
        on = [d for d in devices if torch.is_autocast_enabled(d)]
        return any(changed(d, torch.get_autocast_dtype(d)) for d in on)

    return now


def _changed(node: fx.Node) -> bool:
    target: Any = node.target
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    made = tensors_in(target(*args, **kwargs))
    return any(a.dtype != b.dtype for a, b in zip(made, tensors_in(node.meta["val"]), strict=True))
