"""Layers whose experts lie whole on ranks, each kept under a name, and run on given tensors.

Knows transformers' public seam for them: an implementation that is called with tokens, the experts
of each and their weights, and that knows its experts and its meshes. Knows nothing of graphs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from planner.graphs.capture_error import CaptureError
from planner.graphs.expert_capacity import CapacityError
from planner.graphs.torch_api.module_internals import STORED, tensor_stores
from planner.graphs.torch_api.symbolic_sizes import largest

MODULE = "transformers.distributed.expert_parallel"
"""Where transformers defines such layers."""

TOKENS, INDEX, WEIGHTS = range(3)
"""Where tokens (tokens, features), experts (tokens, k) and their weights lie among the inputs."""


@dataclass(frozen=True)
class LayerSpec:
    """What the operator of a layer is told beside tensors, as JSON in its ``spec``.

    Attributes:
        layer: the name of the implementation in this process.
        path: of its experts in the model.
        members: the parameters and buffers of the experts, as the inputs after the first three.
        even_rows: what each rank receives where the router is fair.
        most_rows: what is planned for, in the largest call.
        factor: how many times the even share of that call that is, as was said.
        dtype: of the result.
        wanted: which inputs have gradients.
        autocast: the device and the dtype of the autocast that it runs in, if in one.
    """

    layer: str
    path: str
    members: tuple[str, ...]
    even_rows: int
    most_rows: int
    factor: float
    dtype: str
    wanted: tuple[int, ...]
    autocast: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it as the operator takes it."""
        return json.dumps(vars(self))

    @classmethod
    def of(cls, spec: str) -> LayerSpec:
        """Read what ``str`` wrote."""
        said: dict[str, Any] = json.loads(spec)
        return replace(_NOTHING, **{k: _frozen(v) for k, v in said.items()})


_NOTHING = LayerSpec("", "", (), 0, 0, 0.0, "", ())


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_NAMES: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_LAYERS: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def name_of(implementation: Any) -> str:
    """Return the name that this process has for an implementation."""
    if implementation not in _NAMES:
        _NAMES[implementation] = str(next(_NUMBERS))
        _LAYERS[_NAMES[implementation]] = implementation
    return _NAMES[implementation]


def named(layer: str) -> Any:
    """Return the implementation of a name, which lives as long as its model."""
    return _LAYERS[layer]


def experts_of(implementation: Any) -> nn.Module:
    """Return the module whose experts an implementation runs.

    Raises:
        CaptureError: their forward is a function that belongs to no module.
    """
    owner = getattr(implementation.experts_forward, "__self__", None)
    if not isinstance(owner, nn.Module):
        raise CaptureError(
            f"the experts that {type(implementation).__name__} runs had their forward replaced "
            "before they were parallelized, so that it is not known whose parameters it reads: "
            "wrap the module instead, or replace forward afterwards"
        )
    return owner


def run(told: LayerSpec, inputs: Sequence[Tensor]) -> Tensor:
    """Run a layer on tensors in place of its own parameters and buffers; ranks take part.

    What a class derived from ``AllToAllEP`` does around that one's call is not done again here.

    Args:
        told: which layer it is.
        inputs: tokens, experts of each, weights of each, then the layer's members.
    """
    implementation = named(told.layer)
    experts = experts_of(implementation)
    tokens, index, weights, *members = inputs
    with _autocast(told), _holding(experts, dict(zip(told.members, members, strict=True))):
        made: Tensor = all_to_all()(implementation, tokens, index, weights)
    return made


def all_to_all() -> Any:
    """Return the call of the class that sends tokens, whatever is derived from it."""
    return sys.modules[MODULE].AllToAllEP.__call__


def _autocast(told: LayerSpec) -> contextlib.AbstractContextManager[Any]:
    if not told.autocast:
        return contextlib.nullcontext()
    device, dtype = told.autocast
    return torch.autocast(device, getattr(torch, dtype))


@contextlib.contextmanager
def _holding(module: nn.Module, members: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a module have other tensors for its members while the block runs."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for path, tensor in members.items():
            owner, _, name = path.rpartition(".")
            stores = tensor_stores(module.get_submodule(owner))
            store = next(s for s in stores if name in s)
            before.append((store, name, store[name]))
            store[name] = tensor
        yield
    finally:
        for store, name, own in before:
            store[name] = own


def require_room(told: LayerSpec, index: Tensor) -> None:
    """Refuse to run a layer of which a rank would receive more rows than were planned for.

    All ranks of the group count together, so that all of them refuse, or none.

    Args:
        told: which layer it is, and what was planned.
        index: the experts of each token, (tokens, k).

    Raises:
        CapacityError: on every rank; the message says how many rows there are.
    """
    most = max(found := [int(n) for n in rows_of_each(told, index)])
    if most > told.most_rows:
        each = ", ".join(map(str, found))
        needed = math.ceil(100 * told.factor * most / told.most_rows) / 100
        raise CapacityError(
            f"the router sends {most} rows to rank {found.index(most)} of the {len(found)} that "
            f"share the experts of {told.path} ({each} rows to them), and the plan has memory for "
            f"{told.most_rows}, {told.factor:g} times the even share of its largest call: plan "
            f"with capacity_factor={needed:g} or more, or balance the router"
        )


def rows_of_each(told: LayerSpec, index: Tensor) -> Tensor:
    """Return how many rows each rank of the group receives; all ranks take part, and learn all.

    Args:
        told: which layer it is.
        index: the experts of each token, (tokens, k).
    """
    implementation = named(told.layer)
    own = _own_tokens(index, implementation.tp_mesh).reshape(-1)
    rows = own.new_zeros(implementation.ep_mesh.size())
    rows.scatter_add_(0, own // implementation.num_local_experts, torch.ones_like(own))
    functional = torch.ops._c10d_functional
    summed = functional.all_reduce(rows, "sum", group_of(implementation))
    found: Tensor = functional.wait_tensor(summed)
    return found


def _own_tokens(index: Tensor, mesh: Any) -> Tensor:
    """Return the slice of shared tokens that this rank sends."""
    parts = index.chunk(mesh.size()) if mesh.size() > 1 else (index,)
    rank = mesh.get_local_rank() if mesh.size() > 1 else 0
    return parts[rank] if rank < len(parts) else index[:0]


def likeness(spec: LayerSpec, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return what is the same for layers that do the same, so that one stands for all of them.

    Args:
        spec: of the layer.
        inputs: of the layer; of tensors what they look like counts.
    """
    implementation = named(spec.layer)
    experts = experts_of(implementation)
    tensors = tuple((tuple(map(largest, t.shape)), t.dtype, t.device) for t in inputs)
    own = tuple(_attributes(m, {"forward"} if m is experts else set()) for m in experts.modules())
    return (
        type(implementation),
        group_of(implementation),
        replace(spec, layer="", path=""),
        tensors,
        own,
    )


def _attributes(module: nn.Module, aside: set[str]) -> tuple[Any, ...]:
    """Return a module's class and attributes: plain values as they are, others by what they are."""
    names = [k for k in vars(module) if k not in STORED and k not in aside]
    values = (getattr(module, k) for k in names)
    same = (v if isinstance(v, _PLAIN) else id(v) for v in values)
    return type(module), module.training, *names, *same


_PLAIN = (bool, int, float, str, type(None))


def group_of(implementation: Any) -> str:
    """Return the name of the group over which an implementation sends."""
    return str(implementation.ep_mesh.get_group().group_name)
