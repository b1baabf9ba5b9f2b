"""What a plan says of its loss in chunks, or of what they would save."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.byte_sizes import format_both, format_bytes, format_percent
from planner.loss_chunks import KEEP, LOGITS, names
from planner.solvers.minimum_budget import proven_floor

if TYPE_CHECKING:
    from planner.graphs.capture.training_step import Captured
    from planner.plan.step_plan import StepPlan

HINTED = 8
"""In how many chunks a step is tried in order to say what they would save."""
WORTH_SAYING = 0.05
"""From which part of the least memory on."""


def said(plan: StepPlan, whole: Captured) -> str:
    """Say what the chunks of a plan are, and what they cost and save.

    Args:
        plan: in chunks.
        whole: the same step as captured.
    """
    _, count, form, *late = plan.rewrite.split()
    slower = plan.plain_seconds / whole.graph.seconds - 1 if whole.graph.seconds else 0.0
    when = (
        "the forward passes of all, then the backward passes"
        if form == "A"
        else "forward and backward of each in turn"
    )
    before, now = proven_floor(whole.graph), proven_floor(plan.graph)
    text = (
        f"the head and its loss are computed in {count} chunks of the tokens, {when}: sums are "
        f"rounded in another order; every schedule holds at least {format_bytes(now)}, without "
        f"chunks {format_bytes(before)}; the chunks take {format_percent(slower)} of the step, "
        "which is in every time here"
    )
    if late:
        text += (
            "; the logits that the model returns are computed when they are read (logits="
            "'when_read'), which no number here has"
        )
    return text


def saving(whole: Captured) -> str | None:
    """Say by how much chunks would lower what every schedule holds, if they do.

    Args:
        whole: the step as captured.
    """
    found = _hinted(whole)
    if found is None:
        return None
    chunks, how = found
    before, after = proven_floor(whole.graph), proven_floor(chunks.graph)
    if before - after < WORTH_SAYING * before:
        return None
    return (
        f"the loss in {HINTED} chunks ({how}) would lower what every schedule of this step holds "
        f"at least from {format_both(before)} to {format_both(after)}"
    )


def _hinted(whole: Captured) -> tuple[Captured, str] | None:
    """Return the step in some chunks, and how to ask for them; ``None`` if it has no such loss."""
    from planner.graphs.capture.rewrites import Declined

    if whole.variant is None:
        return None
    for logits in LOGITS:
        asked = f"loss_chunks={HINTED}" + f", logits={logits!r}" * (logits != KEEP)
        try:
            return whole.variant(names(HINTED, logits)[0]), asked
        except Declined:
            continue
    return None
