"""Tables and sentences of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 100


def table(align: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows under a header.

    Cells that do not fit lose their beginning: the end of a path says most.

    Args:
        align: an ``l`` or an ``r`` for every column.
        header: what stands above every column.
        rows: a cell for every column.

    >>> print(table("lr", ("op", "bytes"), [("mm", "12 B"), ("relu", "4 B")]))
      op    bytes
      mm     12 B
      relu    4 B
    """
    cells = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    while sum(widths) + 2 * len(widths) > WIDTH:
        widths[widths.index(max(widths))] -= 1
    return "\n".join(_line(row, align, widths) for row in cells)


def _line(row: Sequence[str], align: str, widths: Sequence[int]) -> str:
    padded = []
    for cell, side, width in zip(row, align, widths, strict=True):
        fitted = cell if len(cell) <= width else "…" + cell[len(cell) - width + 1 :]
        padded.append(fitted.ljust(width) if side == "l" else fitted.rjust(width))
    return ("  " + "  ".join(padded)).rstrip()


def wrap(text: str, first: str, rest: str) -> str:
    """Break a sentence into lines, the first and the others with their own indent.

    Args:
        text: the sentence.
        first, rest: what the first line and the others begin with.
    """
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )
