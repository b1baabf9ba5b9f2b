"""A captured step captured again where it runs: without prices, for a signature that is known.

Knows nothing of what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

import planner.graphs.capture.chunks.rewrite  # noqa: F401 - enters itself
from planner.graphs.capture.exchange.recognized import Capacity
from planner.graphs.capture.guards.call import device_of, fake_call, keeping_of
from planner.graphs.capture.guards.paths import Path
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.lowered import Lowered, Lowering, Price, Role
from planner.graphs.capture.lowering import assemble
from planner.graphs.capture.numbers import Numbers, without_symbols
from planner.graphs.capture.passes.eager_semantics import normalized
from planner.graphs.capture.rewrites import AS_CAPTURED, Declined, rewritten
from planner.graphs.capture.sizes import by_tensor
from planner.graphs.capture.target import Target
from planner.graphs.capture.trace import trace
from planner.graphs.capture_error import CaptureError
from planner.graphs.graph import Graph
from planner.graphs.hardware import devices
from planner.graphs.torch_api.fake_tensors import FakeTensor, with_numbers
from planner.graphs.torch_api.patches import capturing
from planner.graphs.torch_api.symbolic_sizes import SymbolicSizes


@dataclass(frozen=True)
class Recaptured:
    """A step captured again in order to run it; ``numbers`` where it is for smaller sizes, too."""

    joint: Joint
    graph: Graph
    lowering: Lowering
    numbers: Numbers | None = None


@capturing()
def recapture(
    model: nn.Module,
    signature: dict[str, Any],
    loss: Callable[..., Any] | None,
    rewrite: str = AS_CAPTURED.name,
    lifted: Sequence[Path] = (),
    *,
    any_size: bool = False,
) -> Recaptured:
    """Capture again, without prices, the step a signature describes, in order to run it.

    Args:
        model: in the modes that it was captured in.
        signature: of the capture.
        loss: the callable that it was captured with.
        rewrite: which variant of the step.
        lifted: where Python holds floats that are to be inputs, not constants.
        any_size: take the sizes that may be smaller for symbols.
    """
    members = [*model.parameters(), *model.buffers()]
    mode = next((t.fake_mode for t in members if isinstance(t, FakeTensor)), None)
    home = device_of(model)
    call = fake_call(signature, mode or (with_numbers() if lifted else None), home)
    answers = signature["answers"]
    sizes = SymbolicSizes(by_tensor(signature, call)) if any_size else None
    keep = signature.get("checks", "keep") == "keep"
    joint = trace(
        model,
        call,
        loss=loss,
        answers=answers,
        lifted=lifted,
        sizes=sizes,
        checks=keep,
        keeping=keeping_of(signature),
        capacity=Capacity.of(signature),
    )
    try:
        joint, _ = rewritten(normalized(joint), rewrite)
    except Declined as reason:
        raise CaptureError(f"it cannot be computed as {rewrite!r} any more: {reason}") from reason
    symbolic = without_symbols(joint, sizes) if sizes else None
    target = Target(devices.cpu(), home.type, home.type)
    free = Price(0.0, 0, 0, 0)
    graph, lowering = assemble(
        joint,
        lambda _: free,
        target=target,
        optimizer=None,
        accumulate=signature["accumulate"],
        in_place=signature.get("in_place", False),
    )
    ops = (*lowering.ops, Lowered(Role.OPTIMIZER))  # whatever optimizer the plan counted
    numbers = symbolic.numbers(lowering) if symbolic else None
    return Recaptured(joint, graph, replace(lowering, ops=ops), numbers)
