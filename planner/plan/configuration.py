"""How a training step is spread over ranks: the decisions, as values.

Knows what can be decided and which combinations make sense. Knows nothing of costs, of torch or of
how a decision is carried out. A ``Configuration`` is decided before any op is scheduled; whether a
unit's gathered weight is kept from forward to backward is not in it: that is keep-or-recompute, and
the solver's, so it is in the ``UnitPlan``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from planner.graphs import Schedule

PRECISIONS = ("float32", "bfloat16")
"""What compute may run in: "float32" stands for the model's own dtype."""


class Strategy(enum.Enum):
    """What is sharded over the ranks, in the words of ZeRO (arXiv 1910.02054).

    DDP shards nothing, ZERO1 the optimizer state, FSDP gradients and parameters too: stage 2 where
    a gathered weight is kept, stage 3 where it is gathered again, and any mix of them.
    """

    DDP = "ddp"
    ZERO1 = "zero1"
    FSDP = "fsdp"


@dataclass(frozen=True, slots=True)
class Configuration:
    """What is decided before any op is scheduled.

    States are sharded over groups of ``shard_ranks`` and replicated over ``replicas`` such groups
    (HSDP when both exceed 1). One optimizer step is ``accumulation`` micro-steps of ``micro_batch``
    samples on every rank. ``precision`` "bfloat16" is ``MixedPrecisionPolicy(param_dtype=bfloat16,
    reduce_dtype=float32)`` under FSDP and autocast under DDP. ``offload`` keeps shards, gradients
    and optimizer state on the host (``CPUOffloadPolicy``).

    Raises:
        ValueError: a number that is not positive, an unknown precision, groups where nothing is
            sharded, or offload without shards.

    >>> c = Configuration(Strategy.FSDP, shard_ranks=4, replicas=2, micro_batch=1, accumulation=8)
    >>> c.world_size, c.global_batch, str(c)
    (8, 64, 'FSDP 4x2, batch 1 x 8, float32')
    """

    strategy: Strategy
    shard_ranks: int
    replicas: int = 1
    micro_batch: int = 1
    accumulation: int = 1
    precision: str = "float32"
    offload: bool = False

    def __post_init__(self) -> None:
        for name in ("shard_ranks", "replicas", "micro_batch", "accumulation"):
            if (count := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {count}, expected at least 1")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"unknown precision {self.precision!r}; expected one of {', '.join(PRECISIONS)}"
            )
        if self.strategy is Strategy.DDP and self.shard_ranks > 1:
            raise ValueError("DDP shards nothing: shard_ranks must be 1, replicas the world size")
        if self.strategy is Strategy.ZERO1 and self.replicas > 1:
            raise ValueError("ZeroRedundancyOptimizer shards over all ranks: replicas must be 1")
        if self.offload and self.strategy is not Strategy.FSDP:
            raise ValueError("only FSDP offloads its shards to the host")

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        return self.shard_ranks * self.replicas

    @property
    def global_batch(self) -> int:
        """How many samples one optimizer step sees."""
        return self.world_size * self.micro_batch * self.accumulation

    @property
    def way(self) -> Configuration:
        """The same way to shard, whatever the micro-batch."""
        return replace(self, micro_batch=1, accumulation=1)

    def __str__(self) -> str:
        """Say it in a few words."""
        name = {Strategy.DDP: "DDP", Strategy.ZERO1: "ZeRO-1", Strategy.FSDP: "FSDP"}[self.strategy]
        if self.strategy is Strategy.FSDP and self.replicas > 1:
            name += f" {self.shard_ranks}x{self.replicas}"
        batch = f"batch {self.micro_batch} x {self.accumulation}"
        offload = ", offloaded" if self.offload else ""
        return f"{name}, {batch}, {self.precision}{offload}"


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """What is decided for one unit, a block whose parameters are gathered and reduced together.

    ``path`` is that of the module; ``kind`` the index of its graph among the captured ones, which
    identical units share; ``schedule`` runs that graph. ``keep_gathered`` keeps the gathered weight
    from forward to backward (ZeRO stage 2) instead of gathering it again (stage 3); it means
    something under FSDP only.
    """

    path: str
    kind: int
    schedule: Schedule
    keep_gathered: bool = False
