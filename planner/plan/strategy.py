"""What spreads a training step over ranks: the seam of every strategy, and their registry.

A strategy is a file of ``planner.sharding.strategies`` and a line in that folder's ``__init__``.
What a floor above asks of one (ops of a step, torch's wrappers, a launcher's words) is a part, of a
type that this floor defines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar, TypeVar

from planner.errors import BadRequest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """How states lie over ranks: over groups of ``shard_ranks``, in ``replicas`` such groups.

    ``offload`` keeps shards, gradients and optimizer state on the host. From one rank of a group to
    the next it is ``stride`` ranks of the cluster: those between have other parts of every layer.
    """

    shard_ranks: int
    replicas: int = 1
    offload: bool = False
    stride: int = 1

    @property
    def world_size(self) -> int:
        """How many ranks there are, of those that have one part of every layer."""
        return self.shard_ranks * self.replicas

    @property
    def is_whole(self) -> bool:
        """Whether a rank has all of every state, so that none is gathered or reduced in a group.

        >>> Spread(1, replicas=4).is_whole, Spread(4).is_whole
        (True, False)
        """
        return self.shard_ranks == 1


@dataclass(frozen=True, slots=True)
class UnitStage:
    """A stage of ZeRO (arXiv 1910.02054) that a unit can be in.

    ``recipe`` names a model all of whose units are in it; ``weight`` says where a unit's is.
    """

    number: int
    recipe: str
    weight: str


@dataclass(frozen=True, eq=False, repr=False)
class Strategy:
    """What is sharded over ranks and how; two are equal if they are the same.

    Args:
        name: in plan files; ``Strategy.FSDP`` is the one registered as "fsdp".
        label: in tables, a word.
        title: in reports, by the names of what does it.
        stages: of a unit whose gathered weight is kept, then of one that gathers it again; one
            stage if weights are not gathered.
        half: what compute in bfloat16 is: "bfloat16" if parameters are cast, or "autocast".
        spreads: the spreads there are for so many ranks on nodes of so many devices. The first
            holds least.
        check: raises ``ValueError`` for a spread that makes no sense.
        mesh: names and sizes of the dimensions of the ranks' mesh.
        parts: what else is asked of it, one value of a type each.
        takes_tensor_parallel: layers may be parted over ranks of their own (``DTensor``) besides.
    """

    name: str
    label: str
    title: str
    stages: tuple[UnitStage, ...]
    half: str
    spreads: Callable[[int, int], Iterable[Spread]]
    check: Callable[[Spread], None]
    mesh: Callable[[Spread], tuple[tuple[str, int], ...]]
    parts: tuple[object, ...] = ()
    takes_tensor_parallel: bool = False

    DDP: ClassVar[Strategy]
    ZERO1: ClassVar[Strategy]
    FSDP: ClassVar[Strategy]

    def stage(self, *, keep_gathered: bool) -> UnitStage:
        """Return the stage of a unit whose gathered weight is kept or not."""
        return self.stages[0 if keep_gathered else -1]

    def part(self, kind: type[T]) -> T:
        """Return what the strategy says where a type is asked for.

        Raises:
            BadRequest: it says nothing there.
        """
        for part in self.parts:
            if isinstance(part, kind):
                return part
        asked = str(kind.__doc__).partition("\n")[0].rstrip(".")
        raise BadRequest(f"the strategy {self.name!r} has no {kind.__name__}: {asked}")

    def __repr__(self) -> str:
        return f"Strategy.{self.name.upper()}"

    def __reduce__(self) -> tuple[Callable[[str], Strategy], tuple[str]]:
        return strategy_of, (self.name,)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Let files hold the name."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(
            strategy_of,
            core_schema.str_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(attrgetter("name")),
        )


STRATEGIES: dict[str, Strategy] = {}


def register_strategy(strategy: Strategy) -> Strategy:
    """Enter a strategy under its name; a name taken twice raises ``ValueError``."""
    if strategy.name in STRATEGIES:
        raise ValueError(f"a strategy named {strategy.name!r} is already registered")
    STRATEGIES[strategy.name] = strategy
    setattr(Strategy, strategy.name.upper(), strategy)
    return strategy


def strategy_of(name: str) -> Strategy:
    """Return the strategy of this name.

    Raises:
        ValueError: there is none; the message lists the valid names.

    >>> strategy_of("zero1").title
    'DDP + ZeroRedundancyOptimizer'
    >>> strategy_of("zero2")
    Traceback (most recent call last):
    ValueError: unknown strategy 'zero2'; valid strategies: ddp, fsdp, zero1
    """
    if name not in STRATEGIES:
        raise ValueError(
            f"unknown strategy {name!r}; valid strategies: {', '.join(sorted(STRATEGIES))}"
        )
    return STRATEGIES[name]
