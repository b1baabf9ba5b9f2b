"""How a training step is spread over ranks: the decisions, as one value.

Knows what can be decided and which combinations make sense. Knows nothing of costs, of torch or of
how a decision is carried out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unit:
    """Parameters that are gathered and reduced together: one block of the model.

    ``path`` is that of the module. ``reshard`` says that its parameters are gathered again in
    backward instead of being kept from forward on; it has a meaning at stage 3 only.
    """

    path: str
    reshard: bool = True


@dataclass(frozen=True, slots=True)
class Sharding:
    """What is sharded over ``world_size`` ranks, and what each rank computes in one step.

    ``stage`` is that of ZeRO (arXiv 1910.02054): 0 nothing, 1 optimizer state, 2 gradients too, 3
    parameters too. States are sharded over groups of ``shard_ranks`` and replicated across groups
    (HSDP) if that is less than ``world_size``. ``units`` are in the order in which forward meets
    them; what no unit holds is the root's. ``param_dtype`` is what compute and communication of
    parameters use, ``None`` what they are stored in. One step is ``accumulation`` micro-steps of
    ``micro_batch`` samples a rank.

    Raises:
        ValueError: a stage that does not exist, or groups that do not divide the ranks.

    >>> Sharding(8, 3, shard_ranks=4).replicas
    2
    """

    world_size: int
    stage: int
    shard_ranks: int = 0
    units: tuple[Unit, ...] = ()
    param_dtype: str | None = None
    offload_optimizer: bool = False
    micro_batch: int = 1
    accumulation: int = 1

    def __post_init__(self) -> None:
        if self.stage not in (0, 1, 2, 3):
            raise ValueError(f"there is no ZeRO stage {self.stage}; stages are 0, 1, 2 and 3")
        if not self.shard_ranks:
            object.__setattr__(self, "shard_ranks", self.world_size)
        if self.world_size < 1 or self.shard_ranks < 1 or self.world_size % self.shard_ranks:
            raise ValueError(
                f"{self.world_size} ranks cannot be parted into groups of {self.shard_ranks}"
            )

    @property
    def replicas(self) -> int:
        """How many groups hold a whole copy of the states."""
        return self.world_size // self.shard_ranks
