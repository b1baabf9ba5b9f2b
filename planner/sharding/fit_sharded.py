"""From a model and a cluster to a sharded plan: capture its units, search, say why."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace

from planner.errors import BadCluster, CaptureError
from planner.graphs.hardware.cluster import Cluster
from planner.graphs.torch_api.garbage import only_new_collected
from planner.plan.configuration import Configuration
from planner.plan.sharded_step_plan import ShardedStepPlan, UnitKind
from planner.plan.step_plan import StepPlan
from planner.plan.tensor_parallelism import RefusedDegree
from planner.request import Request
from planner.request_notes import ESTIMATED, beyond_the_device, unmeasured_times
from planner.running.engines import engine_of
from planner.sharding.captures import Captures
from planner.sharding.configurations import WHOLE, Parted, configurations
from planner.sharding.explored import explored, lowered
from planner.sharding.held import with_excess
from planner.sharding.loss_variants import best_variant
from planner.sharding.margin import NO_MARGIN, Margin
from planner.sharding.nowhere import nowhere
from planner.sharding.parted.ways import Ways, ways_of
from planner.sharding.pricing import peak_of
from planner.sharding.reasons import alternatives, tensor_parallelism
from planner.sharding.samples import samples_in
from planner.sharding.space import SearchResult
from planner.solvers import Limits, Status
from planner.tensor_parallel import TensorParallel, tensor_parallel_of


@only_new_collected()
def fit_sharded(request: Request, budget_bytes: int) -> ShardedStepPlan:
    """Plan one training step over several devices; see ``planner.fit``."""
    start = time.perf_counter()
    if request.loss_chunks == 1:
        plan = _variant(Captures(request, _ways(request)), budget_bytes)
        assert plan is not None, "any is good enough"
    else:
        shop = Captures(request, _ways(request))

        def one(part: Request, name: str, below_seconds: float) -> ShardedStepPlan | None:
            variant = replace(shop, request=part, rewrite=name)
            return _variant(variant, budget_bytes, below_seconds)

        plan = best_variant(request, one)
    return replace(plan, step=replace(plan.step, solve_seconds=time.perf_counter() - start))


def _ways(request: Request) -> Ways:
    cluster = request.cluster(request.world_size)
    return ways_of(request.model, _tensor_parallel(request), cluster)


def _variant(
    shop: Captures, budget_bytes: int, below_seconds: float = math.inf
) -> ShardedStepPlan | None:
    """Plan one variant of a step; ``None`` if it takes no less than so many seconds.

    Args:
        shop: what is captured, its root rewritten so.
        budget_bytes: of each rank.
        below_seconds: what a plan has to take less than.
    """
    request = shop.request
    cluster = request.cluster(request.world_size)
    found, margin, unparted = _searched(shop, cluster, budget_bytes, below_seconds)
    if found.best is None and below_seconds < math.inf:
        return None
    if found.best is None:
        space = shop.space(cluster, [o.configuration for o in found.outcomes])
        least, margin = lowered(request, space, found, budget_bytes)
        if (found := least.found).best is None:
            raise nowhere(shop, cluster, least, budget_bytes, margin, unparted=unparted)
    return plan_found(shop, cluster, found, budget_bytes, margin)


def _tensor_parallel(request: Request) -> TensorParallel | None:
    """Return what is asked of tensor parallelism.

    Raises:
        BadCluster: layers are to be parted, and ops to be measured, which parts on meta cannot be,
            or an engine to run them that does not.
    """
    asked = tensor_parallel_of(request.tensor_parallel)
    runs, chunked = engine_of(request.engine).parallelized, request.loss_chunks != 1
    if asked is None or (runs and request.costs != "measured" and not chunked):
        return asked
    if asked.only_if_needed:
        return None
    if chunked:
        raise BadCluster(
            "tensor_parallel= does not go with loss_chunks= so far, whose head and loss are whole "
            "on every rank; leave one of them out"
        )
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
    shop: Captures, cluster: Cluster, budget_bytes: int, below_seconds: float
) -> tuple[SearchResult, Margin, str]:
    """Search all ways in which layers may be parted, or those that part them only if needed.

    Layers are not needed in parts where states alone fill the device: these are over all ranks
    anyway. What is returned last says why layers could not be parted, if they could not.
    """
    request, ways = shop.request, shop.ways
    if not ways.only_if_needed or not ways.parted:
        among = _among(shop, cluster, ways.styles)
        space = shop.space(cluster, among)
        return *explored(request, space, budget_bytes, below_seconds), ""
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
    program = captured.program
    units = engine_of(request.engine).units
    unmeasured = tuple(unmeasured_times(request))
    of_units = () if units is None else units.remarks(request.hardware.name)
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
        costs=ESTIMATED if unmeasured else request.costs,
        engine=request.engine,
        rewrite=shop.rewrite,
        message=message(found),
        hardware=request.hardware,
        loss=request.loss,
        remarks=(*beyond_the_device(request, budget_bytes), *unmeasured, *of_units),
    )
    return ShardedStepPlan(
        step=step,
        configuration=best.configuration,
        cluster=cluster,
        units=holds.units_of(best),
        kinds=tuple(UnitKind(k.graph, k.signature) for k in captured.kinds),
        root=None if program is None else UnitKind(program.graph, program.signature),
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
