"""The rewrite that computes the loss of a step in chunks, and what its variants are called."""

from __future__ import annotations

import torch
from torch import Tensor

from planner.graphs.capture.chunks.chain import with_chains
from planner.graphs.capture.chunks.dropped import without_dropped_tokens
from planner.graphs.capture.chunks.region import find_region, heads, products
from planner.graphs.capture.chunks.stand_in import with_late_logits
from planner.graphs.capture.chunks.writer import Form, Writer
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.rewrites import Declined, Rewrite, register_rewrite

WHEN_READ = "when_read"


def in_chunks(joint: Joint, chunks: int, form: Form, *, late_logits: bool = False) -> Joint:
    """Return a step with its loss in chunks.

    Args:
        joint: the captured step, which is changed.
        chunks: how many.
        form: when the backward pass of each runs.
        late_logits: compute logits that the model returns when they are read.

    Raises:
        Declined: it has no such loss, or this form cannot be written.
    """
    values = [node.meta["val"] for node in joint.inputs]
    sizes = [n for x in values for n in (x.shape if isinstance(x, Tensor) else (x,))]
    if any(isinstance(n, torch.SymInt) for n in sizes):
        raise Declined("its sizes are symbols (torch.compile(..., dynamic=False) makes none)")
    if late_logits:
        joint = with_late_logits(joint, products(joint))
    joint = without_dropped_tokens(joint, heads(joint))
    region = find_region(joint)
    if region.returned:
        name = joint.outputs.names[region.returned[0]]
        raise Declined(
            f"the model returns {name!r} beside the loss, which is the logits, held to the end; "
            + (
                "it cannot be computed when it is read: have the model return the loss alone"
                if late_logits
                else "have it return the loss alone, or say logits='when_read'"
            )
        )
    return Writer(joint, region, chunks).write(form)


def _rewritten(joint: Joint, chunks: str, form: str, logits: str = "keep") -> Joint:
    return in_chunks(joint, int(chunks), Form[form], late_logits=logits == WHEN_READ)


def _with_chains(joint: Joint, chunks: str, *loss: str) -> Joint:
    joint = with_chains(joint, int(chunks))
    return _rewritten(joint, *loss[1:]) if loss else joint


_LOSS = rf"[1-9]\d* [{''.join(form.name for form in Form)}]( keep| {WHEN_READ})?"
LOSS_CHUNKS = register_rewrite(
    Rewrite(
        "loss_chunks",
        _rewritten,
        words=_LOSS,
        example="loss_chunks 8 A",
    )
)
"""Head and loss in so many chunks, in form A or B: ``loss_chunks 8 A when_read``."""
MLP_CHUNKS = register_rewrite(
    Rewrite(
        "mlp_chunks",
        _with_chains,
        words=rf"[1-9]\d*( loss_chunks {_LOSS})?",
        example="mlp_chunks 4",
    )
)
"""Every chain that widens tokens and narrows them in so many chunks, and the loss in some if it is
said: ``mlp_chunks 4 loss_chunks 8 A when_read``."""
