"""How a training step is spread over ranks: the decisions, as values.

A ``Configuration`` is decided before any op is scheduled. Whether a unit's gathered weight is kept
from forward to backward is not in it: that is keep-or-recompute, and the solver's, so it is in the
``UnitPlan``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.graphs import Schedule
from planner.plan.strategy import Spread, Strategy

PRECISIONS = ("float32", "bfloat16")
"""What compute may run in: "float32" stands for the model's own dtype."""

TENSOR = "tensor"
"""What the dimension of the mesh is called over which layers are parted."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What is decided before any op is scheduled.

    States are sharded over groups of ``shard_ranks`` and replicated over ``replicas`` such groups
    (HSDP when both exceed 1). One optimizer step is ``accumulation`` micro-steps of ``micro_batch``
    samples on every rank. Every layer is parted over ``tensor_ranks`` neighbouring ranks, which see
    the same samples; with ``sequence_parallel`` what is between the parted products, along the
    sequence, too. What ``precision`` "bfloat16" is, the strategy says: casts, or autocast.
    ``offload`` keeps shards, gradients and optimizer state on the host, but for those of the units
    in ``staying``, by their paths; the root's is empty.

    Raises:
        ValueError: a number that is not positive, an unknown precision, ranks or an offload that
            the strategy does not have, or units that stay where nothing leaves.

    >>> from planner.plan.strategy import strategy_of
    >>> c = Configuration(strategy_of("fsdp"), shard_ranks=4, replicas=2, accumulation=8)
    >>> c.world_size, c.global_batch, str(c)
    (8, 64, 'FSDP 4x2, batch 1 x 8, float32')
    >>> c = Configuration(strategy_of("fsdp"), 4, tensor_ranks=2, micro_batch=2)
    >>> c.world_size, c.global_batch, str(c)
    (8, 8, 'TP 2, FSDP, batch 2 x 1, float32')
    """

    strategy: Strategy
    shard_ranks: int
    replicas: int = 1
    micro_batch: int = 1
    accumulation: int = 1
    precision: str = "float32"
    offload: bool = False
    tensor_ranks: int = 1
    sequence_parallel: bool = False
    staying: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("shard_ranks", "replicas", "micro_batch", "accumulation", "tensor_ranks"):
            if (count := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {count}, expected at least 1")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"unknown precision {self.precision!r}; expected one of {', '.join(PRECISIONS)}"
            )
        if self.tensor_ranks > 1 and not self.strategy.takes_tensor_parallel:
            raise ValueError(
                f"{self.strategy.label} takes no model that is parted over tensor_ranks="
                f"{self.tensor_ranks}: torch's does not combine with DTensor parameters"
            )
        if self.sequence_parallel and self.tensor_ranks == 1:
            raise ValueError("sequence_parallel is for tensor_ranks above 1")
        if self.staying and not self.offload:
            raise ValueError("staying names units that stay on the device: it is for offload=True")
        self.strategy.check(self.spread)

    @property
    def spread(self) -> Spread:
        """How states lie over the ranks."""
        return Spread(self.shard_ranks, self.replicas, self.offload, self.tensor_ranks)

    @property
    def data_ranks(self) -> int:
        """How many ranks see other samples than each other."""
        return self.shard_ranks * self.replicas

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        return self.data_ranks * self.tensor_ranks

    @property
    def mesh(self) -> tuple[tuple[str, int], ...]:
        """Names and sizes of the dimensions of all ranks' mesh."""
        tensor = ((TENSOR, self.tensor_ranks),) if self.tensor_ranks > 1 else ()
        return (*self.strategy.mesh(self.spread), *tensor)

    @property
    def tensor_parallel(self) -> str:
        """How layers are parted, in a few words; nothing where they are not.

        >>> from planner.plan.strategy import strategy_of
        >>> c = Configuration(strategy_of("fsdp"), 2, tensor_ranks=4, sequence_parallel=True)
        >>> c.tensor_parallel
        'TP+SP 4'
        """
        kind = "TP+SP" if self.sequence_parallel else "TP"
        return f"{kind} {self.tensor_ranks}" if self.tensor_ranks > 1 else ""

    @property
    def computes_in(self) -> str:
        """How units are captured and run: "float32" (as they are), "bfloat16" or "autocast"."""
        return self.precision if self.precision == "float32" else self.strategy.half

    @property
    def global_batch(self) -> int:
        """How many samples one optimizer step sees."""
        return self.data_ranks * self.micro_batch * self.accumulation

    @property
    def way(self) -> Configuration:
        """The same way to shard, whatever the micro-batch and whichever units stay."""
        return replace(self, micro_batch=1, accumulation=1, staying=())

    def on_host(self, path: str) -> bool:
        """Tell whether states of a unit are on the host.

        Args:
            path: of the unit; that of the root is empty.

        >>> from planner.plan.strategy import strategy_of
        >>> c = Configuration(strategy_of("fsdp"), 2, offload=True, staying=("", "h.0"))
        >>> c.on_host("h.0"), c.on_host("h.1"), str(c)
        (False, True, 'FSDP, batch 1 x 1, float32, offloaded but for 2')
        """
        return self.offload and path not in self.staying

    def __str__(self) -> str:
        """Say it in a few words."""
        name, mesh = self.strategy.label, self.strategy.mesh(self.spread)
        if len(mesh) > 1:
            name += f" {'x'.join(str(ranks) for _, ranks in reversed(mesh))}"
        batch = f"batch {self.micro_batch} x {self.accumulation}"
        offload = ", offloaded" if self.offload else ""
        offload += f" but for {len(self.staying)}" if self.staying else ""
        if self.tensor_ranks > 1:
            name = f"{self.tensor_parallel}, {name}"
        return f"{name}, {batch}, {self.precision}{offload}"


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """What is decided for one unit, whose parameters are gathered and reduced together.

    ``path`` is that of the module; ``kind`` the index of its graph among the captured ones, which
    identical units share; ``schedule`` runs that graph. ``keep_gathered`` keeps the gathered weight
    from forward to backward (ZeRO stage 2) instead of gathering it again (stage 3), if the strategy
    gathers weights at all. ``row_wise`` is a table of embeddings that is not gathered: every rank
    keeps some of its rows and looks them up for all. ``held_bytes`` is the most that the code which
    a compiler makes of the unit may hold by itself, ``None`` where no compiler was asked.
    """

    path: str
    kind: int
    schedule: Schedule
    keep_gathered: bool = False
    row_wise: bool = False
    held_bytes: int | None = None
