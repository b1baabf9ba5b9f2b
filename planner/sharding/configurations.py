"""Which configurations there are: every way to spread a global batch over a cluster.

Nothing is left out because it looks slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from planner.plan.configuration import PRECISIONS, Configuration
from planner.plan.strategy import STRATEGIES


@dataclass(frozen=True, slots=True)
class Parted:
    """Over how many ranks every layer is parted, and whether along the sequence between them."""

    ranks: int = 1
    sequence: bool = False


WHOLE = Parted()


def parted_as(c: Configuration) -> Parted:
    """Return how a configuration parts layers."""
    return Parted(c.tensor_ranks, c.sequence_parallel)


def configurations(
    world_size: int,
    global_batch: int,
    *,
    devices_per_node: int,
    precisions: Sequence[str] = ("float32",),
    offload: bool = True,
    parted: Parted = WHOLE,
) -> tuple[Configuration, ...]:
    """List every configuration of every strategy, those that shard least first.

    Args:
        world_size: the ranks there are.
        global_batch: samples of one optimizer step.
        devices_per_node: how many ranks share a node.
        precisions: what compute may run in.
        offload: whether states may lie on the host.
        parted: over how many neighbouring ranks of a node every layer is parted.

    Raises:
        ValueError: the ranks that see samples of their own do not divide the global batch, or a
            precision is unknown.

    >>> found = configurations(2, 4, devices_per_node=2, offload=False)
    >>> for one in found:
    ...     print(one)
    DDP, batch 1 x 2, float32
    DDP, batch 2 x 1, float32
    ZeRO-1, batch 1 x 2, float32
    ZeRO-1, batch 2 x 1, float32
    FSDP, batch 1 x 2, float32
    FSDP, batch 2 x 1, float32
    """
    if unknown := set(precisions) - set(PRECISIONS):
        raise ValueError(
            f"unknown precision {min(unknown)!r}; expected some of {', '.join(PRECISIONS)}"
        )
    data_ranks = world_size // parted.ranks
    each = samples_per_rank(data_ranks, global_batch)
    spreads = [
        (strategy, spread)
        for strategy in sorted(STRATEGIES.values(), key=lambda s: s.stages[0].number)
        if parted.ranks == 1 or strategy.takes_tensor_parallel
        for spread in strategy.spreads(data_ranks, max(1, devices_per_node // parted.ranks))
        if offload or not spread.offload
    ]
    return tuple(
        Configuration(
            strategy,
            spread.shard_ranks,
            spread.replicas,
            batch,
            each // batch,
            precision,
            spread.offload,
            parted.ranks,
            parted.sequence,
        )
        for (strategy, spread), precision, batch in product(
            spreads, dict.fromkeys(precisions), divisors(each)
        )
    )


def samples_per_rank(world_size: int, global_batch: int) -> int:
    """Return how many samples of a step each rank has.

    Raises:
        ValueError: the ranks do not divide the global batch; the message names the nearest that do.

    >>> samples_per_rank(8, 64)
    8
    >>> samples_per_rank(8, 60)
    Traceback (most recent call last):
    ValueError: a global batch of 60 does not divide over 8 ranks; the nearest are 56 and 64
    """
    each, left = divmod(global_batch, world_size)
    if global_batch < 1 or left:
        near = [n for n in (each * world_size, (each + 1) * world_size) if n > 0]
        named = f"the nearest are {near[0]} and {near[1]}" if len(near) > 1 else f"try {near[0]}"
        raise ValueError(
            f"a global batch of {global_batch} does not divide over {world_size} ranks; {named}"
        )
    return each


def divisors(n: int) -> list[int]:
    """Return the divisors of a number, in order.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [d for d in range(1, n + 1) if n % d == 0]
