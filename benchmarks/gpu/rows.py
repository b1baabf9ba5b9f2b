"""A check as a row: what was found, what was expected, its tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SKIPPED = "skipped: no GPU"


@dataclass(frozen=True)
class Row:
    """A check of a case; ``found`` and ``expected`` are in the unit of ``what``."""

    check: str
    case: str
    what: str
    found: str
    expected: str
    tolerance: str
    verdict: str


def row(  # noqa: PLR0917 - it is read like the line of a table
    check: str, case: str, what: str, found: Any, expected: Any, tolerance: str, ok: object
) -> Row:
    """Judge what was found.

    Args:
        check, case, what: as in ``Row``.
        found, expected: of which the row says as much as is read.
        tolerance: in words.
        ok: whether it is kept.
    """
    one, other = (f"{x:.4g}" if isinstance(x, float) else str(x) for x in (found, expected))
    return Row(check, case, what, one, other, tolerance, "ok" if ok else "WRONG")
