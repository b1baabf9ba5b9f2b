"""The training step as data: values (storages), operators, and the graph that orders them.

Knows what an operator reads, writes and costs. Knows nothing of torch, of schedules or of budgets.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


class Kind(enum.Enum):
    """What a value is for; the categories of every memory table."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    INPUT = "input"
    ACTIVATION = "activation"
    GRADIENT = "gradient"
    OPTIMIZER = "optimizer"
    OUTPUT = "output"
    RESERVE = "reserve"
    GATHERED = "gathered"


class Phase(enum.Enum):
    """The part of the training step an operator belongs to."""

    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    COMMUNICATION = "communication"


@dataclass(frozen=True, slots=True)
class Value:
    """A storage. Tensors that view it are not values of their own.

    >>> Value("h.0.mlp", 4096, Kind.ACTIVATION).size_bytes
    4096
    """

    name: str
    size_bytes: int
    kind: Kind = Kind.ACTIVATION


@dataclass(frozen=True, slots=True)
class Op:
    """One kernel call. ``inputs`` and ``outputs`` are indices into ``Graph.values``.

    While the op runs, its inputs, its outputs and its ``workspace_bytes`` are all live.
    ``recomputable`` says that it may run more than once. ``module`` is the path of the
    ``nn.Module`` and ``source`` the ``file:line`` it came from; either may be empty.
    """

    name: str
    target: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    seconds: float = 0.0
    flops: int = 0
    moved_bytes: int = 0
    workspace_bytes: int = 0
    phase: Phase = Phase.FORWARD
    recomputable: bool = True
    module: str = ""
    source: str = ""


@dataclass(frozen=True)
class Graph:
    """Ops in execution order over values; checked on construction.

    A value that no op produces is *resident*: live from the first step to the last (parameters,
    buffers, inputs, optimizer state). ``outputs`` are the values that must be live at the end.

    Raises:
        ValueError: an index out of range, a value with two producers or a negative size, a value
            used before it is made.

    >>> x, y = Value("x", 8, Kind.INPUT), Value("y", 4)
    >>> g = Graph((Op("relu", "aten.relu", (0,), (1,), seconds=1.0),), (x, y), frozenset({1}))
    >>> g.resident_bytes, g.seconds
    (8, 1.0)
    """

    ops: tuple[Op, ...]
    values: tuple[Value, ...]
    outputs: frozenset[int] = frozenset()
    name: str = ""

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise ValueError(f"graph {self.name!r}: {problem}")

    @cached_property
    def producer(self) -> tuple[int | None, ...]:
        """For each value the op that makes it, ``None`` for a resident value."""
        made: list[int | None] = [None] * len(self.values)
        for index, op in enumerate(self.ops):
            for value in op.outputs:
                made[value] = index
        return tuple(made)

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each value the ops that read it, in execution order."""
        readers: list[list[int]] = [[] for _ in self.values]
        for index, op in enumerate(self.ops):
            for value in op.inputs:
                readers[value].append(index)
        return tuple(map(tuple, readers))

    @cached_property
    def resident(self) -> frozenset[int]:
        """The values that no op produces."""
        return frozenset(v for v, op in enumerate(self.producer) if op is None)

    @cached_property
    def resident_bytes(self) -> int:
        """Bytes of the resident values."""
        return sum(self.values[v].size_bytes for v in self.resident)

    @cached_property
    def seconds(self) -> float:
        """Time of the step when every op runs once."""
        return sum(op.seconds for op in self.ops)


def _problems(graph: Graph) -> Iterator[str]:
    """Yield what is wrong with a graph, first defect first."""
    count, made = len(graph.values), set[int]()
    produced = {v for op in graph.ops for v in op.outputs}
    for value in graph.values:
        if value.size_bytes < 0:
            yield f"value {value.name!r} has negative size {value.size_bytes}"
    if bad := [v for v in graph.outputs if not 0 <= v < count]:
        yield f"output {bad[0]} is not one of its {count} values"
    for op in graph.ops:
        if bad := [v for v in (*op.inputs, *op.outputs) if not 0 <= v < count]:
            yield f"op {op.name!r} names value {bad[0]}, but there are {count} values"
            return
        if op.seconds < 0 or op.workspace_bytes < 0:
            yield f"op {op.name!r} has a negative cost"
        if late := [v for v in op.inputs if v in produced and v not in made]:
            yield f"op {op.name!r} reads {graph.values[late[0]].name!r} before it is made"
        if twice := [v for v in op.outputs if v in made]:
            yield f"value {graph.values[twice[0]].name!r} has two producers"
        if len(set(op.inputs)) < len(op.inputs) or len(set(op.outputs)) < len(op.outputs):
            yield f"op {op.name!r} lists a value twice"
        made.update(op.outputs)
