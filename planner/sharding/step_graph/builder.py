"""A step being put together: its values and ops so far, and the names they go by.

Knows the root, the units and how their own graphs' values are called in the step. Knows nothing of
the order in which torch does things.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from planner.graphs import Graph, Kind, Op, Phase, Value
from planner.graphs.hardware.cluster import Cluster
from planner.plan.configuration import Configuration, Strategy
from planner.sharding.step_graph.rules import GLOO_COPIES, Group, Seconds, group_of, seconds_of
from planner.sharding.step_graph.sharded_step import Layout
from planner.sharding.wrapped.boundary import Region
from planner.sharding.wrapped.unit_captures import Regions

ROOT = -1
"""Stands for the root where units are counted."""


@dataclass
class Draft:
    """A step being put together; ``maps`` hold, for root and units, values of their own graphs.

    ``shards`` are the gradients that the optimizer reads, ``reduced`` those that are held until
    backward ends, ``reducing`` the buffer of the reduction before; ``turn`` is where backward
    begins.
    """

    regions: Regions
    configuration: Configuration
    cluster: Cluster
    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    maps: dict[int, dict[int, int]] = field(default_factory=dict)
    weights: dict[int, int] = field(default_factory=dict)
    flats: dict[int, int] = field(default_factory=dict)
    reducing: int | None = None
    shards: list[int] = field(default_factory=list)
    reduced: list[int] = field(default_factory=list)
    turn: int = 0

    def __post_init__(self) -> None:
        self.root = self.regions.root
        self.sharded = self.configuration.strategy is Strategy.FSDP
        self.elsewhere = self.configuration.offload and self.cluster.device.name != "cpu"
        grain = self.cluster.device.granularity_bytes
        self.groups: dict[int, Group] = {
            i: group_of(region.parameters, self.configuration, grain, elsewhere=self.elsewhere)
            for i, region in self.regions_by_index()
        }
        self.seconds: dict[int, Seconds] = {
            i: seconds_of(group, self.configuration, self.cluster)
            for i, group in self.groups.items()
        }
        compute = {
            k: (_seconds(kind.graph, Phase.FORWARD), _seconds(kind.graph, Phase.BACKWARD))
            for k, kind in enumerate(self.regions.kinds)
        }
        self.compute = [compute[k] for k in self.regions.kind_of]

    def regions_by_index(self) -> Iterable[tuple[int, Region]]:
        """Yield the root and every unit."""
        yield ROOT, self.root
        for i in range(len(self.regions.units)):
            yield i, self.regions.kind(i)

    def name(self, index: int) -> str:
        """Name the root or a unit."""
        return "root" if index == ROOT else self.regions.units[index]

    def value(self, name: str, size: int, kind: Kind) -> int:
        """Add a value and return its index."""
        self.values.append(Value(name, size, kind))
        return len(self.values) - 1

    def op(
        self,
        name: str,
        reads: Sequence[int] = (),
        makes: Sequence[int] = (),
        *,
        seconds: float = 0.0,
        again: bool = False,
        moved: int = 0,
        workspace: int = 0,
        module: str = "",
    ) -> int:
        """Add an op of communication, or an anchor."""
        self.ops.append(
            Op(
                name,
                name.partition(".")[0],
                tuple(dict.fromkeys(reads)),
                tuple(makes),
                seconds * self.configuration.accumulation,
                moved_bytes=moved,
                workspace_bytes=workspace,
                phase=Phase.COMMUNICATION,
                recomputable=again,
                module=module,
            )
        )
        return len(self.ops) - 1

    def own(self, index: int, op: Op, *, again: bool) -> int:
        """Add an op of the root or of a unit; return its index."""
        mapped = self.maps[index]
        graph = self.root.graph if index == ROOT else self.regions.kind(index).graph
        for v in op.outputs:
            if v not in mapped:
                size, kind = graph.values[v].size_bytes, graph.values[v].kind
                name = graph.values[v].name
                label = name if index == ROOT else f"{self.name(index)}.{name}"
                mapped[v] = self.value(label, size, kind)
        label = op.name if index == ROOT else f"{self.name(index)}.{op.name}"
        inside = "" if index == ROOT else self.name(index)
        self.ops.append(
            replace(
                op,
                name=label,
                inputs=tuple(dict.fromkeys(mapped[v] for v in op.inputs if v in mapped)),
                outputs=tuple(mapped[v] for v in op.outputs),
                seconds=op.seconds * self.configuration.accumulation,
                recomputable=again and op.recomputable,
                module=".".join(part for part in (inside, op.module) if part),
            )
        )
        return len(self.ops) - 1

    def workspace(self, size: int) -> int:
        """Return what a collective takes beside its buffers, if it is gloo's."""
        return GLOO_COPIES * size if self.cluster.device.name == "cpu" else 0

    def backward_seconds(self, u: int) -> float:
        """Return the plain backward of a unit; of the head, after the last one; of the stem."""
        if 0 <= u < len(self.compute):
            return self.compute[u][1]
        ops, calls = self.root.graph.ops, {c.backward for c in self.root.calls}
        first, last = min(calls), max(calls)
        span = range(len(ops))[last:] if u < 0 else range(first)
        return sum(ops[i].seconds for i in span if ops[i].phase is Phase.BACKWARD)

    def graph(self) -> Graph:
        """Finish the graph: what the loss callable returned and the gradient shards stay."""
        held = {self.maps[ROOT][v] for v in self.root.outputs if v in self.maps[ROOT]}
        made = {v for op in self.ops for v in op.outputs}
        outputs = frozenset((held | set(self.shards)) & made)
        return Graph(tuple(self.ops), tuple(self.values), outputs, self.root.graph.name)


def _seconds(graph: Graph, phase: Phase) -> float:
    return sum(op.seconds for op in graph.ops if op.phase is phase)
