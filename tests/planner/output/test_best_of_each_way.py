"""The rows that a sharded plan rejects: the fastest of each way to shard, and how sure that is."""

from __future__ import annotations

import math

from planner.output.sharded_plan_text import families, rejected
from planner.plan.configuration import Configuration
from planner.plan.sharded_step_plan import Alternative
from planner.plan.strategy import strategy_of

WAY = Configuration(strategy_of("fsdp"), 4, 1, 1, 8)
OTHER = Configuration(strategy_of("ddp"), 1, 4, 1, 8)


def row(
    micro_batch: int,
    seconds: float,
    *,
    planned: bool,
    bound: float | None = None,
    peak: int | None = 10,
    way: Configuration = WAY,
) -> Alternative:
    c = Configuration(way.strategy, way.shard_ranks, way.replicas, micro_batch, 8 // micro_batch)
    return Alternative(c, "", planned, planned, peak, seconds, "why", bound)


def shown(*rows: Alternative) -> list[str]:
    lines = rejected("title", families(rows)).splitlines()[2:]
    return [" ".join(line.split()[1:-1]) for line in lines]


def test_a_faster_plan_comes_before_one_whose_peak_is_known() -> None:
    rows = row(1, 9.0, planned=True, bound=9.0), row(2, 5.0, planned=True, bound=5.0, peak=None)
    assert shown(*rows) == ["batch 2 x 4, float32 - 5.00 s"]


def test_a_plan_that_fits_comes_before_a_bound_and_is_marked_by_it() -> None:
    rows = row(1, 9.0, planned=True, bound=8.99), row(2, 5.0, planned=False, bound=5.0)
    assert shown(rows[0]) == ["batch 1 x 8, float32 10 B 9.00 s"]
    assert shown(*rows) == ["batch 1 x 8, float32 10 B <= 9.00 s"]


def test_where_no_plan_is_known_what_could_be_fastest_is_a_bound() -> None:
    rows = [row(n, s, planned=False, bound=s) for n, s in ((1, 7.0), (2, 6.0), (4, 8.0))]
    rows.append(row(8, math.inf, planned=False))
    assert shown(*rows) == ["batch 2 x 4, float32 10 B >= 6.00 s"]


def test_ways_come_in_the_order_of_their_times() -> None:
    rows = row(1, 9.0, planned=True, bound=9.0), row(1, 3.0, planned=True, bound=3.0, way=OTHER)
    assert [line.rpartition(" ")[0].rpartition(" ")[2] for line in shown(*rows)] == ["3.00", "9.00"]


def test_what_fits_nowhere_says_so() -> None:
    assert shown(row(1, math.inf, planned=False)) == ["batch 1 x 8, float32 10 B no fit"]
