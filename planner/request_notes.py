"""What a plan says of a request that could not be followed, or that asks for what is not there."""

from __future__ import annotations

from collections.abc import Iterator

from planner.byte_sizes import format_both
from planner.request import Request

ESTIMATED, MEASURED = "roofline", "measured"


def unmeasured_times(request: Request) -> Iterator[str]:
    """Say that times were to be measured, where no kernel could be run.

    Args:
        request: with what costs, of which model, for which device.
    """
    from planner.graphs.capture.call_arguments import arguments_of
    from planner.graphs.capture.training_step import has_data, target_of

    if request.costs != MEASURED:
        return
    call = arguments_of(request.inputs, request.targets)
    _, at_hand = target_of(request.model, call, request.hardware)
    if not at_hand:
        yield f"nothing was measured (costs=): the model is not on {request.hardware.name} here"
    elif not has_data(request.model):
        yield "nothing was measured (costs=): the model has no data"


def beyond_the_device(request: Request, budget_bytes: int) -> Iterator[str]:
    """Say that a budget is more than the device has.

    Args:
        request: for which device.
        budget_bytes: the budget.
    """
    if budget_bytes > request.hardware.memory_bytes:
        has = format_both(request.hardware.memory_bytes)
        yield f"the budget is more than {request.hardware.name} has, which is {has}"
