"""What a budget on an accelerator keeps free beside the tensors of a sharded step.

NCCL allocates past PyTorch, and PyTorch's allocator needs more than the bytes of the tensors. The
schedule that is found is replayed through that allocator; where it needs more than was kept free,
it does not fit, and one that holds less is sought. The replay takes a unit's gathered weights and
its gradients for one block each, as they are counted, so that no less than a stated share is kept
whatever it shows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.allocator_budget import allocator_of
from planner.graphs import Graph, Schedule, simulate
from planner.graphs.allocation import needs
from planner.graphs.hardware.allocators import EXPANDABLE
from planner.graphs.hardware.reserve import NCCL_BYTES
from planner.request import Request

FRAGMENTS_SHARE = 0.05
"""Of the budget, what PyTorch's allocator is given beside the tensors: of the 5 to 20% that are
reported, the least. Replayed steps of language models, with blocks as large as theirs, needed 1 to
3% more than their tensors; a convolutional one, 26%."""


@dataclass(frozen=True, slots=True)
class Margin:
    """Bytes that are kept free on a device: for NCCL, and for what the allocator needs."""

    nccl_bytes: int = 0
    fragments_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        """Both together."""
        return self.nccl_bytes + self.fragments_bytes


NO_MARGIN = Margin()


def margin_of(request: Request, budget_bytes: int) -> Margin:
    """Return what is kept free of a budget; nothing on a CPU, nor where ``reserve`` was said.

    Args:
        request: what is planned.
        budget_bytes: of each device.
    """
    if request.hardware.name == "cpu" or request.reserve is not None:
        return NO_MARGIN
    return Margin(NCCL_BYTES, int(budget_bytes * FRAGMENTS_SHARE))


def widened(margin: Margin, request: Request, graph: Graph, schedule: Schedule) -> Margin:
    """Return a margin that is enough for the allocator to run a schedule.

    Args:
        margin: what was kept.
        request: for its device and its allocator's settings.
        graph, schedule: of one rank's step.
    """
    allocator = allocator_of(request.allocator, request.hardware)
    if not margin.size_bytes or allocator is None:
        return margin
    found = needs(graph, schedule, expandable=allocator == EXPANDABLE)
    more = found.needed_bytes - simulate(graph, schedule).peak_bytes
    return replace(margin, fragments_bytes=max(margin.fragments_bytes, more))
