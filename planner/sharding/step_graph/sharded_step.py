"""A sharded step and the schedules that torch can really run of it.

A solver may order the whole step as it likes. What is executed is one schedule a unit, with each
weight kept or gathered again, and torch's own order of gathers (one unit ahead in backward) and
reductions around it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from planner.graphs import Graph, Schedule, plain_schedule, schedule_from_order
from planner.graphs.hardware.cluster import Cluster
from planner.plan.configuration import Configuration, UnitPlan
from planner.sharding.step_graph.least_held import Halves, least_held


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a unit is in the step's graph.

    ``ops[i]`` is the step's op for op ``i`` of the unit's own graph (``None`` for a gradient that
    the next unit makes), the first ``forward_ops`` of them its forward. ``gather`` are the two ops
    that make the weight, none if it is resident. A table that is looked up row by row has one op
    each way instead.
    """

    ops: tuple[int | None, ...]
    forward_ops: int
    gather: tuple[int, ...]


@dataclass(frozen=True)
class Realized:
    """What torch will run: the decisions of every unit, and the step's schedule they lead to."""

    schedule: Schedule
    units: tuple[UnitPlan, ...]


@dataclass(frozen=True)
class ShardedStep:
    """The graph of one rank's step and where its units lie in it.

    ``root_backward`` is the first op of the backward pass. ``host_bytes`` is what one rank keeps
    in its host's memory. ``row_wise`` are units that are tables looked up where their rows are.
    ``padding_bytes`` is what buffers hold beyond parameters, because ranks do not divide these.
    """

    graph: Graph
    configuration: Configuration
    cluster: Cluster
    units: tuple[str, ...]
    kind_of: tuple[int, ...]
    kinds: tuple[Graph, ...]
    layouts: tuple[Layout, ...]
    root_backward: int
    host_bytes: int
    row_wise: frozenset[int] = frozenset()
    padding_bytes: int = 0

    def floor_bytes(self) -> int:
        """Return what every schedule that torch can run holds at some moment."""
        units: defaultdict[Hashable, list[Halves]] = defaultdict(list)
        for u, layout in enumerate(self.layouts):
            if u not in self.row_wise:
                halves = layout.ops[: layout.forward_ops], layout.ops[layout.forward_ops :]
                forward, backward = (frozenset(op for op in h if op is not None) for h in halves)
                units[self.kind_of[u]].append((forward, backward))
        return least_held(self.graph, units)

    def realize(self, order: Sequence[int]) -> Realized:
        """Project an order of the step's ops on its units and rebuild what torch runs."""
        runs: dict[int, list[int]] = {}
        for position, op in enumerate(order):
            runs.setdefault(op, []).append(position)
        plans, schedules = [], dict[tuple[int, tuple[int, ...]], Schedule]()
        for u, path in enumerate(self.units):
            layout, graph = self.layouts[u], self.kinds[self.kind_of[u]]
            if u in self.row_wise:
                plain = plain_schedule(graph)
                plans.append(UnitPlan(path, self.kind_of[u], plain))
                continue
            own = tuple(_unit_order(layout, runs))
            alike = self.kind_of[u], own
            if alike not in schedules:  # as most layers are
                schedules[alike] = schedule_from_order(graph, own)
            schedule = schedules[alike]
            kept = bool(layout.gather) and len(runs[layout.gather[0]]) == 1
            plans.append(UnitPlan(path, self.kind_of[u], schedule, kept))
        return self.realize_units(plans)

    def realize_units(self, units: Sequence[UnitPlan]) -> Realized:
        """Return the step's schedule for these decisions; which tables stay, the step says."""
        ahead: dict[int, list[int]] = {}  # op -> what runs right before it
        inside = {op: u for u, layout in enumerate(self.layouts) for op in layout.ops}
        halves = [self._halves(u, plan) for u, plan in enumerate(units)]
        first = [self._first_backward(u) for u in range(len(units))]
        for u, plan in enumerate(units):
            if (gather := self.layouts[u].gather) and not plan.keep_gathered:
                start = first[u + 1] if u + 1 < len(units) else self.root_backward
                ahead.setdefault(start, []).append(gather[0])
                ahead.setdefault(first[u], []).insert(0, gather[1])
        order: list[int] = []
        started = set[tuple[int, int]]()
        for op in range(len(self.graph.ops)):
            order += ahead.get(op, ())
            if (owner := inside.get(op)) is None:
                order.append(op)
                continue
            half = int(op >= first[owner])
            if (owner, half) not in started:
                started.add((owner, half))
                order += halves[owner][half]
        plans = (replace(plan, row_wise=u in self.row_wise) for u, plan in enumerate(units))
        return Realized(schedule_from_order(self.graph, order), tuple(plans))

    def _halves(self, u: int, plan: UnitPlan) -> tuple[list[int], list[int]]:
        """Return the step's ops of a unit's schedule, forward and backward."""
        layout = self.layouts[u]
        if u in self.row_wise:
            look_up, bring_back = (op for op in layout.ops if op is not None)
            return [look_up], [bring_back]
        order = plan.schedule.order
        turn = order.index(layout.forward_ops)  # the first op of backward takes the gradient
        step_ops = [layout.ops[i] for i in order]
        forward = [op for op in step_ops[:turn] if op is not None]
        return forward, [op for op in step_ops[turn:] if op is not None]

    def _first_backward(self, u: int) -> int:
        layout = self.layouts[u]
        return next(op for op in layout.ops[layout.forward_ops :] if op is not None)


def _unit_order(layout: Layout, runs: dict[int, list[int]]) -> list[int]:
    """Return the order of a unit's own ops: what ran after its forward belongs to its backward."""
    forward, backward = layout.ops[: layout.forward_ops], layout.ops[layout.forward_ops :]
    end = max(runs[op][0] for op in forward if op is not None)
    given = [layout.forward_ops + i for i, op in enumerate(backward) if op is None]
    runs_of = [(p, i) for i, op in enumerate(layout.ops) if op is not None for p in runs[op]]
    runs_of.sort()
    ahead = [i for position, i in runs_of if position <= end]
    return [*ahead, *given, *(i for position, i in runs_of if position > end)]


__all__ = ["Layout", "Realized", "ShardedStep"]
