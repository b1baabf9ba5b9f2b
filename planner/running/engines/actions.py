"""How a program carries an action out: one row for each, in the words of ``ProgramWriter``."""

from __future__ import annotations

from collections.abc import Callable

from planner.errors import InvalidPlan
from planner.graphs import Action, Graph, Step
from planner.running.engines.copies import (
    await_arrivals,
    await_departures,
    begin_fetch,
    begin_offload,
)
from planner.running.engines.program_writer import ProgramWriter

Carry = Callable[[ProgramWriter, Step, Graph], None]


def _compute(writer: ProgramWriter, step: Step, graph: Graph) -> None:
    op = graph.ops[step.index]
    await_arrivals(writer, (*op.inputs, *op.outputs))
    await_departures(writer, op.outputs)
    writer.run(writer.lowering.ops[step.index], op.outputs)
    writer.touched = frozenset((*op.inputs, *op.outputs))


def _free(writer: ProgramWriter, step: Step, graph: Graph) -> None:
    del graph
    await_arrivals(writer, (step.index,))
    writer.free(step.index)
    await_departures(writer, (step.index,))


CARRIED_OUT: dict[Action, Carry] = {
    Action.COMPUTE: _compute,
    Action.FREE: _free,
    Action.OFFLOAD: begin_offload,
    Action.FETCH: begin_fetch,
}


def carry_out(writer: ProgramWriter, step: Step, graph: Graph) -> None:
    """Write one step of a schedule.

    Args:
        writer: of the program that the step belongs to.
        step: what is to be done.
        graph: the ops and values that its index counts.

    Raises:
        InvalidPlan: no row says how the action is carried out.
    """
    if step.action not in CARRIED_OUT:
        known = ", ".join(action.name for action in CARRIED_OUT)
        raise InvalidPlan(
            f"the schedule has a step {step.action.name!r}, which this engine cannot carry out "
            f"(it can: {known}); make the plan again with planner.fit"
        )
    CARRIED_OUT[step.action](writer, step, graph)
