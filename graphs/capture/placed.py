"""Tensors that lie in parts on the ranks of a mesh (``DTensor``): their layout, their local part.

A step takes the local parts and puts the layout around them again inside, so that its graph has
plain tensors and collectives. Knows nothing of graphs or of how a step is traced.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.module_internals import hook_sources
from planner.graphs.torch_api.placed_tensors import local_part

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Placed:
    """How a tensor lies on a mesh: a placement for each of its dimensions; shape of the whole."""

    mesh: DeviceMesh
    placements: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    def around(self, local: Tensor) -> Tensor:
        """Return the tensor of which this rank has ``local``; its gradient lies as it does."""
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            local,
            self.mesh,
            self.placements,
            run_check=False,
            shape=self.shape,
            stride=self.stride,
        )

    def __str__(self) -> str:
        """Say where each part is."""
        ranks = " x ".join(map(str, self.mesh.shape))
        return f"{', '.join(map(repr, self.placements))} over {ranks} ranks"


def is_placed(tensor: object) -> bool:
    """Tell a tensor that lies on a mesh.

    >>> is_placed(torch.zeros(2))
    False
    """
    loaded = sys.modules.get("torch.distributed.tensor")  # slow to import: then there is none
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def placed_as(tensor: Any) -> Placed | None:
    """Return how a tensor lies on a mesh, ``None`` if it lies on none."""
    if not is_placed(tensor):
        return None
    return Placed(tensor.device_mesh, tuple(tensor.placements), tensor.shape, tensor.stride())


def local_of(tensor: Any) -> Tensor:
    """Return this rank's part of a tensor, without its history; others are returned as they are.

    >>> x = torch.zeros(2)
    >>> local_of(x) is x
    True
    """
    return local_part(tensor) if is_placed(tensor) else tensor


def whole_of(tensor: Any) -> Tensor:
    """Return all of a tensor, gathered if it lies in parts: then all ranks of its mesh take part.

    >>> x = torch.zeros(2)
    >>> whole_of(x) is x
    True
    """
    found: Tensor = tensor.full_tensor() if is_placed(tensor) else tensor
    return found


def entered(tensor: Any) -> Tensor:
    """Return this rank's part of a tensor for a step to work on: its gradient finds the tensor."""
    if not is_placed(tensor):
        return tensor  # type: ignore[no-any-return]
    found: Tensor = tensor.to_local()
    return found


def placed_members(model: nn.Module) -> Iterator[tuple[str, Tensor, Placed]]:
    """Yield the parameters and buffers of a model that lie on a mesh, each with its name."""
    for named in (model.named_parameters(), model.named_buffers()):
        for name, tensor in named:
            if (placed := placed_as(tensor)) is not None:
                yield name, tensor, placed


def is_parallelized(model: nn.Module) -> bool:
    """Tell a model some of whose members lie on a mesh.

    >>> is_parallelized(nn.Linear(2, 2))
    False
    """
    return next(placed_members(model), None) is not None


def meshes_of(model: nn.Module) -> tuple[DeviceMesh, ...]:
    """Return the meshes that members of a model lie on, each once."""
    return tuple(dict.fromkeys(placed.mesh for _, _, placed in placed_members(model)))


def mesh_shape(model: nn.Module) -> list[int]:
    """Return the shape of the mesh that a model is parallelized on, of the largest if of several.

    >>> mesh_shape(nn.Linear(2, 2))
    []
    """
    shapes = [list(mesh.shape) for mesh in meshes_of(model)]
    return max(shapes, key=math.prod, default=[])


def require_plannable(model: nn.Module) -> None:
    """Refuse a model that is parallelized in a way that a plan of it would not see.

    Raises:
        CaptureError: the message says what to do first.
    """
    require_unwrapped(model)
    if not is_parallelized(model):
        return
    if any(source.startswith("torch.distributed.tensor") for source in hook_sources(model)):
        raise CaptureError(
            f"the {type(model).__name__} itself is parallelized by hooks around its forward "
            "(parallelize_module of the model with a style for all of it), which run outside of a "
            "plan: hold it in a module of your own, and plan that"
        )


_WRAPPED = {
    "DistributedDataParallel": "wrapped in DistributedDataParallel",
    "FullyShardedDataParallel": "wrapped in FullyShardedDataParallel",
    "FSDPModule": "sharded by fully_shard",
    "ReplicateModule": "replicated by replicate()",
    "DDP": "replicated by replicate()",
}
"""What torch's classes of modules that gather or reduce over ranks by hooks did to a model."""


def require_unwrapped(model: nn.Module) -> None:
    """Refuse a model that torch already shards or replicates over ranks.

    Raises:
        CaptureError: the message says what to do first.

    >>> require_unwrapped(nn.Linear(2, 2))
    """
    for path, module in model.named_modules():
        for cls in type(module).__mro__:
            if cls.__name__ in _WRAPPED and cls.__module__.startswith(_OF_TORCH):
                raise CaptureError(
                    f"{repr(path) if path else 'the model'} is {_WRAPPED[cls.__name__]} already, "
                    "whose hooks gather weights or reduce gradients where a plan does not see "
                    "them: plan and apply first, then wrap what apply returns; or pass the model "
                    "as it was with world_size=, and the plan wraps it"
                )


_OF_TORCH = ("torch.distributed.", "torch.nn.parallel.")


def require_even_parts(model: nn.Module) -> None:
    """Refuse members of which ranks have parts of different sizes.

    Raises:
        CaptureError: the message names the first one.
    """
    for name, tensor, placed in placed_members(model):
        pairs = zip(placed.mesh.shape, placed.placements, strict=True)
        parts = math.prod(n for n, p in pairs if not (p.is_replicate() or p.is_partial()))
        if local_of(tensor).numel() * parts != tensor.numel():
            raise CaptureError(
                f"{name!r}, of shape {list(placed.shape)}, lies as {placed} in parts of different "
                "sizes, and one plan is to serve all ranks: choose a number of ranks that divides "
                "what is parted (heads, features, the vocabulary), or leave this one whole"
            )
