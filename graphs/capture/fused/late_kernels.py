"""Fused kernels put off until something reads what they make, or gives up what they read.

Inductor makes one kernel of what computes a value and what reads it, and puts it where the first
stood: with all that the second waits for, and what that holds, if there is much between. Nothing
is held longer: a value comes into memory later, and what it is made of is there until then anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from planner.graphs.graph import Graph, Phase
from planner.graphs.schedule import Action, Schedule, Step

FUSED = "fused("
"""How the target of a fused kernel begins."""


@dataclass
class _PuttingOff:
    graph: Graph
    steps: list[Step] = field(default_factory=list)
    waiting: dict[int, Step] = field(default_factory=dict)  # a value that is not made yet -> how
    holding: dict[int, dict[int, Step]] = field(default_factory=dict)  # a value -> who waits for it

    def put_off(self, step: Step) -> None:
        """Leave a kernel for later."""
        op = self.graph.ops[step.index]
        self.waiting |= dict.fromkeys(op.outputs, step)
        for value in op.inputs:
            self.holding.setdefault(value, {})[step.index] = step

    def run(self, step: Step) -> None:
        """Run a kernel, what it reads before it."""
        op = self.graph.ops[step.index]
        for value in op.outputs:
            self.waiting.pop(value, None)
        for value in op.inputs:
            self.holding.get(value, {}).pop(step.index, None)
        for value in op.inputs:
            self.make(value)
        self.steps.append(step)

    def make(self, value: int) -> None:
        """Run the kernel that makes a value, if that was put off."""
        if (step := self.waiting.get(value)) is not None:
            self.run(step)

    def free(self, step: Step) -> None:
        """Give a value up, once all that read it before have run."""
        self.make(step.index)
        for reader in list(self.holding.get(step.index, {}).values()):
            self.run(reader)
        self.steps.append(step)

    def run_all(self) -> None:
        """Run whatever was put off."""
        while self.waiting:
            self.run(next(iter(self.waiting.values())))


def put_off(graph: Graph, schedule: Schedule) -> tuple[Step, ...]:
    """Return the steps of a schedule, fused kernels as late as nothing is held longer for it.

    Kernels that nothing reads but the caller, such as of gradients, stay where they are.

    Args:
        graph: of kernels.
        schedule: of it; what runs in forward stays there.

    >>> from planner.graphs.graph import Op, Value
    >>> from planner.graphs.schedule import schedule_from_order
    >>> ops = (Op("mask", "fused(gt)", (), (0,)), Op("mm", "mm", (), (1,)),
    ...        Op("where", "fused(where)", (0, 1), (2,)))
    >>> graph = Graph(ops, tuple(Value(n, 4) for n in "abc"), frozenset({2}))
    >>> steps = put_off(graph, schedule_from_order(graph, [0, 1, 2]))
    >>> [ops[s.index].name for s in steps if s.action is Action.COMPUTE]
    ['mm', 'mask', 'where']
    """
    last = max((i for i, op in enumerate(graph.ops) if op.outputs), default=0)
    read = {v for op in graph.ops[: last + 1] for v in op.inputs}
    made, forward = _PuttingOff(graph), True
    for step in schedule.steps:
        if step.action is Action.FREE:
            made.free(step)
            continue
        op = graph.ops[step.index]
        if forward and op.phase is not Phase.FORWARD:
            forward = False
            made.run_all()
        if op.outputs and op.target.startswith(FUSED) and read.issuperset(op.outputs):
            made.put_off(step)
        else:
            made.run(step)
    made.run_all()
    return tuple(made.steps)
