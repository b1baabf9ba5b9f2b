"""What several methods made of one step, as a value: rows, and the tables they are shown in.

Every gap is taken to the best bound that any of them proved, since each bound holds for all; only a
reordered plan has to do with those for any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from planner.byte_sizes import format_both, format_bytes, format_percent, format_seconds
from planner.output.layout import table, wrap
from planner.plan.chunk_notes import described
from planner.solvers import Status

PLANNED, EAGER = "plan", "eager"
"""On which footing a peak is: as a plan holds the step, or as torch does that runs it itself."""
SAME_GRAPH = frozenset((PLANNED, EAGER))


@dataclass(frozen=True, slots=True)
class MethodResult:
    """What one method found. Without a schedule ``peak_bytes`` and ``seconds`` are ``None``.

    ``footing`` says who holds the peak: "plan", "eager", or the name of a compiled engine.
    """

    method: str
    status: Status
    peak_bytes: int | None
    seconds: float | None
    bound_seconds: float
    solve_seconds: float
    message: str
    reordered: bool = False
    footing: str = PLANNED

    @property
    def fits(self) -> bool:
        """Whether the method found a schedule within the budget."""
        return self.peak_bytes is not None


@dataclass(frozen=True, repr=False)
class Comparison:
    """The rows of every method, cheapest schedule first.

    ``eager_peak_bytes`` is what torch itself holds of the plain step, where that is known.
    ``rewrite`` is the name of what was planned, and of the plain step here: as captured, or its
    loss in chunks. What torch runs itself is never rewritten.
    """

    budget_bytes: int
    plain_peak_bytes: int
    plain_seconds: float
    rows: tuple[MethodResult, ...]
    eager_peak_bytes: int | None = None
    rewrite: str = "as_captured"

    @property
    def bound_seconds(self) -> float:
        """The best bound any method proved: it holds for all schedules that keep the order."""
        return _best_bound([row for row in self.rows if row.footing in SAME_GRAPH])

    def overhead(self, row: MethodResult) -> float | None:
        """Extra time of a row as a fraction of the plain step; a compiled one may take less."""
        if row.seconds is None:
            return None
        if row.footing in SAME_GRAPH or not self.plain_seconds:
            return self._over(row.seconds - self.plain_seconds)
        return row.seconds / self.plain_seconds - 1

    def gap(self, row: MethodResult) -> float | None:
        """Distance of a row from the best bound, as a fraction of the plain step."""
        if row.seconds is None:
            return None
        return self._over(row.seconds - _best_bound(_bounding(self.rows, row)))

    def _over(self, seconds: float) -> float:
        return max(0.0, seconds / self.plain_seconds) if self.plain_seconds else 0.0

    def __repr__(self) -> str:
        return f"Comparison({len(self.rows)} methods within {format_bytes(self.budget_bytes)})"

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        return f"<pre>{escape(str(self))}</pre>"

    def __str__(self) -> str:
        """Lay the rows out as a table under the budget."""
        title = (
            f"Budget {format_both(self.budget_bytes)}; the plain step peaks at "
            f"{format_both(self.plain_peak_bytes)} and takes "
            f"{format_seconds(self.plain_seconds)}"
        )
        if self.eager_peak_bytes is not None:
            title += f"; in eager mode it peaks at {format_bytes(self.eager_peak_bytes)}"
        header = ("method", "fits", "peak", "held by", "overhead", "gap", "solved in", "says")
        rows = [self._cells(row) for row in self.rows]
        proved = self._over(self.bound_seconds - self.plain_seconds)
        foot = f"Proven: at least +{format_percent(proved)} is necessary; gaps are to this bound"
        if names := [row.method for row in self.rows if row.reordered]:
            foot += f"\nReordered, with gaps to bounds for any order: {', '.join(names)}"
        foot += f"\n{self._footing()}"
        foot += "".join(f"\nIn what was planned, {said}" for said in described(self.rewrite))
        why = [wrap(_why(row), "  ", "    ") for row in self.rows if not row.fits]
        return "\n".join([title, table("llrlrrrl", header, rows), foot, *why])

    def _footing(self) -> str:
        eager = [row.method for row in self.rows if row.footing == EAGER]
        if eager:
            said = (
                f"Peaks of {', '.join(eager)} are eager mode's, which runs it without a plan; the "
                "others are a plan's"
            )
        else:
            said = "Peaks are a plan's; run by torch itself, a step usually holds more"
        compiled = sorted({row.footing for row in self.rows} - SAME_GRAPH)
        for engine in compiled:
            said += (
                f"\nHeld by {engine}: what its compiler says it allocates; its overheads are over "
                "the plain step op by op, in estimated time, its gaps to bounds for its own kernels"
            )
        return said

    def _cells(self, row: MethodResult) -> tuple[str, ...]:
        overhead, gap = self.overhead(row), self.gap(row)
        return (
            row.method,
            "yes" if row.fits else "no",
            "-" if row.peak_bytes is None else format_bytes(row.peak_bytes),
            row.footing,
            "-" if overhead is None else _signed(overhead),
            "-" if gap is None else format_percent(gap),
            format_seconds(row.solve_seconds),
            row.status.name.lower(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the rows as plain JSON types, for programs."""
        return {
            "budget_bytes": self.budget_bytes,
            "plain_peak_bytes": self.plain_peak_bytes,
            "plain_seconds": self.plain_seconds,
            "eager_peak_bytes": self.eager_peak_bytes,
            "bound_seconds": self.bound_seconds,
            "rewrite": self.rewrite,
            "rows": [
                {
                    "method": row.method,
                    "status": row.status.name,
                    "fits": row.fits,
                    "peak_bytes": row.peak_bytes,
                    "seconds": row.seconds,
                    "overhead": self.overhead(row),
                    "gap": self.gap(row),
                    "solve_seconds": row.solve_seconds,
                    "message": row.message,
                    "reordered": row.reordered,
                    "footing": row.footing,
                }
                for row in self.rows
            ],
        }


def _bounding(rows: Iterable[MethodResult], row: MethodResult) -> list[MethodResult]:
    """Return the rows whose bounds hold for a row: of the same graph, and for its order."""
    compiled = row.footing not in SAME_GRAPH
    same = [r for r in rows if (r.footing == row.footing if compiled else r.footing in SAME_GRAPH)]
    return [r for r in same if r.reordered] if row.reordered else same


def _best_bound(rows: Sequence[MethodResult]) -> float:
    finite = (row.bound_seconds for row in rows if math.isfinite(row.bound_seconds))
    return max(finite, default=0.0)


def _signed(fraction: float) -> str:
    """Write a fraction with its sign.

    >>> _signed(0.25), _signed(-0.1)
    ('+25.00%', '-10.00%')
    """
    return f"{'-' if fraction < 0 else '+'}{format_percent(abs(fraction))}"


def _why(row: MethodResult) -> str:
    said = row.message or row.status.value
    return said if said.startswith(f"{row.method}:") else f"{row.method}: {said}"
