"""Sizes of parameters that are gathered and reduced together: shards, weights, buffers.

Each rule was read in the sources named at it, in torch 2.13, and checked on gloo by
``python -m benchmarks.sharding``. What accelerators do beside it (streams that hold a block a
little longer, NCCL's own buffers) was read and not measured.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.sharding.wrapped.boundary import Parameter

GLOO_COPIES = 1
"""How many further copies of the flat buffer are held while gloo gathers or reduces: measured. NCCL
works in buffers of its own: the device's reserve."""


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that are gathered and reduced together, as bytes on one rank.

    ``shard`` is what stays: rows of dimension 0, as many on every rank (``FSDPParam`` pads), or a
    part of another dimension (``shard_dimension``). ``rearranged`` is the copy that an all-gather
    and a reduction make of parameters parted along another, which lie in rows on the wire.
    ``flat`` is the buffer an all-gather writes, ``gathered`` the parameters copied out of it.
    ``staged`` is the copy of the shard that an all-gather reads, where it computes in another dtype
    or the shard is on the host. ``reduced`` is the buffer a reduce-scatter reads,
    ``gradient_shard`` what it writes. ``padded`` are the copies that a CPU makes of gradients whose
    rows the ranks cannot share evenly, before it writes them there.
    """

    shard: int
    flat: int
    gathered: int
    staged: int
    reduced: int
    gradient_shard: int
    padded: int = 0
    rearranged: int = 0


def group_of(
    parameters: Sequence[Parameter], ranks: int, granularity_bytes: int, *, elsewhere: bool = False
) -> ParameterGroup:
    """Add up a group's parameters.

    Args:
        parameters: of the group.
        ranks: over which rows of each are parted.
        granularity_bytes: what every allocation is rounded up to.
        elsewhere: the shards are on the host.

    Sources: ``_fsdp_param.py`` (padding, ``all_gather_outputs``), ``_fsdp_collectives.py``
    (``_get_param_all_gather_inputs``, ``foreach_all_gather``, ``foreach_reduce``), ``reducer.cpp``
    (one bucket view a gradient), ATen's ``_pad_chunk``.

    >>> from planner.sharding.wrapped.boundary import Parameter
    >>> group = group_of([Parameter("w", (3, 9), 4, 2, True, 0, 1)], 2, 1)
    >>> group.shard, group.flat, group.staged, group.reduced, group.gradient_shard, group.padded
    (72, 72, 36, 144, 72, 72)
    """
    up = functools.partial(_round_up, granularity_bytes)
    padded = [(p, ranks * math.prod(shard_shape(p.shape, ranks))) for p in parameters]
    reduced = sum(n * p.itemsize for p, n in padded if p.trainable)
    staged = [p for p in padded if elsewhere or p[0].compute_itemsize != p[0].itemsize]
    uneven = [(p, n) for p, n in padded if p.trainable and n != math.prod(p.shape)]
    return ParameterGroup(
        shard=sum(up(n // ranks * p.itemsize) for p, n in padded),
        flat=up(sum(n * p.compute_itemsize for p, n in padded)),
        gathered=sum(up(n * p.compute_itemsize) for p, n in padded),
        staged=up(sum(n // ranks * p.compute_itemsize for p, n in staged)),
        reduced=up(reduced),
        gradient_shard=up(reduced // ranks),
        padded=sum(n * p.compute_itemsize for p, n in uneven),
        rearranged=sum(
            n * p.compute_itemsize for p, n in padded if shard_dimension(p.shape, ranks)
        ),
    )


def _round_up(granularity: int, size: int) -> int:
    return -(-size // granularity) * granularity


MOST_PADDING = 1.125
"""Up to this a parameter is parted along dimension 0, which costs no copies."""


def shard_dimension(shape: Sequence[int], ranks: int) -> int:
    """Return the dimension along which a parameter is parted over so many ranks.

    Dimension 0 is padded to a multiple of the ranks: experts in one tensor, (8, 14336, 4096) over
    64 ranks, would be gathered eightfold. Another dimension has to be a multiple of them
    (``FSDPParam._init_sharded_param``); the longest such is taken where dimension 0 would be padded
    by more than an eighth.

    Args:
        shape: of the parameter.
        ranks: how many.

    >>> shard_dimension((8, 14336, 4096), 64), shard_dimension((50257, 768), 64)
    (1, 0)
    """
    if not shape or not shape[0] or -(-shape[0] // ranks) * ranks <= MOST_PADDING * shape[0]:
        return 0
    even = [d for d in range(1, len(shape)) if shape[d] and shape[d] % ranks == 0]
    return max(even, key=lambda d: (shape[d], -d), default=0)


def shard_shape(shape: Sequence[int], ranks: int) -> tuple[int, ...]:
    """Return the shape of the part that each of so many ranks has, the last ones padded.

    Args:
        shape: of the parameter.
        ranks: how many.
    """
    if not shape:
        return (1,)
    dimension = shard_dimension(shape, ranks)
    part = -(-shape[dimension] // ranks)
    return (*shape[:dimension], part, *shape[dimension + 1 :])


@dataclass(frozen=True, slots=True)
class GroupSeconds:
    """How long a group's communication takes, if nothing hides it."""

    gather: float
    reduce: float
