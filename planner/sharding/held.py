"""What a sharded step holds where an engine's compiler writes the code of its units.

The step is put together once more, each unit as its code runs line by line, and judged by the same
rules. Knows nothing of how a compiler is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from planner.graphs import Kind, Schedule, Value, plain_schedule, simulate
from planner.graphs.capture.optimizer_step import OptimizerLike
from planner.graphs.hardware.cluster import Cluster
from planner.plan.configuration import Configuration, UnitPlan
from planner.running.engines.engine import UnitsEngine
from planner.running.engines.kept_promise import EXCESS, MARGIN
from planner.sharding.pricing import Planned
from planner.sharding.step_graph.assembly import assemble
from planner.sharding.wrapped.boundary import UnitCapture
from planner.sharding.wrapped.engine_units import run_by_engine
from planner.sharding.wrapped.unit_captures import ModelCapture

Key = tuple[Configuration, tuple[object, ...]]


class Holds(Protocol):
    """Tells what plans hold as they really run."""

    def bytes_of(self, planned: Planned) -> int:
        """Return the most bytes that a plan is taken to hold, no less than its tensors."""

    def units_of(self, planned: Planned) -> tuple[UnitPlan, ...]:
        """Return the units of a plan, each with what its code may hold."""


class AsPlanned:
    """Units run op by op, and hold what their schedules say."""

    def bytes_of(self, planned: Planned) -> int:
        """Return the bytes of the tensors."""
        return planned.peak_bytes

    def units_of(self, planned: Planned) -> tuple[UnitPlan, ...]:
        """Return them as they are: there is no code."""
        return planned.units


@dataclass(frozen=True)
class AsCompiled:
    """Units run as a compiler writes them, which is asked of each schedule of a unit once.

    Args:
        engine: whose compiler is asked.
        captured: the units of a configuration.
        cluster: what the step is for.
        optimizer: that steps the parameters.
    """

    engine: UnitsEngine
    captured: Callable[[Configuration], ModelCapture]
    cluster: Cluster
    optimizer: OptimizerLike | None
    _written: dict[tuple[int, Schedule], UnitCapture] = field(default_factory=dict, repr=False)
    _known: dict[Key, int] = field(default_factory=dict, repr=False)

    def bytes_of(self, planned: Planned) -> int:
        """Return what the code holds, a margin included."""
        key = planned.configuration, planned.units
        if key not in self._known:
            self._known[key] = self._asked(planned)
        return max(planned.peak_bytes, self._known[key])

    def units_of(self, planned: Planned) -> tuple[UnitPlan, ...]:
        """Return each with what the code of its schedule holds, parameters included."""
        kinds = self.captured(planned.configuration).kinds

        def held(unit: UnitPlan) -> UnitPlan:
            if unit.row_wise:  # a table, whose rows are looked up where they are
                return unit
            written = self._as_written(kinds[unit.kind], unit.schedule)
            return replace(unit, held_bytes=written.signature["compiled"]["held_bytes"])

        return tuple(map(held, planned.units))

    def _asked(self, planned: Planned) -> int:
        captures = self.captured(planned.configuration)
        kinds, units = list[UnitCapture](), []
        for unit in planned.units:
            kind = captures.kinds[unit.kind]
            written = kind if unit.row_wise else self._as_written(kind, unit.schedule)
            if not any(written is k for k in kinds):
                kinds.append(written)
            place = next(i for i, k in enumerate(kinds) if k is written)
            plain = plain_schedule(written.graph)
            units.append(replace(unit, kind=place, schedule=plain))
        kind_of = tuple(unit.kind for unit in units)
        written_captures = replace(captures, kinds=tuple(kinds), kind_of=kind_of)
        step = assemble(written_captures, planned.configuration, self.cluster, self.optimizer)
        peak = simulate(step.graph, step.realize_units(units).schedule).peak_bytes
        return peak + int(MARGIN * max(0, peak - step.graph.resident_bytes))

    def _as_written(self, kind: UnitCapture, schedule: Schedule) -> UnitCapture:
        key = id(kind), schedule
        if key not in self._written:
            assert kind.engine_unit is not None, "its engine captured it"
            found = self.engine.held(kind.engine_unit, schedule)
            self._written[key] = replace(run_by_engine(kind, found), table=False)
        return self._written[key]


def with_excess(planned: Planned, held_bytes: int) -> Planned:
    """Count what units hold beyond their schedules' own values, as a value of its own.

    Args:
        planned: a plan.
        held_bytes: what it is taken to hold.
    """
    excess = held_bytes - planned.peak_bytes
    if excess <= 0:
        return planned
    values = (*planned.graph.values, Value(EXCESS, excess, Kind.ACTIVATION))
    graph = replace(planned.graph, values=values)
    return replace(planned, graph=graph, trace=simulate(graph, planned.schedule))
