"""A loss and MLPs in chunks, as a person asks for them: what may be said, and which variants.

How chunks are written is ``graphs.capture.chunks``' to know.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.errors import BadRequest

AUTO = "auto"
AUTO_CHUNKS = (2, 4, 8, 16)
"""What "auto" chooses from, beside no chunks; with more the products get thin and slow."""
KEEP, WHEN_READ = "keep", "when_read"
LOGITS = (KEEP, WHEN_READ)


def check_chunks(
    chunks: int | str, logits: str, rewrites: Sequence[str], mlp_chunks: int = 1
) -> None:
    """Refuse what cannot be asked for.

    Args:
        chunks, logits, rewrites, mlp_chunks: as ``Request`` has them.

    Raises:
        BadRequest: the message says what is expected.
    """
    whole = isinstance(chunks, int) and not isinstance(chunks, bool) and chunks >= 1
    if not whole and chunks != AUTO:
        raise BadRequest(f'loss_chunks is {chunks!r}; expected a number from 1 on, or "auto"')
    if logits not in LOGITS:
        raise BadRequest(f"logits is {logits!r}; expected one of {', '.join(map(repr, LOGITS))}")
    if chunks == 1 and logits != KEEP:
        raise BadRequest("logits='when_read' goes with loss_chunks=, and is of no use without")
    if isinstance(mlp_chunks, bool) or not isinstance(mlp_chunks, int) or mlp_chunks < 1:
        raise BadRequest(f"mlp_chunks is {mlp_chunks!r}; expected a number from 1 on")
    if (chunks, mlp_chunks) != (1, 1) and tuple(rewrites) != ("as_captured",):
        raise BadRequest(
            "loss_chunks= and mlp_chunks= choose the rewrites themselves: leave rewrites= out"
        )


def names(chunks: int | str, logits: str, mlp_chunks: int = 1) -> list[str]:
    """Return the rewrites that compute in chunks what is asked for, by name; all losses if any.

    Args:
        chunks, logits, mlp_chunks: as ``Request`` has them.

    >>> names(4, "keep")
    ['loss_chunks 4 A', 'loss_chunks 4 B']
    >>> names(1, "keep", 4), names(2, "keep", 4)[0]
    (['mlp_chunks 4'], 'mlp_chunks 4 loss_chunks 2 A')
    """
    counts = AUTO_CHUNKS if isinstance(chunks, str) else (chunks,)
    late = f" {WHEN_READ}" if logits == WHEN_READ else ""
    losses = [f"loss_chunks {k} {form}{late}" for k in counts if k != 1 for form in "AB"]
    if mlp_chunks == 1:
        return losses
    alone = f"mlp_chunks {mlp_chunks}"
    return [f"{alone} {loss}" for loss in losses] or [alone]


def refused(chunks: int | str, reason: str, mlp_chunks: int = 1) -> BadRequest:
    """Make the error that says why a loss, or MLPs, cannot be had in chunks.

    Args:
        chunks, mlp_chunks: as ``Request`` has them.
        reason: what stands in the way.
    """
    if mlp_chunks != 1:
        beside = f", loss_chunks={chunks}" if chunks != 1 else ""
        return BadRequest(
            f"mlp_chunks={mlp_chunks}{beside}: this step cannot be computed so, because {reason}; "
            "leave one of them out, or change what is said there"
        )
    return BadRequest(
        f"loss_chunks={chunks}: no loss of this step can be computed in chunks of its tokens, "
        f"because {reason}; leave loss_chunks= out, or change what is said there"
    )
