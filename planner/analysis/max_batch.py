"""The largest batch that trains within a budget, with and without a plan, and what none exceeds.

Knows what is asked of the batches, and how inputs of another size are made. Knows nothing of how
few captures answer it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any, Unpack

from planner.analysis.batch_search import Batches
from planner.byte_sizes import format_both, format_percent
from planner.errors import BadBudget, BadRequest, CaptureError
from planner.host_states import told
from planner.output.layout import wrap
from planner.plan.chunk_notes import described
from planner.planning import best_plan, plan_of
from planner.plans import Plan
from planner.request import Request, requested, takes
from planner.step_options import AnyBatchOptions, VariantOptions, check_said
from planner.step_variants import captured_variants, refuse_asked

if TYPE_CHECKING:
    from torch import nn

    from planner.graphs.capture.training_step import Captured

FORWARD = "forward"
"""The overhead of one more forward pass."""


@dataclass(frozen=True)
class MaxBatch:
    """The largest batch with a plan and without, and the largest that is not proved impossible.

    ``plan`` is for ``batch``. Each of the three was captured, and so was the next larger one. What
    is proved impossible is so for the captured order of first computations. ``stopped`` says that
    the limit in seconds cut a solve off: with more, a larger batch may have a plan.
    """

    batch: int
    plan: Plan
    plain_batch: int
    bound_batch: int
    max_overhead: float
    captures: int = field(default=0, compare=False)
    stopped: bool = False

    @property
    def ratio(self) -> float:
        """How many times larger the batch is than without a plan; ``inf`` if none fits so."""
        return self.batch / self.plain_batch if self.plain_batch else math.inf

    def _repr_html_(self) -> str:
        """Show what ``str`` says in a notebook."""
        return f"<pre>{escape(str(self))}</pre>"

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
        if plan.states is not None:
            lines.append(f"States  {told(plan.states)}")
        lines += [f"Loss    {said}" for said in described(plan.rewrite)]
        if self.stopped:
            lines.append("Limit   a solve was cut off by its seconds; with more, more may fit")
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
            "stopped": self.stopped,
            "rewrite": self.plan.rewrite,
        }


@takes(AnyBatchOptions)
def max_batch(
    model: nn.Module | Request,
    budget: str | float,
    *,
    inputs: Callable[[int], Any],
    targets: Callable[[int], Any] | None = None,
    max_overhead: str | float = FORWARD,
    **said: Unpack[AnyBatchOptions],
) -> MaxBatch:
    """Find the largest batch whose plan fits a budget at a bearable cost.

    Args:
        model: any ``nn.Module``, or a ``Request``.
        budget: "40GB", "40GiB", "80%" of the device, or an int of bytes.
        inputs: called with a batch size, returns the inputs; tensors on meta will do.
        targets: called with a batch size, returns the further arguments of ``loss``.
        max_overhead: the most extra time, of the plain step at that batch: 0.33, "33%", or
            "forward" for what one more forward pass takes.
        said: what else is to be said of the step: see ``Request``. The seconds of ``limits``
            are for all that is solved together; one of some ten solves takes half of what is left
            at most. Each batch has the quickest form of a loss in chunks that fits, or with "auto"
            the quickest number of them; the plain step is then the one without.

    Raises:
        BadBudget: the budget or the overhead is not what it should be.
        InfeasibleBudget: not even a batch of one fits.
        BadRequest, UnknownDevice, CaptureError: as ``fit`` does.

    >>> from torch import nn, zeros
    >>> model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.GELU())
    >>> found = max_batch(model, "9MB", inputs=lambda n: zeros(n, 64), loss=lambda x: x.sum())
    >>> found.plain_batch < found.batch <= found.bound_batch
    True
    """
    allowed = parse_overhead(max_overhead)
    check_said(said, AnyBatchOptions)
    for name, made in (("inputs", inputs), ("targets", targets)):
        if made is not None and not callable(made):
            raise BadRequest(
                f"{name} is a {type(made).__name__}; expected a function of the batch size"
            )
    first = {"inputs": inputs(1), "targets": None if targets is None else targets(1)}
    with requested(model, {**said, **first}, VariantOptions) as request:
        refuse_asked(request, "max_batch")

        def capture(batch: int) -> Sequence[Captured]:
            request.tell(f"batch {batch}")
            given = {} if targets is None else {"targets": targets(batch)}
            return captured_variants(replace(request, inputs=inputs(batch), **given))

        budget_bytes = request.budget_bytes(budget)
        search = Batches(capture, budget_bytes, allowed, request)
        search.largest(search.may_fit)  # quick, and captures near where the others will be
        batch = search.largest(search.fits)
        if not batch:
            raise _refused(search, request, max_overhead)
        captured, found = search.best(batch)
        most = search.allowed_seconds(captured.graph) / captured.graph.seconds
        captured = replace(captured, graph=found.graph)
        plan = plan_of(captured, request, budget_bytes, found.solution)
        plan = replace(plan, states=found.states, remarks=(*plan.remarks, *found.remarks))
        return MaxBatch(
            batch=batch,
            plan=Plan.of(plan),
            plain_batch=search.largest(search.fits_plain),
            bound_batch=search.largest(search.is_possible),
            max_overhead=most,
            captures=len(search.captured),
            stopped=search.stopped,
        )


def _refused(search: Batches, request: Request, max_overhead: str | float) -> BadBudget:
    """Return the error of an overhead that not even one sample keeps to, if the budget is not it.

    Raises:
        InfeasibleBudget: it is the budget.
    """
    limits = replace(request.limits, seconds=search.left_seconds)
    request = replace(request, limits=limits)
    plan = best_plan(search.captured[1], request, search.budget_bytes)
    return BadBudget(
        f"a batch of one costs {format_percent(plan.overhead)} within "
        f"{format_both(search.budget_bytes)}, more than max_overhead={max_overhead!r} allows: "
        "raise either"
    )


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

    from planner.graphs.torch_api.pytree import tree_map
    from planner.sharding.samples import samples_in, with_samples

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
