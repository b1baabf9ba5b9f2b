"""The largest batch that trains within a budget, with and without a plan, and what none exceeds.

Knows how to find the last batch for which something holds: it predicts on the line through two
captures and checks on a capture, at that batch and the next. Everything reported was captured.
That what does not fit stops fitting for good as the batch grows is assumed, not proved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from graphs import Graph, Phase, simulate, store_all
from graphs.affine import on_the_line, same_shape
from planner.capture import capture_step, find_device, optimizer_name
from planner.errors import BadBudget, CaptureError
from planner.fit import DEFAULT_LIMITS, plan_from_solution, plan_graph
from planner.layout import wrap
from planner.plan import Plan
from planner.progress import Progress, silent
from planner.units import format_both, format_percent, parse_budget
from solvers import Limits, Solution, solve
from solvers.parametric import quick_bound

if TYPE_CHECKING:
    from torch import nn

    from graphs.capture import Captured

MOST = 1 << 20
"""No larger batch is looked at; a model this small has no need of a plan."""
FIRST = (2, 4)
"""The batches captured first, to draw a line through."""
FORWARD = "forward"
"""The overhead of one more forward pass."""


@dataclass(frozen=True)
class MaxBatch:
    """The largest batch with a plan and without, and the largest that is not proved impossible.

    ``plan`` is for ``batch``. Each of the three was captured, and so was the next larger one. What
    is proved impossible is so for the captured order of first computations.
    """

    batch: int
    plan: Plan
    plain_batch: int
    bound_batch: int
    max_overhead: float
    captures: int = field(default=0, compare=False)

    @property
    def ratio(self) -> float:
        """How many times larger the batch is than without a plan; ``inf`` if none fits so."""
        return self.batch / self.plain_batch if self.plain_batch else math.inf

    def __str__(self) -> str:
        """Say the three batches, then what the largest costs."""
        plan = self.plan
        times = f"{self.ratio:.2f} times" if self.plain_batch else "where not even 1 fits"
        lines = [
            f"Largest batch {self.batch} within {format_both(plan.budget_bytes)}",
            f"Plain   {self.plain_batch} fits without recomputation: {times}",
            f"Time    +{format_percent(plan.overhead)} of the plain step at {self.batch}, of at "
            f"most +{format_percent(self.max_overhead)}",
            f"Proven  no plan in the captured order trains a batch above {self.bound_batch}",
        ]
        return "\n".join(wrap(line, "", "        ") for line in lines)

    def to_json(self) -> dict[str, Any]:
        """Return the answers as plain JSON types, for programs."""
        return {
            "batch": self.batch,
            "plain_batch": self.plain_batch,
            "bound_batch": self.bound_batch,
            "ratio": self.ratio if self.plain_batch else None,
            "budget_bytes": self.plan.budget_bytes,
            "peak_bytes": self.plan.peak_bytes,
            "overhead": self.plan.overhead,
            "max_overhead": self.max_overhead,
            "captures": self.captures,
        }


def max_batch(
    model: nn.Module,
    budget: str | float,
    *,
    inputs: Callable[[int], Any],
    max_overhead: str | float = FORWARD,
    loss: Callable[..., Any] | None = None,
    targets: Callable[[int], Any] | None = None,
    optimizer: Any = "adamw",
    device: str = "auto",
    limits: Limits = DEFAULT_LIMITS,
    costs: str = "roofline",
    progress: Progress | None = None,
) -> MaxBatch:
    """Find the largest batch whose plan fits a budget at a bearable cost.

    Args:
        model: any ``nn.Module``; arguments not named here are as for ``fit``.
        inputs: called with a batch size, returns the inputs; tensors on meta will do.
        max_overhead: the most extra time, of the plain step at that batch: 0.33, "33%", or
            "forward" for what one more forward pass takes.
        targets: called with a batch size, returns the further arguments of ``loss``.
        limits: for each solve, of which there are some ten.

    Raises:
        BadBudget: the budget or the overhead is not what it should be.
        InfeasibleBudget: not even a batch of one fits.
        UnknownDevice, CaptureError: as ``fit`` does.

    >>> from torch import nn, zeros
    >>> model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.GELU())
    >>> found = max_batch(model, "9MB", inputs=lambda n: zeros(n, 64), loss=lambda x: x.sum())
    >>> found.plain_batch < found.batch <= found.bound_batch
    True
    """
    allowed = parse_overhead(max_overhead)
    hardware = find_device(device, model)
    budget_bytes, tell = parse_budget(budget, lambda: hardware.memory_bytes), progress or silent

    def capture(batch: int) -> Captured:
        tell(f"capturing {type(model).__name__} at batch {batch}")
        return capture_step(
            model,
            inputs=inputs(batch),
            loss=loss,
            targets=None if targets is None else targets(batch),
            optimizer=optimizer,
            device=hardware.name,
            costs=costs,
        )

    search = _Batches(capture, budget_bytes, allowed, limits, tell)
    search.largest(search.may_fit)  # quick, and captures near where the others will be
    batch = search.largest(search.fits)
    if not batch:
        raise _refused(search, max_overhead)
    plan = plan_from_solution(
        search.captured[batch],
        budget_bytes,
        search.solve(search.graph(batch)),
        device=hardware.name,
        optimizer=optimizer_name(optimizer),
        costs=costs,
    )
    return MaxBatch(
        batch=batch,
        plan=replace(plan, loss=loss),
        plain_batch=search.largest(search.fits_plain),
        bound_batch=search.largest(search.is_possible),
        max_overhead=search.allowed_seconds(search.graph(batch)) / search.graph(batch).seconds,
        captures=len(search.captured),
    )


def _refused(search: _Batches, max_overhead: str | float) -> BadBudget:
    """Return the error of an overhead that not even one sample keeps to, if the budget is not it.

    Raises:
        InfeasibleBudget: it is the budget.
    """
    plan = plan_graph(search.captured[1], search.budget_bytes, limits=search.limits)
    return BadBudget(
        f"a batch of one costs {format_percent(plan.overhead)} within "
        f"{format_both(search.budget_bytes)}, more than max_overhead={max_overhead!r} allows: "
        "raise either"
    )


class _Batches:
    """Captures and solutions by batch size, each made once."""

    def __init__(
        self,
        capture: Callable[[int], Captured],
        budget_bytes: int,
        allowed: float | None,
        limits: Limits,
        tell: Progress,
    ) -> None:
        self.capture, self.budget_bytes, self.allowed = capture, budget_bytes, allowed
        self.limits, self.tell = limits, tell
        self.captured: dict[int, Captured] = {}
        self.solved: dict[Graph, Solution] = {}

    def graph(self, batch: int) -> Graph:
        """Capture a batch, unless it was."""
        if batch not in self.captured:
            self.captured[batch] = self.capture(batch)
        return self.captured[batch].graph

    def predicted(self, batch: int) -> Graph:
        """Return the graph on the line through the two nearest captures, if one can be drawn."""
        near = sorted(self.captured, key=lambda n: (abs(n - batch), n))[:2]
        if batch in self.captured or len(near) < 2:
            return self.graph(batch)
        one, other = (self.captured[n].graph for n in near)
        if not same_shape(one, other):
            return self.graph(batch)
        return on_the_line(one, other, (batch - near[0]) / (near[1] - near[0]))

    def allowed_seconds(self, graph: Graph) -> float:
        """Return the most extra time of a step."""
        if self.allowed is not None:
            return self.allowed * graph.seconds
        return sum(op.seconds for op in graph.ops if op.phase is Phase.FORWARD)

    def solve(self, graph: Graph) -> Solution:
        """Solve a graph, unless it was."""
        if graph not in self.solved:
            self.solved[graph] = solve(graph, self.budget_bytes, limits=self.limits)
        return self.solved[graph]

    def fits(self, graph: Graph) -> bool:
        """Tell whether a plan was found that fits and costs no more than allowed."""
        if not self.may_fit(graph) or (schedule := self.solve(graph).schedule) is None:
            return False
        extra = simulate(graph, schedule).seconds - graph.seconds
        return extra <= self.allowed_seconds(graph)

    def fits_plain(self, graph: Graph) -> bool:
        """Tell whether the step fits when every op runs once."""
        return simulate(graph, store_all(graph)).peak_bytes <= self.budget_bytes

    def is_possible(self, graph: Graph) -> bool:
        """Tell whether it is not proved that every plan costs more than allowed, or none fits."""
        if not self.may_fit(graph):
            return False
        extra = self.solve(graph).bound_seconds - graph.seconds
        return extra <= self.allowed_seconds(graph)

    def may_fit(self, graph: Graph) -> bool:
        """Tell whether the quickest of the bounds leaves it open."""
        extra = quick_bound(graph, self.budget_bytes) - graph.seconds
        return extra <= self.allowed_seconds(graph)

    def largest(self, holds: Callable[[Graph], bool]) -> int:
        """Return the last batch for which something holds, 0 if it holds for none.

        It was captured, and so was the next one, for which it does not hold.
        """
        low, high = 0, MOST
        for batch in FIRST:
            self.graph(batch)
        for batch in sorted(self.captured, reverse=True):
            if holds(self.graph(batch)):
                low = batch
                break
            high = batch
        while high - low > 1:
            guess = self._guess(holds, low, high)
            if holds(self.graph(guess)):
                low = guess
            else:
                high = guess
        return low

    def _guess(self, holds: Callable[[Graph], bool], low: int, high: int) -> int:
        """Return the last batch in between for which it holds by prediction, or the first.

        Looks upwards from the low end while the high end is far, else downwards from the high end.
        """
        best, limit, reach = low, high, 1
        if high == MOST:
            while best + reach < limit and holds(self.predicted(best + reach)):
                best, reach = best + reach, 2 * reach
            limit = min(limit, best + reach)
        else:
            while limit - reach > best and not holds(self.predicted(limit - reach)):
                limit, reach = limit - reach, 2 * reach
            best = max(best, limit - reach)
        while limit - best > 1:
            middle = (best + limit) // 2
            if holds(self.predicted(middle)):
                best = middle
            else:
                limit = middle
        return max(best, low + 1)


def rebatched(example: Any) -> Callable[[int], Any]:
    """Return a function of the batch size that makes inputs like an example, on meta.

    Every tensor whose first dimension is as long as the first tensor's is a batch.

    Raises:
        BadBudget: the example has no tensor with a first dimension.

    >>> import torch
    >>> [x.shape for x in rebatched((torch.zeros(8, 3), torch.zeros(5)))(2)]
    [torch.Size([2, 3]), torch.Size([5])]
    """
    from torch import Tensor
    from torch.utils._pytree import tree_map

    from planner.sharding.batch import samples_in, with_samples

    try:
        samples = samples_in(example)
    except CaptureError as error:
        message = "the example inputs hold no batch: pass inputs= a function of its size"
        raise BadBudget(message) from error

    def bare(x: Any) -> Any:
        batched = isinstance(x, Tensor) and x.dim() and len(x) == samples
        return x.detach().to("meta") if batched else x

    on_meta = tree_map(bare, example)
    return lambda batch: with_samples(on_meta, samples, batch)


def parse_overhead(text: str | float) -> float | None:
    """Return the most overhead as a fraction, ``None`` for one more forward pass.

    Raises:
        BadBudget: neither a fraction, a percentage nor "forward".

    >>> parse_overhead("33%"), parse_overhead(0.2), parse_overhead("forward")
    (0.33, 0.2, None)
    """
    if text == FORWARD:
        return None
    percent = isinstance(text, str) and text.endswith("%")
    try:
        share = float(str(text).removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        share = math.nan
    if not 0 <= share < math.inf:
        raise BadBudget(
            f"the overhead {text!r} is not a share of the plain step: write 0.33, '33%', or "
            "'forward' for one more forward pass"
        )
    return share
