"""From a model and a cluster to a sharded plan: capture its units, search, say why."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from planner.byte_sizes import format_both, format_bytes
from planner.errors import BadCluster, CaptureError, InfeasibleBudget
from planner.graphs.binding import binding
from planner.graphs.hardware.cluster import Cluster
from planner.plan.configuration import Configuration
from planner.plan.sharded_step_plan import ShardedStepPlan, UnitKind
from planner.plan.step_plan import StepPlan
from planner.plan.strategy import Spread
from planner.plan.tensor_parallelism import RefusedDegree
from planner.request import Request
from planner.running.engines import engine_of
from planner.sharding.captures import Captures
from planner.sharding.configurations import WHOLE, Parted, configurations
from planner.sharding.held import with_excess
from planner.sharding.least_found import Least, least_found
from planner.sharding.margin import NO_MARGIN, Margin, margin_of, widened
from planner.sharding.on_paper import one_stage
from planner.sharding.parted.ways import Ways, ways_of
from planner.sharding.pricing import (
    CanRealize,
    Needs,
    Planned,
    peak_of,
    plan_step,
    price_recipes,
    what_fills,
)
from planner.sharding.reasons import alternatives, tensor_parallelism
from planner.sharding.samples import samples_in
from planner.sharding.search import explore
from planner.sharding.space import SearchResult, Space
from planner.solvers import Limits, Status
from planner.solvers.tuning import ANY_GAP
from planner.tensor_parallel import TensorParallel, tensor_parallel_of
from planner.textbook.pipeline import pipeline_text, possible_stages

ANY_SCHEDULE = Limits(seconds=5.0, gap=ANY_GAP)
"""Limits for finding out whether one device fits at all, which many numbers are asked for."""
MOST_RANKS = 65_536
"""Where the search for a number of devices that would do gives up."""


def fit_sharded(request: Request, budget_bytes: int) -> ShardedStepPlan:
    """Plan one training step over several devices; see ``planner.fit``."""
    start = time.perf_counter()

    cluster = request.cluster(request.world_size)
    shop = Captures(request, ways_of(request.model, _tensor_parallel(request), cluster))
    found, margin, unparted = _searched(shop, cluster, budget_bytes)
    if found.best is None:
        space = shop.space(cluster, [o.configuration for o in found.outcomes])
        least, margin = lowered(request, space, found, budget_bytes)
        if (found := least.found).best is None:
            raise _nowhere(shop, cluster, least, budget_bytes, margin, unparted=unparted)
    plan = plan_found(shop, cluster, found, budget_bytes, margin)
    return replace(plan, step=replace(plan.step, solve_seconds=time.perf_counter() - start))


def _nowhere(
    shop: Captures,
    cluster: Cluster,
    least: Least,
    budget_bytes: int,
    margin: Margin,
    *,
    unparted: str,
) -> InfeasibleBudget:
    """Say that nothing fits, and how many devices would do."""
    found = least.found
    shop.request.tell("looking for a number of devices that would do")
    room = budget_bytes - margin.size_bytes
    among = _takes(shop, [o.configuration for o in found.outcomes if not o.impossible])
    ranks = least_ranks(lambda n: _fits_on(shop, among, n, room), cluster.world_size)
    closest = with_excess(found.closest, shop.holds(cluster).bytes_of(found.closest))
    least = replace(least, found=replace(found, closest=closest))
    return fits_nowhere(least, budget_bytes, cluster, ranks, margin, unparted=unparted)


def _tensor_parallel(request: Request) -> TensorParallel | None:
    """Return what is asked of tensor parallelism.

    Raises:
        BadCluster: layers are to be parted, and ops to be measured, which parts on meta cannot be,
            or an engine to run them that does not.
    """
    asked = tensor_parallel_of(request.tensor_parallel)
    runs = engine_of(request.engine).parallelized
    if asked is None or (runs and request.costs != "measured"):
        return asked
    if asked.only_if_needed:
        return None
    if not runs:
        raise BadCluster(
            f"tensor_parallel= does not go with engine={request.engine!r} so far, which runs units "
            "whose layers are whole; leave one of them out"
        )
    raise BadCluster(
        "tensor_parallel= does not go with costs='measured': parts of layers are captured without "
        "data, and estimates would be compared with measurements; leave one of them out"
    )


def _searched(
    shop: Captures, cluster: Cluster, budget_bytes: int
) -> tuple[SearchResult, Margin, str]:
    """Search all ways in which layers may be parted, or those that part them only if needed.

    Layers are not needed in parts where states alone fill the device: these are over all ranks
    anyway. What is returned last says why layers could not be parted, if they could not.
    """
    request, ways = shop.request, shop.ways
    if not ways.only_if_needed or not ways.parted:
        among = _among(shop, cluster, ways.styles)
        return *explored(request, shop.space(cluster, among), budget_bytes), ""
    found: SearchResult | None = None
    enough = _global_batch(shop, cluster) >= cluster.world_size
    if WHOLE in ways.styles and (enough or _even(shop, cluster, WHOLE)):
        among = _among(shop, cluster, (WHOLE,))
        found, margin = explored(request, shop.space(cluster, among), budget_bytes)
        if found.best is not None or found.closest.graph.resident_bytes > budget_bytes:
            return found, margin, ""
    request.tell("looking whether it fits with layers parted over ranks")
    among = _among(shop, cluster, ways.parted)
    try:
        parted, margin = explored(request, shop.space(cluster, among), budget_bytes)
    except CaptureError as error:
        if found is None:
            raise
        return found, margin, str(error)
    return (parted if found is None else _both(found, parted)), margin, ""


def _both(whole: SearchResult, parted: SearchResult) -> SearchResult:
    """Join what two searches found, the first of which found nothing that fits."""
    closest = min((whole.closest, parted.closest), key=peak_of)
    return replace(
        parted,
        bound_seconds=min(whole.bound_seconds, parted.bound_seconds),
        outcomes=(*whole.outcomes, *parted.outcomes),
        closest=closest,
        finished=whole.finished and parted.finished,
    )


def explored(request: Request, space: Space, budget_bytes: int) -> tuple[SearchResult, Margin]:
    """Search within what a margin leaves of the budget, for plans its allocator has room for.

    Args:
        request: what is planned.
        space: its configurations.
        budget_bytes: of each rank.
    """
    room = _Room(request, space, margin_of(request, budget_bytes))
    found = explore(
        space,
        budget_bytes - room.kept.size_bytes,
        needs=room.needs(budget_bytes),
        method=request.method,
        limits=request.limits,
        tell=request.tell,
    )
    return found, room.widened(found.best or found.closest)


def lowered(
    request: Request, space: Space, found: SearchResult, budget_bytes: int
) -> tuple[Least, Margin]:
    """Look for what holds least where a search found nothing that fits; it may fit after all.

    Args:
        request: what is planned.
        space: its configurations.
        found: by the search.
        budget_bytes: of each rank.
    """
    room = _Room(request, space, margin_of(request, budget_bytes))
    least = least_found(
        space,
        found,
        budget_bytes - room.kept.size_bytes,
        needs=room.needs(budget_bytes),
        limits=request.limits,
        tell=request.tell,
    )
    return least, room.widened(least.found.best or least.found.closest)


@dataclass(frozen=True)
class _Room:
    """What is kept free for the allocator and NCCL before a plan is known, and once it is."""

    request: Request
    space: Space
    kept: Margin

    def widened(self, planned: Planned) -> Margin:
        return widened(self.kept, self.request, planned.graph, planned.schedule)

    def needs(self, budget_bytes: int) -> Needs:
        room = budget_bytes - self.kept.size_bytes

        def of(planned: Planned) -> int:
            if planned.peak_bytes > room:
                return planned.peak_bytes  # too much anyway: no compiler is asked
            lost = self.widened(planned).size_bytes - self.kept.size_bytes
            return self.space.holds(planned) + lost

        return of


def plan_found(
    shop: Captures,
    cluster: Cluster,
    found: SearchResult,
    budget_bytes: int,
    margin: Margin = NO_MARGIN,
) -> ShardedStepPlan:
    """Make the plan of what a search found.

    Args:
        shop: what was captured.
        cluster: what it was searched for.
        found: how the search ended.
        budget_bytes: of each rank.
        margin: what of it was kept free.
    """
    assert found.best is not None
    holds = shop.holds(cluster)
    best = with_excess(found.best, holds.bytes_of(found.best))
    captured, request = shop.captured(best.configuration), shop.request
    units = engine_of(request.engine).units
    step = StepPlan(
        graph=best.graph,
        schedule=best.schedule,
        budget_bytes=budget_bytes,
        status=_status(found, request.limits),
        bound_seconds=found.bound_seconds,
        method=request.method,
        signature=captured.root.signature,
        device=request.hardware.name,
        optimizer=request.optimizer_name,
        costs=request.costs,
        engine=request.engine,
        message=message(found),
        hardware=request.hardware,
        loss=request.loss,
        remarks=() if units is None else units.remarks(request.hardware.name),
    )
    return ShardedStepPlan(
        step=step,
        configuration=best.configuration,
        cluster=cluster,
        units=holds.units_of(best),
        kinds=tuple(UnitKind(k.graph, k.signature) for k in captured.kinds),
        alternatives=alternatives(found, budget_bytes - margin.size_bytes, holds.bytes_of),
        host_bytes=best.host_bytes * cluster.devices_per_node,
        margin_bytes=margin.size_bytes,
        nccl_bytes=margin.nccl_bytes,
        tensor=tensor_parallelism(_ways_told(shop, cluster), found),
    )


def _global_batch(shop: Captures, cluster: Cluster) -> int:
    said, inputs = shop.request.global_batch, shop.request.inputs
    return samples_in(inputs) * cluster.world_size if said is None else said


def _even(shop: Captures, cluster: Cluster, way: Parted) -> bool:
    """Tell whether samples divide over the ranks that see some of their own."""
    return _global_batch(shop, cluster) % (cluster.world_size // way.ranks) == 0


def _ways_told(shop: Captures, cluster: Cluster) -> Ways:
    """Return the ways with the degrees over whose ranks samples do not divide among the refused."""
    batch = _global_batch(shop, cluster)
    uneven = {way.ranks: cluster.world_size // way.ranks for way in shop.ways.styles
              if not _even(shop, cluster, way)}  # fmt: skip
    told = (
        RefusedDegree(degree, f"{batch} samples do not divide over {groups} groups of ranks")
        for degree, groups in uneven.items()
    )
    return replace(shop.ways, refused=(*shop.ways.refused, *told))


def _among(shop: Captures, cluster: Cluster, ways: Iterable[Parted]) -> tuple[Configuration, ...]:
    """Return the configurations of all ways over whose ranks the samples divide.

    Raises:
        BadCluster: they divide over the ranks of none, or a precision is unknown.
    """
    request, batch, ways = shop.request, _global_batch(shop, cluster), tuple(ways)
    even = [way for way in ways if _even(shop, cluster, way)] or ways
    try:
        return tuple(
            c
            for way in even
            for c in configurations(
                cluster.world_size,
                batch,
                devices_per_node=cluster.devices_per_node,
                precisions=request.precisions,
                offload=request.offload is not False,
                parted=way,
            )
        )
    except ValueError as error:
        raise BadCluster(str(error)) from error


def _status(found: SearchResult, limits: Limits) -> Status:
    assert found.best is not None
    met = found.bound_seconds >= found.best.seconds * (1 - max(limits.gap, 2e-6))
    return Status.OPTIMAL if met else Status.FEASIBLE


def message(found: SearchResult) -> str:
    """Say how much of the space was looked at."""
    opened = sum(o.spent is not None for o in found.outcomes)
    solved = sum(o.solved for o in found.outcomes)
    text = (
        f"{len(found.outcomes)} configurations: {opened} assembled and priced, {solved} solved op "
        "by op, the others ruled out by bounds"
    )
    return text if found.finished else f"{text}; the time was over before all were solved"


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
    proved = not unparted and all(o.bound_seconds == math.inf for o in found.outcomes)
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
        f"(precisions=('bfloat16',)), or optimizer offload"
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
        )
        for c in among
        if c.strategy.stages[-1].number == most and ranks % c.tensor_ranks == 0
        for least in islice(_spreads(c, ranks, cluster.devices_per_node), 1)
    )
    return any(_fits(c, shop.step(c, cluster), budget_bytes) for c in smallest)


def _spreads(c: Configuration, ranks: int, devices_per_node: int) -> Iterable[Spread]:
    per_node = max(1, devices_per_node // c.tensor_ranks)
    return c.strategy.spreads(ranks // c.tensor_ranks, per_node)


def _fits(c: Configuration, step: CanRealize, budget_bytes: int) -> bool:
    if any(planned.peak_bytes <= budget_bytes for planned in price_recipes(c, step)):
        return True
    return plan_step(c, step, budget_bytes, limits=ANY_SCHEDULE) is not None
