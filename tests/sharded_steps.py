"""A sharded step made by hand: units in a row, each a gather, a few ops forward and backward.

Small enough that the optimum can be found by trying everything. What really runs is the solver's
own order, as one unit ahead means nothing to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.graphs import Graph, Kind, Op, Phase, Schedule, Value, schedule_from_order
from planner.plan.configuration import Configuration, UnitPlan
from planner.plan.strategy import Strategy
from planner.sharding.step_graph.sharded_step import Realized
from planner.solvers import floor_bytes


@dataclass(frozen=True)
class Sizes:
    """What the model is, in bytes and seconds."""

    units: int = 3
    weight: int = 100
    activation: int = 10  # of one op, for each sample
    compute: float = 1.0  # of one op, for each sample
    launch: float = 0.5  # of one op, whatever the batch
    gather: float = 0.3  # of one unit that nothing hides
    reduce: float = 0.5
    update: float = 1.0  # of the whole state, parted over the ranks
    state: int = 3  # times the weight: gradients are apart
    temporaries: int = 0  # of the optimizer's step


class Builder:
    """Values and ops, by name."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.ops: list[Op] = []
        self.index: dict[str, int] = {}

    def value(self, name: str, size: int, kind: Kind = Kind.ACTIVATION) -> str:
        self.index[name] = len(self.values)
        self.values.append(Value(name, size, kind))
        return name

    def op(self, name: str, reads: Sequence[str], makes: Sequence[str], **fields: object) -> None:
        made = tuple(self.index[n] for n in makes)
        read = tuple(self.index[n] for n in reads)
        self.ops.append(Op(name, name.rpartition(".")[2], read, made, **fields))  # type: ignore[arg-type]


@dataclass(frozen=True)
class FakeStep:
    """What ``assemble`` returns, as far as the search looks."""

    graph: Graph
    units: tuple[str, ...]
    host_bytes: int = 0
    padding_bytes: int = 0

    def floor_bytes(self, times: int = 1) -> int:
        return floor_bytes(self.graph)

    def realize(self, order: Sequence[int]) -> Realized:
        gathers = {op.module: i for i, op in enumerate(self.graph.ops) if op.target == "all_gather"}
        units = tuple(
            UnitPlan(
                path, 0, Schedule(()), path in gathers and list(order).count(gathers[path]) == 1
            )
            for path in self.units
        )
        return Realized(schedule_from_order(self.graph, order), units)


def step(c: Configuration, sizes: Sizes) -> FakeStep:
    """Assemble the step of one rank."""
    b, k = Builder(), c.accumulation
    sharded = c.strategy is Strategy.FSDP
    ranks = c.shard_ranks
    whole = sizes.units * sizes.weight
    share = whole // ranks
    b.value("state", sizes.state * (0 if c.offload else share), Kind.OPTIMIZER)
    b.value("parameters", (0 if c.offload else share) if sharded else whole, Kind.PARAMETER)
    b.value("x", sizes.activation * c.micro_batch, Kind.INPUT)
    width = sizes.activation * c.micro_batch
    seconds = (sizes.compute * c.micro_batch + sizes.launch) * k
    paths = tuple(f"h.{i}" for i in range(sizes.units))
    carried = "x"
    for path in paths:
        weight = "parameters"
        if sharded:
            weight = b.value(f"{path}.w", sizes.weight, Kind.GATHERED)
            b.op(
                f"{path}.all_gather",
                ["parameters"],
                [weight],
                seconds=sizes.gather * k,
                phase=Phase.COMMUNICATION,
                module=path,
            )
        inner = b.value(f"{path}.a", 2 * width)
        b.op(f"{path}.mm", [carried, weight], [inner], seconds=seconds, flops=1, module=path)
        wide = b.value(f"{path}.g", 2 * width)
        b.op(f"{path}.gelu", [inner], [wide], seconds=seconds / 4, module=path)
        out = b.value(f"{path}.y", width)
        b.op(
            f"{path}.mm2",
            [wide, weight],
            [out],
            seconds=seconds,
            flops=1,
            module=path,
            recomputable=False,
        )
        carried = out
    grad = b.value("dy", width, Kind.GRADIENT)
    b.op("loss", [carried], [grad], phase=Phase.BACKWARD, recomputable=False)
    held: list[str] = []
    for i, path in reversed(list(enumerate(paths))):
        weight = f"{path}.w" if sharded else "parameters"
        fresh = b.value(f"{path}.dx", width, Kind.GRADIENT)
        full = b.value(f"{path}.dw", sizes.weight, Kind.GRADIENT)
        before = "x" if i == 0 else f"{paths[i - 1]}.y"
        b.op(
            f"{path}.backward",
            [before, f"{path}.a", f"{path}.g", weight, grad],
            [fresh, full],
            seconds=4 * seconds,
            phase=Phase.BACKWARD,
            recomputable=False,
            module=path,
        )
        if sharded:
            part = b.value(f"{path}.ds", sizes.weight // ranks, Kind.GRADIENT)
            b.op(
                f"{path}.reduce_scatter",
                [full],
                [part],
                seconds=sizes.reduce * k,
                phase=Phase.COMMUNICATION,
                recomputable=False,
                module=path,
            )
            held.append(part)
        else:
            held.append(full)
        grad = fresh
    if not sharded:
        b.op(
            "all_reduce",
            held,
            [],
            seconds=2 * sizes.reduce * sizes.units,
            phase=Phase.COMMUNICATION,
            recomputable=False,
        )
    b.op(
        "optimizer.step",
        ["state", "parameters", *held],
        [],
        seconds=sizes.update / ranks * (5 if c.offload else 1),
        workspace_bytes=sizes.temporaries // ranks,
        phase=Phase.OPTIMIZER,
        recomputable=False,
    )
    graph = Graph(tuple(b.ops), tuple(b.values), frozenset(), "step")
    host = (sizes.state + 1) * whole if c.offload else 0
    return FakeStep(graph, paths, host)
