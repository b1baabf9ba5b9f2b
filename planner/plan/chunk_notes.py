"""What a plan says of its loss in chunks, or of what they would save."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from planner.byte_sizes import format_both, format_bytes, format_percent
from planner.graphs import plain_schedule
from planner.loss_chunks import KEEP, LOGITS, names
from planner.solvers.minimum_budget import proven_floor

if TYPE_CHECKING:
    from planner.graphs.capture.training_step import Captured
    from planner.plan.step_plan import StepPlan

HINTED = 8
"""In how many chunks a step is tried in order to say what they would save."""
WORTH_SAYING = 0.05
"""From which part of the least memory on."""
MOST_LOGITS = 4
"""How many tensors as large as the logits a step may hold at once for its loss."""


def described(rewrite: str) -> Iterator[str]:
    """Say what a plan's loss in chunks is, one sentence each; nothing if it is not.

    Args:
        rewrite: its name.

    >>> [text[:46] for text in described("loss_chunks 8 B")]
    ['head and loss are computed in 8 chunks of the ']
    """
    family, *words = rewrite.split()
    if family == "mlp_chunks":
        yield (
            f"MLPs, and what else widens tokens and narrows them, are computed in {words[0]} "
            "chunks of the tokens, forward and backward: sums are rounded in another order than "
            "the model's own"
        )
        yield from described(" ".join(words[1:]) or "as_captured")
    if family != "loss_chunks":
        return
    count, form, *late = words
    when = (
        "the forward passes of all, then the backward passes"
        if form == "A"
        else "forward and backward of each in turn"
    )
    yield (
        f"head and loss are computed in {count} chunks of the tokens, {when}: sums are rounded in "
        "another order than the model's own"
    )
    if late:
        yield (
            "logits that the model returns are computed when they are read (logits='when_read'): "
            "no number here has that"
        )


def in_short(rewrite: str) -> str:
    """Return a variant's chunks and form, or that it has none.

    Args:
        rewrite: its name.

    >>> in_short("loss_chunks 8 B when_read"), in_short("as_captured"), in_short("mlp_chunks 4")
    ('8 B', 'whole', 'MLPs 4')
    """
    family, *words = rewrite.split()
    if family == "mlp_chunks":
        beside = f", {in_short(' '.join(words[1:]))}" if words[1:] else ""
        return f"MLPs {words[0]}{beside}"
    return " ".join(words[:2]) if family == "loss_chunks" else "whole"


def said(plan: StepPlan, whole: Captured) -> str:
    """Say what the chunks of a plan cost and save.

    Args:
        plan: in chunks.
        whole: the same step as captured.
    """
    more = plan.plain_seconds / whole.graph.seconds - 1 if whole.graph.seconds else 0.0
    if whole.compiled is not None:
        before = whole.compiled.asked(plain_schedule(whole.graph)).peak_bytes
        held = (
            f"without chunks the compiler holds {format_bytes(before)} if nothing runs again, and "
            f"{format_bytes(plan.peak_bytes)} in this plan"
        )
    else:
        floor, now = proven_floor(whole.graph), proven_floor(plan.graph)
        held = (
            f"every schedule holds at least {format_bytes(now)} in these chunks, "
            f"{format_bytes(floor)} without"
        )
    return (
        f"{held}; with every op run once the chunks take {format_percent(abs(more))} "
        f"{'more' if more >= 0 else 'less'} time than the step as it is"
    )


def saving(whole: Captured) -> str | None:
    """Say by how much chunks would lower what every schedule holds, if they do.

    Nothing is said of a compiler's step, which would have to be traced again for it.

    Args:
        whole: the step as captured.
    """
    if whole.compiled is not None:
        return None
    before = proven_floor(whole.graph)
    if not worth_trying(whole, before) or (found := hinted(whole)) is None:
        return None
    chunks, how = found
    after = proven_floor(chunks.graph)
    if before - after < WORTH_SAYING * before:
        return None
    return (
        f"the loss in {HINTED} chunks ({how}) would lower what every schedule of this step holds "
        f"at least from {format_both(before)} to {format_both(after)}"
    )


def worth_trying(whole: Captured, least_bytes: int) -> bool:
    """Tell whether chunks could save much of what a step holds, if it has a loss that has any.

    Args:
        whole: the step as captured.
        least_bytes: what it holds at least.
    """
    values = whole.graph.values
    largest = max((values[v].size_bytes for op in whole.graph.ops for v in op.outputs), default=0)
    return whole.variant is not None and MOST_LOGITS * largest >= WORTH_SAYING * least_bytes


def hinted(whole: Captured) -> tuple[Captured, str] | None:
    """Return the step in some chunks, and how to ask for them; ``None`` if it has no such loss.

    Its kernels are not run for it: workspace is by formulas.

    Args:
        whole: the step as captured.
    """
    from planner.graphs.capture.rewrites import Declined

    if whole.variant is None:
        return None
    # in form B a compiler need not be asked of schedules that make logits again
    form = 0 if whole.compiled is None else 1
    for logits in LOGITS:
        asked = f"loss_chunks={HINTED}" + f", logits={logits!r}" * (logits != KEEP)
        try:
            return whole.variant(names(HINTED, logits)[form], run=False), asked
        except Declined:
            continue
    return None
