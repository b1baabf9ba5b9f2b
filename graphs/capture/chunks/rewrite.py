"""The rewrite that computes the loss of a step in chunks, and what its variants are called."""

from __future__ import annotations

from planner.graphs.capture.chunks.region import find_region
from planner.graphs.capture.chunks.writer import Form, Writer
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.rewrites import Declined, Rewrite, register_rewrite


def in_chunks(joint: Joint, chunks: int, form: Form) -> Joint:
    """Return a step with its loss in chunks.

    Args:
        joint: the captured step, which is changed.
        chunks: how many.
        form: when the backward pass of each runs.

    Raises:
        Declined: it has no such loss, or this form cannot be written.
    """
    region = find_region(joint)
    if region.returned:
        name = joint.outputs.names[region.returned[0]]
        raise Declined(f"the model returns {name!r} beside the loss, which is the logits")
    return Writer(joint, region, chunks).write(form)


def _rewritten(joint: Joint, chunks: str, form: str) -> Joint:
    return in_chunks(joint, int(chunks), Form[form])


LOSS_CHUNKS = register_rewrite(Rewrite("loss_chunks", _rewritten))
"""Head and loss in so many chunks, in form A or B: ``loss_chunks 8 A``."""
