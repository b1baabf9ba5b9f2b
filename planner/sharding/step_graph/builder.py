"""A step being put together: its values and ops so far, and the names they go by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from planner.graphs import Graph, Kind, Op, Phase, Value
from planner.graphs.hardware.cluster import Cluster
from planner.plan.configuration import Configuration
from planner.sharding.step_graph.parameter_groups import GLOO_COPIES, GroupSeconds, ParameterGroup
from planner.sharding.step_graph.sharded_step import Layout

if TYPE_CHECKING:
    from planner.sharding.wrapped.boundary import UnitCapture
    from planner.sharding.wrapped.unit_captures import ModelCapture

ROOT = -1
"""Stands for the root where units are counted."""


@dataclass
class Draft:
    """A step being put together; ``maps`` hold, for root and units, values of their own graphs.

    ``groups`` and ``seconds`` are the sizes and the communication of root and units, ``weights``
    what they compute with, ``flats`` the buffers that is gathered in. ``shards`` are the gradients
    that the optimizer reads, ``reduced`` those that are held until backward ends, ``reducing`` the
    buffer of the reduction before; ``turn`` is where backward begins. ``row_wise`` are tables whose
    rows are looked up where they are, with the seconds of that, forward and backward; ``hidden``
    are the seconds of compute that hide the first gather of a group.
    """

    captures: ModelCapture
    configuration: Configuration
    cluster: Cluster
    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    groups: dict[int, ParameterGroup] = field(default_factory=dict)
    seconds: dict[int, GroupSeconds] = field(default_factory=dict)
    maps: dict[int, dict[int, int]] = field(default_factory=dict)
    weights: dict[int, int] = field(default_factory=dict)
    flats: dict[int, int] = field(default_factory=dict)
    reducing: int | None = None
    shards: list[int] = field(default_factory=list)
    reduced: list[int] = field(default_factory=list)
    turn: int = 0
    row_wise: dict[int, tuple[float, float]] = field(default_factory=dict)
    hidden: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = self.captures.root
        compute = {
            k: (_seconds(kind.graph, Phase.FORWARD), _seconds(kind.graph, Phase.BACKWARD))
            for k, kind in enumerate(self.captures.kinds)
        }
        self.compute = [compute[k] for k in self.captures.kind_of]

    def on_host(self, index: int) -> bool:
        """Tell whether states of the root or of a unit are on the host."""
        return self.configuration.on_host(self.module(index))

    def elsewhere(self, index: int) -> bool:
        """Tell whether states are in other memory than that of the device."""
        return self.on_host(index) and self.cluster.device.name != "cpu"

    def captures_by_index(self) -> Iterable[tuple[int, UnitCapture]]:
        """Yield the root and every unit."""
        for i in (ROOT, *range(len(self.captures.units))):
            yield i, self.capture(i)

    def capture(self, index: int) -> UnitCapture:
        """Return the root or a unit."""
        return self.root if index == ROOT else self.captures.kind(index)

    def name(self, index: int) -> str:
        """Name the root or a unit."""
        return "root" if index == ROOT else self.captures.units[index]

    def module(self, index: int) -> str:
        """Return the path of a unit, or of the root: none."""
        return "" if index == ROOT else self.captures.units[index]

    def value(self, name: str, size: int, kind: Kind) -> int:
        """Add a value and return its index.

        Args:
            name: what reports call it.
            size: in bytes.
            kind: what it is.
        """
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
        moved_bytes: int = 0,
        workspace_bytes: int = 0,
        module: str = "",
    ) -> int:
        """Add an op of communication, or an anchor.

        Args:
            name: what it does, a point, and for which unit.
            reads, makes: values.
            seconds: of one micro-step.
            again: whether it may run again.
            moved_bytes: what it reads and writes.
            workspace_bytes: what it holds beside its values.
            module: the path of the unit; none is the root.
        """
        self.ops.append(
            Op(
                name,
                name.partition(".")[0],
                tuple(dict.fromkeys(reads)),
                tuple(makes),
                seconds * self.configuration.accumulation,
                moved_bytes=moved_bytes,
                workspace_bytes=workspace_bytes,
                phase=Phase.COMMUNICATION,
                recomputable=again,
                module=module,
            )
        )
        return len(self.ops) - 1

    def own(self, index: int, op: Op, *, again: bool) -> int:
        """Add an op of the root or of a unit; return its index.

        Args:
            index: of the unit, or ``ROOT``.
            op: as in the graph of its own.
            again: whether it may run again.
        """
        mapped = self.maps[index]
        graph, inside = self.capture(index).graph, self.module(index)
        for v in op.outputs:
            if v not in mapped:
                size, kind = graph.values[v].size_bytes, graph.values[v].kind
                name = graph.values[v].name
                label = f"{inside}.{name}" if inside else name
                mapped[v] = self.value(label, size, kind)
        self.ops.append(
            replace(
                op,
                name=f"{inside}.{op.name}" if inside else op.name,
                inputs=tuple(dict.fromkeys(mapped[v] for v in op.inputs if v in mapped)),
                outputs=tuple(mapped[v] for v in op.outputs),
                seconds=op.seconds * self.configuration.accumulation,
                recomputable=again and op.recomputable,
                module=".".join(part for part in (inside, op.module) if part),
            )
        )
        return len(self.ops) - 1

    def drop(self, index: int) -> None:
        """Let go of the buffer that a weight was gathered in, if there is one."""
        if index in self.flats:
            self.op(f"drop.{self.name(index)}", (self.flats[index],))

    def release(self) -> None:
        """Let go of the buffer of the reduction before, if there is one."""
        if self.reducing is not None:
            self.op(f"release.{self.values[self.reducing].name}", (self.reducing,))
            self.reducing = None

    def gloo_bytes(self, size: int) -> int:
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
