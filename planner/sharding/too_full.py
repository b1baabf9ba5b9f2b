"""What cannot fit, and what else cannot because it holds no less."""

from __future__ import annotations

from dataclasses import dataclass

from planner.graphs import Kind
from planner.plan.configuration import Configuration
from planner.sharding.pricing import CanRealize
from planner.solvers import floor_bytes


@dataclass(frozen=True)
class Full:
    """A configuration that cannot fit, and by how much the least it holds is over.

    ``by_states`` says that its states alone are too much; ``padding_bytes`` is what it holds in
    buffers that are padded for its ranks.
    """

    seen: Configuration
    excess_bytes: int
    by_states: bool
    padding_bytes: int = 0

    def rules_out(self, c: Configuration) -> bool:
        """Say whether another holds at least as much: as large shards or larger, more samples.

        Shards never grow with more ranks; the buffers they are gathered in may, by padding.
        """
        mine = self.seen
        same = alike(c) == alike(mine)
        larger = self.by_states or self.excess_bytes > self.padding_bytes
        larger = c.shard_ranks == mine.shard_ranks or (larger and c.shard_ranks < mine.shard_ranks)
        return same and larger and c.micro_batch >= mine.micro_batch


def alike(c: Configuration) -> tuple[object, ...]:
    """Return what two configurations have to share for one to hold at least what the other does.

    Args:
        c: one of them.
    """
    return (c.strategy, c.precision, c.offload, c.staying, c.tensor_ranks, c.sequence_parallel)


def full(step: CanRealize, c: Configuration, budget_bytes: int) -> Full | None:
    """Say whether what a step holds at least is too much, as it is then with more samples.

    What larger micro-batches may not hold is left out: gradients kept between micro-steps.

    Args:
        step: one rank's.
        c: what it was assembled for.
        budget_bytes: of each rank.
    """
    graph = step.graph
    kept = [v for v in graph.resident if graph.values[v].kind is Kind.GRADIENT]
    spared = sum(graph.values[v].size_bytes for v in kept) if c.accumulation > 1 else 0
    by_states = graph.resident_bytes - spared > budget_bytes
    excess = max(floor_bytes(graph), step.floor_bytes()) - spared - budget_bytes
    return Full(c, excess, by_states, step.padding_bytes) if excess > 0 else None
