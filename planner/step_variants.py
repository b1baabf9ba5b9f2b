"""The variants of a step among which a plan chooses: as it is captured, or its loss in chunks.

Knows what the engine that is asked for can capture, and refuses the rest. Knows nothing of
schedules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.allocator_budget import least_budget, runs
from planner.byte_sizes import format_both
from planner.errors import BadRequest
from planner.graphs import Graph, plain_schedule, simulate
from planner.graphs.expert_capacity import CAPACITY_FACTOR
from planner.loss_chunks import AUTO, KEEP, names, refused
from planner.plan.advice import cut_short
from planner.plan.chunk_notes import WORTH_SAYING, hinted, worth_trying
from planner.request import Request
from planner.solvers.api import floor_bytes
from planner.solvers.minimum_budget import proven_floor

if TYPE_CHECKING:
    from planner.graphs.capture.training_step import Captured

AS_CAPTURED = "as_captured"
OF_A_CAPTURE = 0.5
"""Which part of the time of a capture one in chunks takes at most: its trace is there."""
UNTRIED = (
    " Whether less would do with the loss in chunks (loss_chunks=) was not tried: the limit in "
    "seconds left no time for it."
)


def captured_step(request: Request, rewrite: str = "as_captured") -> Captured:
    """Capture the step that a person asked for, as the graph that its engine will run.

    Raises:
        CaptureError: the step cannot be captured.
        BadRequest: the engine does not run what the model is, or moves no values.
    """
    from planner.graphs.capture.placed import is_parallelized
    from planner.running.engines import engine_of  # torch: only where something is captured

    engine = engine_of(request.engine)
    chunked = request.mlp_chunks != 1
    refuse_for_engine(request.engine, moves=request.host is not None, chunks=chunked)
    if not engine.parallelized and is_parallelized(request.model):
        raise BadRequest(
            f"engine={request.engine!r} is for models that are on one device so far, and this one "
            "is parallelized over ranks: leave engine= out"
        )
    found = engine.captured(request, rewrite)
    if request.capacity_factor != CAPACITY_FACTOR and "capacity_factor" not in found.signature:
        raise BadRequest(
            f"capacity_factor={request.capacity_factor} would have no effect: the step sends no "
            "tokens to experts of other ranks in numbers that the router decides; leave it out"
        )
    return found


def refuse_for_engine(name: str, *, moves: bool = False, chunks: bool = False) -> None:
    """Refuse what an engine does not do so far.

    Args:
        name: of the engine.
        moves: values or states may move to the host.
        chunks: MLPs are computed in chunks.

    Raises:
        BadRequest: the engine does not do that.
        UnknownEngine: there is none of that name.
    """
    from planner.running.engines import engine_of  # torch: only where something is captured

    engine = engine_of(name)
    if moves and not engine.moves_values:
        raise BadRequest(f"offload= is not for engine={name!r} so far: leave one of them out")
    if chunks and engine.settle is not None:
        raise BadRequest(f"mlp_chunks= is not for engine={name!r} so far: leave one of them out")


def captured_variant(request: Request) -> Captured:
    """Capture the step that a person asked for, its loss in as many chunks as they said.

    Of the forms that a loss in chunks may have it is the one whose plain step holds least.

    Raises:
        CaptureError: the step cannot be captured.
        BadRequest: its loss cannot be had so, or the number of chunks was left to a plan.
    """
    if request.loss_chunks == AUTO:
        raise BadRequest(
            f'loss_chunks="{AUTO}" lets a plan choose for its budget: here say a number, such as 8'
        )
    return min(captured_variants(request), key=_plain_peak)


def variant_of(whole: Captured, rewrite: str) -> Captured:
    """Return a variant of a captured step, by its name.

    Raises:
        BadRequest: the step has none in the engine that it was captured for.
    """
    from planner.graphs.capture.rewrites import Declined

    if rewrite == whole.rewrite:
        return whole
    assert whole.variant is not None, "it was captured"
    try:
        return whole.variant(rewrite)
    except Declined as reason:
        raise BadRequest(
            f"the step has no variant {rewrite!r} in this engine: {reason}"
        ) from reason


def captured_variants(request: Request) -> list[Captured]:
    """Capture all variants of a step among which its loss in chunks lets a plan choose.

    Where a plan may choose the number, the step as it is comes first. Left out is what is never
    better: what takes no less time than another that, with every op run once, holds no more than
    what every schedule of it holds.

    Raises:
        CaptureError: the step cannot be captured.
        BadRequest: its loss cannot be had in the chunks that were asked for.
    """
    whole = captured_step(request)
    if not request.in_chunks:
        return [whole]
    variants, as_it_is = _in_chunks(whole, request), whole
    if request.loss_chunks == AUTO:
        as_it_is = _with_its_loss(whole, request)
        variants = [as_it_is, *variants]
    peaks = [(v.graph.seconds, _plain_peak(v)) for v in variants]

    def is_beaten(variant: Captured) -> bool:
        floor, seconds = floor_of(request)(variant.graph), variant.graph.seconds
        return any(other < seconds and peak <= floor for other, peak in peaks)

    return [v for v in variants if v is as_it_is or not is_beaten(v)]


def floor_of(request: Request) -> Callable[[Graph], int]:
    """Return what says which bytes every schedule holds: what may move can go below the others."""
    return proven_floor if request.host is None else floor_bytes


def _plain_peak(captured: Captured) -> int:
    """Return what a step holds with every op run once."""
    return simulate(captured.graph, plain_schedule(captured.graph)).peak_bytes


def refuse_asked(request: Request, what: str) -> None:
    """Refuse what speaks of many budgets, where the bytes of each schedule have to be asked for.

    Args:
        request: whose engine it is.
        what: is refused.

    Raises:
        BadRequest: what a schedule holds is the engine's compiler's to say.
    """
    from planner.running.engines import engine_of  # torch: only where something is captured

    if engine_of(request.engine).settle is not None:
        raise BadRequest(
            f"{what} is not for engine={request.engine!r} so far, whose compiler says what each "
            "schedule holds: plan with planner.fit, one budget and size at a time"
        )


def least_in_chunks(
    least_bytes: int, whole: Captured, request: Request, capture_seconds: float = 0.0
) -> str:
    """Say which budget would be known to work with the loss in chunks, if a smaller one would.

    Args:
        least_bytes: the least budget known to work as it is.
        whole: the step as it was captured.
        request: which chunks it asks for, and within which limits.
        capture_seconds: what capturing the step took.
    """
    from planner.running.engines import engine_of  # torch: only where something is captured

    if request.in_chunks or whole.rewrite != AS_CAPTURED:
        return ""
    if request.limits.seconds < OF_A_CAPTURE * capture_seconds:
        return UNTRIED if worth_trying(whole, least_bytes) else ""
    if (found := hinted(whole)) is None:
        return ""
    request.tell("looking for the least budget with the loss in chunks")
    chunks, how = found
    if (least_asked := engine_of(request.engine).least) is not None:
        needed, cut = least_asked(chunks, request), ""
    else:
        least, needed = least_budget(chunks.graph, request, thorough=False)
        cut = cut_short(least)
    if least_bytes - needed < WORTH_SAYING * least_bytes:
        return ""
    return (
        f" Or compute the loss in chunks: with {how} the least budget known to work is "
        f"{format_both(needed)}{cut}."
    )


def variants_among(whole: Captured, request: Request, budget_bytes: int) -> list[Captured]:
    """Return the variants among which a plan chooses; if it may, a step that fits stays as it is.

    Args:
        whole: the step as it was captured.
        request: which chunks it asks for.
        budget_bytes: what the step may hold.

    Raises:
        BadRequest: the loss was asked for in chunks and cannot be had so.
    """
    if request.loss_chunks != AUTO:
        return _in_chunks(whole, request)
    as_it_is = _with_its_loss(whole, request)
    if runs(as_it_is.graph, plain_schedule(as_it_is.graph), budget_bytes, request):
        return [as_it_is]
    return [as_it_is, *_in_chunks(whole, request)]


def _with_its_loss(whole: Captured, request: Request) -> Captured:
    """Return a step whose loss is as it was captured, its MLPs in the chunks that were asked for.

    Raises:
        BadRequest: they cannot be had.
    """
    if request.mlp_chunks == 1:
        return whole
    return _in_chunks(whole, replace(request, loss_chunks=1, logits=KEEP))[0]


def _in_chunks(whole: Captured, request: Request) -> list[Captured]:
    """Return the variants of a step with its loss in chunks, none if only a plan may choose them.

    Raises:
        BadRequest: they were asked for and there is none.
    """
    from planner.graphs.capture.rewrites import Declined

    assert whole.variant is not None, "engines that cannot rewrite a step were refused"
    variants: list[Captured] = []
    reasons: list[str] = []
    for name in names(request.loss_chunks, request.logits, request.mlp_chunks):
        try:
            variants.append(whole.variant(name))
        except Declined as reason:
            reasons.append(str(reason))
    if not variants and request.loss_chunks != AUTO:
        raise refused(request.loss_chunks, reasons[0], request.mlp_chunks)
    return variants
