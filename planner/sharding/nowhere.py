"""What is said where nothing fits over several devices: how close it came, how many would do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice

from planner.byte_sizes import format_both, format_bytes
from planner.errors import BadCluster, CaptureError, InfeasibleBudget
from planner.graphs import Kind
from planner.graphs.binding import binding
from planner.graphs.capture.rewrites import Declined
from planner.graphs.hardware.cluster import Cluster
from planner.loss_chunks import KEEP, LOGITS, names
from planner.plan.chunk_notes import HINTED, MOST_LOGITS, WORTH_SAYING
from planner.plan.configuration import Configuration
from planner.plan.strategy import Spread
from planner.running.engines import engine_of
from planner.sharding.captures import Captures
from planner.sharding.held import with_excess
from planner.sharding.least_found import Least
from planner.sharding.margin import NO_MARGIN, Margin
from planner.sharding.on_paper import one_stage
from planner.sharding.pricing import CanRealize, Planned, plan_step, price_recipes, what_fills
from planner.sharding.search import ON_HOST
from planner.solvers import Limits
from planner.solvers.tuning import ANY_GAP
from planner.textbook.pipeline import pipeline_text, possible_stages

ANY_SCHEDULE = Limits(seconds=5.0, gap=ANY_GAP)
"""Limits for finding out whether one device fits at all, which many numbers are asked for."""
MOST_RANKS = 65_536
"""Where the search for a number of devices that would do gives up."""


def nowhere(
    shop: Captures,
    cluster: Cluster,
    least: Least,
    budget_bytes: int,
    margin: Margin,
    *,
    unparted: str,
) -> InfeasibleBudget:
    """Return the error that says that nothing fits, and how many devices would do.

    Args:
        shop: what was captured.
        cluster: what was searched for.
        least: how the search ended.
        budget_bytes: of each rank.
        margin: what of it was kept free.
        unparted: why layers could not be parted over ranks, if they could not.
    """
    found = least.found
    shop.request.tell("looking for a number of devices that would do")
    room = budget_bytes - margin.size_bytes
    among = _takes(shop, [o.configuration for o in found.outcomes if not o.impossible])
    ranks = least_ranks(lambda n: _fits_on(shop, among, n, room), cluster.world_size)
    closest = with_excess(found.closest, shop.holds(cluster).bytes_of(found.closest))
    least = replace(least, found=replace(found, closest=closest))
    error = fits_nowhere(least, budget_bytes, cluster, ranks, margin, unparted=unparted)
    return error.with_more(_in_chunks(shop, cluster, closest))


def _in_chunks(shop: Captures, cluster: Cluster, closest: Planned) -> str:
    """Say what the closest configuration would hold with its loss in chunks, if much less.

    Of the fixed recipes the one that holds least stands for it, which takes no solver.
    """
    request, c = shop.request, closest.configuration
    values = closest.graph.values
    large = max((v.size_bytes for v in values if v.kind in _COMPUTED), default=0)
    by_itself = engine_of(request.engine).units is not None or c.tensor_ranks > 1
    worth = MOST_LOGITS * large >= WORTH_SAYING * closest.peak_bytes
    if request.in_chunks or by_itself or not worth:
        return ""
    request.tell("looking whether the loss in chunks would hold less")
    for logits in LOGITS:
        variant = replace(shop, rewrite=names(HINTED, logits)[0])
        try:
            least = next(price_recipes(c, variant.step(c, cluster))).peak_bytes
        except (Declined, CaptureError):
            continue
        if closest.peak_bytes - least < WORTH_SAYING * closest.peak_bytes:
            return ""
        said = f"loss_chunks={HINTED}" + f", logits={logits!r}" * (logits != KEEP)
        return (
            f" Or compute the loss in chunks: with {said} the same configuration holds "
            f"{format_both(least)}, all else recomputed."
        )
    return ""


_COMPUTED = (Kind.ACTIVATION, Kind.GRADIENT, Kind.OUTPUT)


def fits_nowhere(
    least: Least,
    budget_bytes: int,
    cluster: Cluster,
    ranks: int | None,
    margin: Margin = NO_MARGIN,
    *,
    unparted: str = "",
) -> InfeasibleBudget:
    """Make the error that says what was asked, how close it came, and how many devices would do.

    Args:
        least: how the search ended.
        budget_bytes: of each rank.
        cluster: what was searched for.
        ranks: how many devices would do, if any number does.
        margin: what of the budget was kept free.
        unparted: why layers could not be parted over ranks, if they could not.
    """
    found, closest = least.found, least.found.closest
    proved = not unparted and found.bound_seconds == math.inf
    needed = (
        f"{ranks} such devices would do"
        if ranks is not None
        else f"not even {MOST_RANKS:,} such devices would do: a larger device is needed, or a "
        "smaller micro-batch is impossible; shorten the sequence or split the model's largest unit"
    )
    kept = margin.size_bytes
    free = f", {format_bytes(kept)} of it kept free for NCCL and the allocator" if kept else ""
    text = (
        f"No way to shard and recompute was found within {format_both(budget_bytes)} a rank on "
        f"{cluster}{free}{' (proved for every configuration)' if proved else ''}. The closest is "
        f"{closest.configuration} with {format_both(closest.peak_bytes)}"
        f"{_how_close(least)}: {what_fills(closest, budget_bytes - kept)}. Next: {needed}, with a "
        "global batch of at least as many samples; then lower precision "
        f"(precisions=('bfloat16',)), or {_offload(least, cluster)}"
        f"{'; or reserve=, which says otherwise what is kept free' if kept else ''}."
    )
    if any(o.configuration.tensor_ranks > 1 for o in found.outcomes):
        own = closest.configuration
        possible = possible_stages(own.world_size // own.tensor_ranks, len(closest.units))
        text += f" {pipeline_text(one_stage(closest), budget_bytes - kept, possible)}."
    if unparted:
        text += f" Layers cannot be parted over ranks, either: {unparted}"
    found_at = binding(closest.graph, closest.schedule, closest.trace)
    return InfeasibleBudget(budget_bytes, closest.peak_bytes + kept, found_at, text)


def _offload(least: Least, cluster: Cluster) -> str:
    """Say that states may move to the host, or why they could not."""
    outcomes = least.found.outcomes
    too_many = next((o.fills for o in outcomes if o.fills.startswith(ON_HOST)), "")
    if not too_many:
        return "optimizer offload"
    on = f"for each of {cluster.devices_per_node} on a node"
    return f"more of a node's host (offload= says how much; {too_many}, {on})"


def _how_close(least: Least) -> str:
    """Say how far the least plan found may be from the least there is."""
    found, floor = least.found.closest.peak_bytes, least.floor_bytes
    if floor >= found:
        return ", the least there is (proved)"
    cut = "" if least.finished else ", when the time was over"
    return f", the least found{cut} (no configuration holds less than {format_bytes(floor)})"


def least_ranks(fits: Callable[[int], bool | None], world_size: int) -> int | None:
    """Return the least number of ranks above ``world_size`` that fits, ``None`` if there is none.

    ``fits`` says ``None`` where so many devices cannot be had (they do not fill their nodes).

    >>> least_ranks(lambda n: n >= 24 if n % 8 == 0 or n < 8 else None, 4)
    24
    """
    failed, worked = world_size, world_size * 2
    while not fits(worked):
        failed, worked = worked, worked * 2
        if worked > MOST_RANKS:
            return None
    while worked - failed > 1:
        middles = sorted(range(failed + 1, worked), key=lambda n: abs(2 * n - failed - worked))
        answers = ((n, said) for n in middles if (said := fits(n)) is not None)
        middle, said = next(answers, (failed, False))
        if middle == failed:
            break
        failed, worked = (failed, middle) if said else (middle, worked)
    return worked


def _takes(shop: Captures, among: Sequence[Configuration]) -> list[Configuration]:
    """Leave out configurations of fewer samples than the model takes; not all were captured."""
    whole = {c.micro_batch: c for c in among if c.tensor_ranks == 1}
    fewest = next((n for n in sorted(whole) if not shop.impossible(whole[n])), 1)
    return [c for c in among if c.micro_batch >= fewest]


def _fits_on(
    shop: Captures, among: Sequence[Configuration], ranks: int, budget_bytes: int
) -> bool | None:
    """Say whether one sample a rank fits on so many, sharded by what shards most."""
    try:
        cluster = shop.request.cluster(ranks)
    except BadCluster:
        return None
    most = max(c.strategy.stages[-1].number for c in among)
    fewest = min(c.micro_batch for c in among)  # fewer the model may not take
    smallest = dict.fromkeys(
        replace(
            c,
            shard_ranks=least.shard_ranks,
            replicas=least.replicas,
            micro_batch=fewest,
            accumulation=1,
            staying=(),
        )
        for c in among
        if c.strategy.stages[-1].number == most and ranks % c.tensor_ranks == 0
        for least in islice(_spreads(c, ranks, cluster.devices_per_node), 1)
    )
    steps = ((c, shop.step(c, cluster)) for c in smallest)
    host_bytes = shop.host_bytes(cluster)
    return any(_fits(c, s, budget_bytes) for c, s in steps if s.host_bytes <= host_bytes)


def _spreads(c: Configuration, ranks: int, devices_per_node: int) -> Iterable[Spread]:
    per_node = max(1, devices_per_node // c.tensor_ranks)
    return c.strategy.spreads(ranks // c.tensor_ranks, per_node)


def _fits(c: Configuration, step: CanRealize, budget_bytes: int) -> bool:
    if any(planned.peak_bytes <= budget_bytes for planned in price_recipes(c, step)):
        return True
    return plan_step(c, step, budget_bytes, limits=ANY_SCHEDULE) is not None
