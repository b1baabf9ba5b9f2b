"""How a program writes copies to the host and back: begun at one step, waited for at another.

The calls are those of ``planner.running.host_copies``; what a value is, and when it may be read, is
that of ``graphs.simulate``.
"""

from __future__ import annotations

from collections.abc import Iterable

from planner.errors import InvalidPlan
from planner.graphs import Graph, Step
from planner.running.engines.program_writer import Away, ProgramWriter
from planner.running.host_copies import arrived, fetch, left, send

HOST = "host"
"""The first of what a program keeps copies by; the second is a value, or ``BLOCK``."""
BLOCK = "block"


def begin_offload(writer: ProgramWriter, step: Step, graph: Graph) -> None:
    """Write the beginning of a copy out.

    Args:
        writer: of the program that the step belongs to.
        step: what is to be done.
        graph: whose values its index counts.

    Raises:
        InvalidPlan: the value is none that may leave.
    """
    host = writer.host
    if step.index not in host.movable or host.open_block is None:
        raise InvalidPlan(
            f"the schedule offloads {graph.values[step.index].name!r}, which is not the step's own "
            "to move; make the plan again with planner.fit"
        )
    key, value = (HOST, BLOCK), step.index
    if not host.opened:
        writer.env[key] = writer.graph.call_function(host.open_block)
        host.opened = True
    root, offset = writer.root(value), host.layout.offset_bytes[host.step]
    size = graph.values[value].size_bytes
    sent = (writer.kept(key), offset, size, writer.get(root))
    writer.env[HOST, value] = writer.graph.call_function(send, sent)
    host.away[value] = Away(root)


def begin_fetch(writer: ProgramWriter, step: Step, graph: Graph) -> None:
    """Write the beginning of a copy back.

    Args:
        writer, step, graph: as for ``begin_offload``.
    """
    del graph
    key = HOST, step.index
    writer.env[key] = writer.graph.call_function(fetch, (writer.kept(key),))
    writer.host.away[step.index].returns = True


def await_arrivals(writer: ProgramWriter, values: Iterable[int]) -> None:
    """Write what waits for values that come back, and have them live from here on.

    Args:
        writer: of the program.
        values: that are read, or dropped.
    """
    for v in values:
        if v in writer.host.away and writer.host.away[v].returns:
            made = writer.graph.call_function(arrived, (writer.kept((HOST, v)),))
            writer.env[writer.host.away.pop(v).root] = made


def await_departures(writer: ProgramWriter, values: Iterable[int]) -> None:
    """Write what waits for values that are being copied out.

    Args:
        writer: of the program.
        values: that are dropped, or made anew.
    """
    for v in values:
        if v in writer.host.away and writer.host.away[v].leaves:
            writer.graph.call_function(left, (writer.kept((HOST, v)),))
            writer.host.away[v].leaves = False
