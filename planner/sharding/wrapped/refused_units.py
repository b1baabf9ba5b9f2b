"""What a root and its units may not do to each other, each refused with its cause."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from planner.errors import CaptureError
from planner.graphs import Phase
from planner.graphs.capture.rewrites import Declined
from planner.graphs.capture.training_step import Traced
from planner.graphs.capture_error import CaptureError as GraphsCaptureError
from planner.sharding.wrapped.unit_choice import Candidates


def refuse_blocks_read_outside(read: Mapping[str, str], candidates: Candidates) -> None:
    """Refuse a block whose weight the root reads; an embedding or a head just stays with it.

    Args:
        read: a parameter of each unit that the root reads, by the unit's path.
        candidates: among them the blocks.
    """
    for path, name in read.items():
        if path in candidates.blocks:
            raise GraphsCaptureError(
                f"{name} is read outside its unit {path!r}, where a sharded weight is not whole: "
                "let the unit's forward do all that reads it, or name other units"
            )


def refuse_left_behind(units: Mapping[str, Traced]) -> None:
    """Decline a root to which units may hand something otherwise than by what they return.

    Args:
        units: the captures of units, by their paths.
    """
    for path, traced in units.items():
        for effect in traced.joint.outputs.effects.items:
            raise Declined(
                f"unit {path!r} leaves something in {effect.path}, which what is around it may "
                "read; return it instead"
            )


def refuse_communication(traced: Iterable[Traced]) -> None:
    """Refuse collectives of a model's own: which of a step's they overlap with is not modelled."""
    ops = (op for found in traced for op in found.captured.graph.ops)
    if (sent := next((op for op in ops if op.phase is Phase.COMMUNICATION), None)) is not None:
        raise CaptureError(
            f"{sent.source or 'the model'} calls {sent.target}, a collective of the model's own, "
            "which is planned on one device's step so far: leave world_size= out"
        )
