"""What a plan says of tensor parallelism: every degree, what it would take, and why not it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from planner.byte_sizes import format_bytes, format_percent, format_seconds
from planner.output.layout import wrap
from planner.plan.configuration import Configuration
from planner.plan.sharded_step_plan import Alternative, ShardedStepPlan


@dataclass(frozen=True, slots=True)
class DegreeRow:
    """The best that is known of a degree, with sequence parallelism or without.

    ``seconds_per_sample`` are those of the plan known of it; or, unless ``planned``, what is proved
    that it takes at least, infinite where nothing fits.
    """

    degree: int
    sequence: bool
    chosen: bool
    planned: bool
    peak_bytes: int | None
    seconds_per_sample: float
    reason: str

    @property
    def name(self) -> str:
        """What it is called."""
        return "none" if self.degree == 1 else f"{'TP+SP' if self.sequence else 'TP'} {self.degree}"


def degree_rows(plan: ShardedStepPlan) -> tuple[DegreeRow, ...]:
    """Return a row for every degree that was looked at, in order; none if layers stay whole anyway.

    Args:
        plan: with its alternatives.
    """
    if plan.tensor is None:
        return ()
    best: dict[tuple[int, bool], Alternative] = {}
    for row in plan.alternatives:
        key = _key(row.configuration)
        if not row.recipe and (key not in best or _rank(row) < _rank(best[key])):
            best[key] = row
    own = _key(plan.configuration)
    rows = [_row(row) for key, row in best.items() if key != own]
    why = _why_chosen(plan, best)
    rows.append(DegreeRow(*own, True, True, plan.peak_bytes, plan.seconds_per_sample, why))  # noqa: FBT003
    return tuple(sorted(rows, key=lambda row: (row.degree, row.sequence)))


def _key(c: Configuration) -> tuple[int, bool]:
    return c.tensor_ranks, c.sequence_parallel


def _rank(row: Alternative) -> tuple[bool, float]:
    return not row.planned, row.seconds_per_sample


def _row(row: Alternative) -> DegreeRow:
    return DegreeRow(
        *_key(row.configuration),
        chosen=False,
        planned=row.planned,
        peak_bytes=row.peak_bytes,
        seconds_per_sample=row.seconds_per_sample,
        reason=row.reason,
    )


def _why_chosen(plan: ShardedStepPlan, best: dict[tuple[int, bool], Alternative]) -> str:
    """Say what the chosen degree wins over whole layers, or whole layers over the others."""
    c = plan.configuration
    if c.tensor_ranks == 1:
        others = [
            row.seconds_per_sample for row in best.values() if row.configuration.tensor_ranks > 1
        ]
        lost = min(others, default=math.inf) / plan.seconds_per_sample - 1
        return (
            "chosen"
            if lost == math.inf
            else f"chosen: others take at least {format_percent(lost)} more"
        )
    whole = best.get((1, False))
    if whole is None:
        fewer = c.global_batch < c.world_size
        return (
            f"chosen: {'there are fewer samples than ranks' if fewer else 'no other was asked for'}"
        )
    if whole.seconds_per_sample == math.inf or not whole.planned:
        return "chosen: nothing fits without it"
    saved = 1 - plan.seconds_per_sample / whole.seconds_per_sample
    return f"chosen: saves {format_percent(saved)} of the time without it"


def degrees_text(plan: ShardedStepPlan) -> str:
    """Lay out every degree of tensor parallelism, and what is impossible."""
    rows = degree_rows(plan)
    if plan.tensor is None:
        return ""
    cells = [
        (
            row.name,
            "-" if row.peak_bytes is None else format_bytes(row.peak_bytes),
            _time(row),
            row.reason,
        )
        for row in rows
    ]
    cells += [
        ("any" if not r.degree else f"TP {r.degree}", "-", "impossible", r.reason)
        for r in plan.tensor.refused
    ]
    header = ("layers parted", "peak", "a sample", "")
    lines = [_line(cell) for cell in (header, *cells)]
    return "\n".join(["Tensor parallelism: the best of each degree", *lines])


def _line(cells: tuple[str, ...]) -> str:
    name, peak, seconds, reason = cells
    return wrap(f"{name:14} {peak:>8} {seconds:>11}  {reason}".rstrip(), "  ", " " * 39)


def _time(row: DegreeRow) -> str:
    if row.seconds_per_sample == math.inf:
        return "no fit"
    return ("" if row.planned else ">= ") + format_seconds(row.seconds_per_sample)


def tensor_notes(plan: ShardedStepPlan) -> Iterator[str]:
    """Say what a person has to see to where layers are parted."""
    c = plan.configuration
    if any(r.degree > 1 and not r.planned and not r.chosen for r in degree_rows(plan)):
        yield (
            "degrees of tensor parallelism with '>=' may not have been captured: their bound takes "
            "a rank to have at least its share of every op of whole layers, and the collectives of "
            "a step to take no less over more ranks; what is proven of them rests on that"
        )
    if c.tensor_ranks == 1:
        return
    yield (
        f"layers are parted over {c.tensor_ranks} neighbouring ranks of a node, which have to be "
        "given the same samples: rank r trains on part r // "
        f"{c.tensor_ranks} of {c.data_ranks} of each batch; their collectives count in full, "
        "nothing hides them"
    )
    yield (
        "a pipeline is not needed, as it fits with layers parted within a node; where nothing "
        "does, fit says what the stages of one would hold"
    )
    if not (plan.tensor and plan.tensor.declared):
        yield "the styles of the layers are not in the plan: pass tensor_parallel= to apply, too"


def tensor_summary(plan: ShardedStepPlan) -> dict[str, object]:
    """Return all this as plain JSON types."""
    tensor = plan.tensor
    return {
        "tensor_ranks": plan.configuration.tensor_ranks,
        "sequence_parallel": plan.configuration.sequence_parallel,
        "tensor_parallel_styles": dict(tensor.styles) if tensor else {},
        "tensor_parallel_degrees": [
            {
                "degree": row.degree,
                "sequence_parallel": row.sequence,
                "chosen": row.chosen,
                "planned": row.planned,
                "peak_bytes": row.peak_bytes,
                "seconds_per_sample": None
                if row.seconds_per_sample == math.inf
                else row.seconds_per_sample,
                "reason": row.reason,
            }
            for row in degree_rows(plan)
        ],
        "tensor_parallel_refused": [
            {"degree": r.degree, "reason": r.reason} for r in (tensor.refused if tensor else ())
        ],
    }


__all__ = ["DegreeRow", "degree_rows", "degrees_text", "tensor_notes", "tensor_summary"]
