"""A loss in chunks, as a person asks for it: what may be said, and which variants it stands for.

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


def check_chunks(chunks: int | str, logits: str, rewrites: Sequence[str]) -> None:
    """Refuse what cannot be asked for.

    Args:
        chunks, logits, rewrites: as ``Request`` has them.

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
    if chunks != 1 and tuple(rewrites) != ("as_captured",):
        raise BadRequest("loss_chunks= chooses the rewrites itself: leave rewrites= out")


def names(chunks: int | str, logits: str) -> list[str]:
    """Return the rewrites among which a plan may choose, by name.

    >>> names(4, "keep")
    ['loss_chunks 4 A', 'loss_chunks 4 B']
    """
    counts = AUTO_CHUNKS if isinstance(chunks, str) else (chunks,)
    late = f" {WHEN_READ}" if logits == WHEN_READ else ""
    return [f"loss_chunks {k} {form}{late}" for k in counts for form in "AB"]


def refused(chunks: int | str, reason: str) -> BadRequest:
    """Make the error that says why a loss cannot be had in chunks."""
    return BadRequest(
        f"loss_chunks={chunks}: no loss of this step can be computed in chunks of its tokens, "
        f"because {reason}; leave loss_chunks= out, or change what is said there"
    )
