"""What binds: the moment at which a schedule holds most, and what it holds there.

Knows how to read a trace. Knows nothing of budgets or of what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.graphs.graph import Graph, Kind, Phase
from planner.graphs.schedule import Schedule, Subject
from planner.graphs.simulate import Trace
from planner.graphs.snapshot import Live, live_at, step_phases


@dataclass(frozen=True, slots=True)
class Binding:
    """The op that runs at the peak of a schedule.

    ``category`` is the kind of value that holds most of the bytes there, ``category_bytes`` how
    many. ``times`` counts the runs of the op up to the peak: above 1 the peak is in a
    recomputation.
    """

    op: str
    target: str
    module: str
    source: str
    phase: Phase
    step: int
    times: int
    peak_bytes: int
    category: Kind
    category_bytes: int

    def __str__(self) -> str:
        """Name the op, where it comes from and what it holds, in one sentence.

        >>> print(Binding("mm_3", "aten.mm", "h.1.mlp", "model.py:12", Phase.BACKWARD, 40, 1, 90,
        ...               Kind.ACTIVATION, 70))
        op mm_3 of h.1.mlp at model.py:12, in the backward phase
        """
        where = f" of {self.module}" if self.module else ""
        where += f" at {self.source}" if self.source else ""
        again = " (a recomputation)" if self.times > 1 else ""
        kernel = short_target(self.target)
        name = self.op if self.op.startswith(kernel) else f"{self.op} ({kernel})"
        return f"op {name}{where}, in the {self.phase.value} phase{again}"


def binding(graph: Graph, schedule: Schedule, trace: Trace) -> Binding:
    """Find what binds a schedule. The graph must have an op.

    Args:
        graph, schedule: what runs, and in which order.
        trace: what ``simulate`` found of it.

    >>> from planner.graphs import Graph, Op, Value, simulate, plain_schedule
    >>> values = (Value("a", 3), Value("b", 4))
    >>> g = Graph((Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,))), values)
    >>> found = binding(g, plain_schedule(g), simulate(g, plain_schedule(g)))
    >>> found.op, found.peak_bytes, found.category
    ('b', 7, <Kind.ACTIVATION: 'activation'>)
    """
    step = trace.peak_step
    while schedule.steps[step].action.subject is not Subject.OP:
        step -= 1  # only possible when nothing is ever made: a peak is reached by computing
    index = schedule.steps[step].index
    op = graph.ops[index]
    runs = sum(
        s.action.subject is Subject.OP and s.index == index for s in schedule.steps[: step + 1]
    )
    column = int(np.argmax(trace.by_kind[step]))
    return Binding(
        op=op.name,
        target=op.target,
        module=op.module,
        source=op.source,
        phase=step_phases(graph, schedule)[step],
        step=step,
        times=runs,
        peak_bytes=trace.peak_bytes,
        category=trace.kinds[column],
        category_bytes=int(trace.by_kind[step, column]),
    )


def largest_live(graph: Graph, schedule: Schedule, step: int, count: int) -> tuple[Live, ...]:
    """List the largest values an op made that are held at a step: what a schedule could change.

    Args:
        graph, schedule: what runs, and in which order.
        step: a step of the schedule.
        count: how many values at most.
    """
    made = (item for item in live_at(graph, schedule, step) if item.op is not None)
    return tuple(item for item, _ in zip(made, range(count), strict=False))


def short_target(target: str) -> str:
    """Shorten the name of an ATen operator.

    >>> short_target("aten.native_layer_norm.default"), short_target("mylib.scan")
    ('native_layer_norm', 'mylib.scan')
    """
    parts = target.removeprefix("aten.").removesuffix(".default")
    return parts.split(".")[0] if target.startswith("aten.") else parts
