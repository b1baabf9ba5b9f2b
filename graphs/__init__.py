"""What runs, what it costs and what it holds.

Glossary:
    value: a storage; every view of it is the same value.
    op: one kernel call of the training step.
    resident: a value no op makes; live all the time (parameters, buffers, inputs, optimizer state).
    schedule: the order in which ops run, recomputations included, and values are freed.
    budget: the bytes a schedule may hold at any step; peak: the most it does hold.
    recompute: run an op again instead of keeping its output.
    phase: forward, backward, optimizer or communication.
"""

import warnings

from planner.graphs.files import graph_from_dict, graph_to_dict, load_graph, save_graph
from planner.graphs.graph import Graph, Kind, Op, Phase, Value
from planner.graphs.instances import load_instance, read_graph
from planner.graphs.memory import EXACT, MEMORY_MODELS, Change, MemoryModel
from planner.graphs.schedule import (
    ACTIONS,
    Action,
    Clock,
    Copy,
    Schedule,
    Step,
    Subject,
    plain_schedule,
    register_action,
    schedule_from_order,
)
from planner.graphs.simulate import InvalidSchedule, Trace, simulate
from planner.graphs.snapshot import (
    Live,
    breakdown,
    live_at,
    phase_peaks,
    step_phases,
)

__all__ = [
    "ACTIONS",
    "EXACT",
    "MEMORY_MODELS",
    "Action",
    "Change",
    "Clock",
    "Copy",
    "Graph",
    "InvalidSchedule",
    "Kind",
    "Live",
    "MemoryModel",
    "Op",
    "Phase",
    "Schedule",
    "Step",
    "Subject",
    "Trace",
    "Value",
    "breakdown",
    "graph_from_dict",
    "graph_to_dict",
    "live_at",
    "load_graph",
    "load_instance",
    "phase_peaks",
    "plain_schedule",
    "read_graph",
    "register_action",
    "save_graph",
    "schedule_from_order",
    "simulate",
    "step_phases",
]


def __getattr__(name: str) -> object:
    """Know a former name until version 0.3."""
    if name == "store_all":
        warnings.warn("store_all is called plain_schedule now", DeprecationWarning, stacklevel=2)
        return plain_schedule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "graphs":  # in a checkout: be the package that is inside planner
    from planner.graphs.checkout import become

    become("graphs")
