"""How a strategy is carried out by torch.distributed; ``apply_sharded`` and the trials ask it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.plan.configuration import Configuration, UnitPlan

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Wrapping:
    """How a model is wrapped, and what its training loop then needs.

    Args:
        wrap: returns the model sharded or replicated over a mesh, its units running as they are.
        make_optimizer: makes an optimizer of a class, with options, for a wrapped model.
        unreduced: the context of every micro-step but the last.
    """

    wrap: Callable[[nn.Module, Configuration, Sequence[UnitPlan], DeviceMesh], nn.Module]
    make_optimizer: Callable[[nn.Module, type[Optimizer], Mapping[str, Any]], Optimizer]
    unreduced: Callable[[nn.Module], AbstractContextManager[None]]


def optimizer_of_all(
    model: nn.Module, optimizer: type[Optimizer], options: Mapping[str, Any]
) -> Optimizer:
    """Make an optimizer of every parameter of a model.

    Parameters on different meshes are in groups of their own: kernels that step many at once take
    those of one mesh only.

    Args:
        model: wrapped.
        optimizer: the class.
        options: of the class.
    """
    from planner.graphs.capture.placed import placed_as

    by_mesh: dict[Any, list[Any]] = {}
    for p in model.parameters():
        placed = placed_as(p)
        by_mesh.setdefault(placed and placed.mesh, []).append(p)
    if len(by_mesh) == 1:
        return optimizer(model.parameters(), **options)
    return optimizer([{"params": group} for group in by_mesh.values()], **options)
