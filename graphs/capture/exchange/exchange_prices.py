"""What the operator of a layer of experts holds and takes: of its calls, one after another.

Bytes are those where as many rows arrive as are planned for, seconds those where each rank gets its
even share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from planner.graphs.capture.exchange.exchange_operator import FORWARD
from planner.graphs.capture.exchange.layers import LayerSpec, likeness
from planner.graphs.capture.exchange.on_fakes import Moment, Ran, ran_on_fakes
from planner.graphs.capture.lowered import Price
from planner.graphs.costs import Priced
from planner.graphs.costs.communication import CollectiveCost
from planner.graphs.costs.measured import Memory
from planner.graphs.costs.operator_call import OperatorCall, new_storage_bytes
from planner.graphs.costs.registry import cost_model
from planner.graphs.costs.roofline import op_cost
from planner.graphs.hardware.devices import Device
from planner.graphs.torch_api.collective_ops import communicates


@dataclass(frozen=True)
class Means:
    """By which calls are priced.

    Attributes:
        device: that is planned for.
        here: whether it is at hand, so that kernels may be run.
        costs: a name of ``graphs.costs.COSTS``.
        memory: returns what each call holds beside its operands.
        collective: returns what a collective costs, from its call and what it returns.
    """

    device: Device
    here: bool
    costs: str
    memory: Callable[[Sequence[OperatorCall]], list[Memory]]
    collective: Callable[[Moment], CollectiveCost]


def exchange_prices(nodes: Iterable[fx.Node], means: Means) -> dict[fx.Node, Price]:
    """Price the operators of layers of experts; of layers that are alike one.

    Args:
        nodes: which call them.
        means: how their calls are priced.
    """
    known: dict[Any, Price] = {}
    return {node: _price(node, means, known) for node in nodes}


def _price(node: fx.Node, means: Means, known: dict[Any, Price]) -> Price:
    *given, _, spec = node.args
    told = LayerSpec.of(str(spec))
    values: list[Any] = fx.node.map_arg(given, lambda n: n.meta["val"])
    grad, inputs = (None, *values) if node.target is FORWARD else values
    alike = node.target, *likeness(told, inputs)
    if alike not in known:
        known[alike] = _price_of(told, inputs, grad, means)
    return known[alike]


def _price_of(
    told: LayerSpec, inputs: Sequence[Tensor], grad: Tensor | None, means: Means
) -> Price:
    most, even = (ran_on_fakes(told, inputs, n, grad) for n in (told.most_rows, told.even_rows))
    calls, sent = _parted(even)
    work = [op_cost(c.call.target, c.call.args, c.call.kwargs, c.outputs) for c in calls]
    called = [moment.call for moment in calls]
    seconds = cost_model(means.costs)(Priced(called, work, means.device, means.here))
    costs = list(map(means.collective, sent))
    return Price(
        sum(seconds) + sum(cost.seconds for cost in costs),
        sum(cost.flops for cost in work),
        sum(cost.moved_bytes for cost in work) + sum(cost.moved_bytes for cost in costs),
        _peak_bytes(most, means) - most.held_bytes,
    )


def _peak_bytes(ran: Ran, means: Means) -> int:
    """Return the most that is held at any moment, what a kernel holds beside it included."""
    calls, sent = _parted(ran)
    beside = means.memory([moment.call for moment in calls])
    peaks = [m.level_bytes + _beside_bytes(m, b) for m, b in zip(calls, beside, strict=True)]
    peaks += [m.level_bytes + means.collective(m).workspace_bytes for m in sent]
    return max(peaks, default=0)


def _beside_bytes(moment: Moment, memory: Memory) -> int:
    made = new_storage_bytes(moment.call, moment.outputs)
    more = max(0, sum(memory.output_bytes) - sum(made)) if memory.output_bytes else 0
    return memory.workspace_bytes + more


def _parted(ran: Ran) -> tuple[list[Moment], list[Moment]]:
    """Return the calls of kernels, and those of collectives."""
    sent = [m for m in ran.moments if communicates(m.call.target)]
    return [m for m in ran.moments if not communicates(m.call.target)], sent
