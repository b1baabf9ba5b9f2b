"""The names of what may be said of a training step, by what it is said to, and of what types.

What each means, and what it is by default, is ``planner.request``'s.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from planner.errors import BadRequest
from planner.graphs.hardware.allocators import EXPANDABLE, SEGMENTS
from planner.graphs.hardware.devices import DeviceSpec
from planner.host_option import Offload
from planner.progress import Told
from planner.solvers import Limits

if TYPE_CHECKING:
    from planner.graphs.hardware.cluster import LinkSpec


class BatchOptions(TypedDict, total=False):
    """What may be said of a step, whatever its batch; ``Request`` says what each means."""

    loss: Callable[..., Any] | None
    optimizer: Any
    device: DeviceSpec
    costs: str
    engine: str
    limits: Limits
    progress: Told
    reserve: str | float | None
    allocator: str


ALLOCATORS = ("auto", SEGMENTS, EXPANDABLE)


class MovableOptions(BatchOptions, total=False):
    """The same, and whether the host may help."""

    offload: Offload


class ChunkOptions(TypedDict, total=False):
    """In how many chunks a loss and MLPs are computed, and what becomes of the logits."""

    loss_chunks: int | str
    mlp_chunks: int
    logits: str


class AnyBatchOptions(MovableOptions, ChunkOptions, total=False):
    """What may be said of a step on one device, whatever its batch."""


class StepOptions(MovableOptions, total=False):
    """What may be said of a step on any number of devices."""

    inputs: Any
    targets: Any
    dynamic: str | Mapping[str, int | Sequence[int]]


class SingleOptions(StepOptions, total=False):
    """What may be said of a step on one device."""

    accumulate: bool
    checks: str
    capacity_factor: float


class VariantOptions(SingleOptions, ChunkOptions, total=False):
    """What may be said of a step on one device, and of which variant of it is meant."""


class FitOptions(VariantOptions, total=False):
    """What ``fit`` may be told for one device."""

    method: str
    rewrites: Sequence[str]


class ShardedOptions(StepOptions, ChunkOptions, total=False):
    """What ``fit`` may be told for several devices."""

    method: str
    devices_per_node: int | None
    link: LinkSpec
    global_batch: int | None
    precisions: Sequence[str]
    tensor_parallel: Any


class AnyOptions(FitOptions, ShardedOptions, total=False):
    """All that ``fit`` may be told."""

    world_size: int


def check_said(said: Mapping[str, Any], allowed: type) -> None:
    """Refuse names that a ``TypedDict`` does not have.

    Raises:
        BadRequest: an unknown name; the message lists the valid ones, the likely one first.
    """
    names = allowed.__annotations__
    for name in said:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}? It takes" if close else "it takes"
            raise BadRequest(f"{name!r} cannot be said here; {hint} {', '.join(sorted(names))}")
