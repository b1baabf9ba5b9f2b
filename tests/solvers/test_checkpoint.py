"""``torch.utils.checkpoint`` as torch runs it: whole blocks, when their backward begins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.graphs import (
    Graph,
    Op,
    Phase,
    Value,
    plain_schedule,
    schedule_from_order,
    simulate,
)
from planner.solvers import Status, solve
from planner.solvers.baselines.blocks import find_blocks
from planner.solvers.baselines.checkpoint import order_of, orders


def tower(blocks: int, inner: int = 3) -> Graph:
    """Blocks of so many ops of a byte and a second each; backward reads all that each made.

    The last op is a loss outside the blocks, whose value nothing reads.
    """
    values, ops = [Value("x", 1)], list[Op]()
    for block in range(blocks):
        for step in range(inner):
            ops.append(Op(f"{block}.{step}", "f", (len(ops),), (len(values),), 1.0,
                          module=f"h.{block}.{step}"))  # fmt: skip
            values.append(Value(f"{block}.{step}", 1))
    count = len(ops)
    ops.append(Op("loss", "f", (count,), (count + 1,), 1.0))
    values.append(Value("loss", 1))
    for i in reversed(range(count)):
        values.append(Value(f"g{i}", 1))
        reads = (i + 1, len(values) - 2) if i < count - 1 else (i + 1,)
        ops.append(Op(f"b{i}", "b", reads, (len(values) - 1,), 1.0, phase=Phase.BACKWARD))
    return Graph(tuple(ops), tuple(values), frozenset({len(values) - 1}))


def test_a_block_runs_again_as_a_whole_and_stops_at_the_last_thing_that_is_needed() -> None:
    graph = tower(2)
    order = order_of(graph, find_blocks(graph))
    # ops 2 and 5 make what the next block, or the loss, reads: it is kept
    assert order == [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 8, 9, 10, 0, 1, 11, 12]


@pytest.mark.parametrize("blocks", [2, 4, 8])
def test_its_peak_is_the_boundaries_and_one_block(blocks: int) -> None:
    graph = tower(blocks)
    trace = simulate(graph, schedule_from_order(graph, order_of(graph, find_blocks(graph))))
    # input, boundaries, what the last block makes again, and two gradients
    assert trace.peak_bytes == 1 + blocks + 2 + 1
    assert trace.seconds == graph.seconds + 2 * blocks


def test_late_recomputation_holds_no_more() -> None:
    graph = tower(6, inner=4)
    peaks = [simulate(graph, schedule_from_order(graph, o)).peak_bytes
             for o in orders(graph, find_blocks(graph))]  # fmt: skip
    least = min(peaks)
    assert solve(graph, least, method="checkpoint").status is Status.FEASIBLE
    assert solve(graph, least - 1, method="checkpoint").schedule is None
    assert solve(graph, least, method="blocks_uniform").schedule is not None


def test_without_blocks_it_says_so() -> None:
    tall = tower(2)
    bare = Graph(tuple(replace(op, module="") for op in tall.ops), tall.values, tall.outputs)
    peak = simulate(bare, plain_schedule(bare)).peak_bytes
    assert solve(bare, peak, method="checkpoint").status is Status.OPTIMAL  # nothing runs again
    found = solve(bare, peak - 1, method="checkpoint")
    assert found.schedule is None
    assert "no op has a module path like h.0" in found.message
    assert solve(tall, peak - 1, method="checkpoint").schedule is not None
