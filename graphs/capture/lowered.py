"""What the ops of a captured graph stand for: torch.fx nodes, and what each costs."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from torch import fx

from planner.graphs.capture.passes.inplace import Overwrite


class Role(enum.Enum):
    """What running an op means to the runtime."""

    KERNEL = "call the node"
    RNG_STATE = "remember the generator's state, for the node to be run again"
    TANGENT = "take the gradient that arrives from the caller"
    BUFFER_UPDATE = "write the node's value into the buffer"
    HAND_OVER = (
        "done by autograd: take the gradients, or add them to those of earlier micro-batches"
    )
    OPTIMIZER = "done by the optimizer"


@dataclass(frozen=True)
class Lowered:
    """What one op stands for: its role, its node and, for a buffer update, the buffer's name.

    ``then`` are kernels that run right after the node, each into the storage of the one before.
    """

    role: Role
    node: fx.Node | None = None
    buffer: str = ""
    then: tuple[tuple[fx.Node, Overwrite], ...] = ()


@dataclass(frozen=True)
class Lowering:
    """For each op what it stands for; for each node of a tensor the value it lives in.

    A node that names a sum to which was added in place has two: the sum's, then one of no bytes
    that the last addition makes, so that what reads the sum runs after it. ``in_place`` are the new
    values that are written where a buffer lies, and its name.
    """

    ops: tuple[Lowered, ...]
    value_of: dict[fx.Node, tuple[int, ...]]
    in_place: dict[fx.Node, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Price:
    """What one kernel costs; ``output_bytes`` are the true sizes of the storages it makes.

    Fake tensors understate some. Empty means that they are right, or that nothing better is known.
    """

    seconds: float
    flops: int
    moved_bytes: int
    workspace_bytes: int
    output_bytes: tuple[int, ...] = ()
