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

    ``shard`` is what stays: rows of dimension 0, as many on every rank (``FSDPParam`` pads).
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
    >>> group = group_of([Parameter("w", (3, 10), 4, 2, True, 0, 1)], 2, 1)
    >>> group.shard, group.flat, group.staged, group.reduced, group.gradient_shard, group.padded
    (80, 80, 40, 160, 80, 80)
    """
    up = functools.partial(_round_up, granularity_bytes)
    padded = [(p, rows_of(p, ranks) * ranks * _row(p)) for p in parameters]
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
    )


def _round_up(granularity: int, size: int) -> int:
    return -(-size // granularity) * granularity


def rows_of(p: Parameter, ranks: int) -> int:
    """Return how many rows of a parameter each of so many ranks has, the last ones padded."""
    return -(-p.shape[0] // ranks) if p.shape else 1


def _row(p: Parameter) -> int:
    return math.prod(p.shape[1:])


@dataclass(frozen=True, slots=True)
class GroupSeconds:
    """How long a group's communication takes, if nothing hides it."""

    gather: float
    reduce: float
