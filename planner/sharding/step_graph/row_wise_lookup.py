"""A table of embeddings in a step, its rows looked up where they are: what is sent and held."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.graphs import Kind
from planner.sharding.step_graph.builder import ROOT, Draft
from planner.sharding.step_graph.sharded_step import Layout

if TYPE_CHECKING:
    from planner.sharding.wrapped.boundary import UnitCapture


def look_up(draft: Draft, unit: int) -> None:
    """Add a table's forward: one op that makes the root's values of its call.

    Args:
        draft: with the table's rows as its weight.
        unit: its index.
    """
    capture, call = draft.capture(unit), draft.root.calls[unit]
    values, root = capture.graph.values, draft.maps[ROOT]
    reads = [root[v] for v in call.inputs]
    for v, r in zip(capture.outputs, call.outputs, strict=True):
        root[r] = draft.value(f"{draft.name(unit)}.{values[v].name}", values[v].size_bytes, _MADE)
    exchange = exchange_of(capture, draft.configuration.shard_ranks)
    kept = draft.value(f"asked.{draft.name(unit)}", exchange.asked + exchange.masks, _MADE)
    draft.maps[unit][_ASKED] = kept
    index = draft.op(
        f"look_up.{draft.name(unit)}",
        (*reads, draft.weights[unit]),
        (*(root[r] for r in call.outputs), kept),
        seconds=draft.row_wise[unit][0],
        moved_bytes=exchange.sent,
        workspace_bytes=exchange.looked_up
        + exchange.cast
        + exchange.sent
        + draft.gloo_bytes(exchange.sent),
        module=draft.module(unit),
    )
    draft.layouts.append(Layout((index,), 1, ()))


def bring_back(draft: Draft, unit: int) -> None:
    """Add a table's backward: gradients go to where the rows are, and stay there.

    Args:
        draft: with the table's forward.
        unit: its index.
    """
    call, root = draft.root.calls[unit], draft.maps[ROOT]
    group, name = draft.groups[unit], draft.name(unit)
    exchange = exchange_of(draft.capture(unit), draft.configuration.shard_ranks)
    gradient = draft.value(f"gradient_rows.{name}", group.gradient_shard, Kind.GRADIENT)
    tangents = [root[r] for r in call.tangents if r is not None]
    index = draft.op(
        f"bring_back.{name}",
        (*tangents, draft.maps[unit][_ASKED]),
        (gradient,),
        seconds=draft.row_wise[unit][1],
        moved_bytes=exchange.sent,
        workspace_bytes=exchange.sent
        + exchange.looked_up * (2 if exchange.cast else 1)
        + draft.gloo_bytes(exchange.sent),
        module=draft.module(unit),
    )
    layout = draft.layouts[unit]
    draft.layouts[unit] = replace(layout, ops=(*layout.ops, index))
    if draft.configuration.accumulation == 1:
        draft.shards.append(gradient)


_MADE = Kind.ACTIVATION
_ASKED = -1
"""Where in a table's map its ids are, all ranks': no value of its own graph."""


@dataclass(frozen=True)
class Exchange:
    """Bytes on one rank of what all ranks ask of a table together.

    ``asked`` are ids, ``sent`` the rows that are returned, ``looked_up`` those that are found, as
    they are stored, before a bag adds them up; ``cast`` is their copy in the dtype of compute, and
    ``masks`` a byte for each id.
    """

    asked: int
    sent: int
    looked_up: int
    cast: int
    masks: int


def exchange_of(capture: UnitCapture, ranks: int) -> Exchange:
    """Add up what a table's call exchanges over ranks.

    Args:
        capture: of the table.
        ranks: how many ask.
    """
    values, (weight,) = capture.graph.values, capture.parameters
    ids = ranks * math.prod(capture.signature["leaves"][0][0])
    elements = ids * weight.shape[1]
    other = weight.itemsize != weight.compute_itemsize
    return Exchange(
        asked=ranks * sum(values[v].size_bytes for v in capture.inputs),
        sent=ranks * sum(values[v].size_bytes for v in capture.outputs),
        looked_up=elements * weight.itemsize,
        cast=elements * weight.compute_itemsize if other else 0,
        masks=ids,
    )
