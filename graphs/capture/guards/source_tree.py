"""The source of a file of Python, taken apart."""

from __future__ import annotations

import ast
import linecache


def source_tree(filename: str) -> ast.Module:
    """Return what a file says: nothing where there is no source, or none of Python.

    Whoever asks keeps what is found in it; the tree itself is large.

    Args:
        filename: as code objects have it.

    >>> source_tree("<nowhere>").body
    []
    """
    try:
        return ast.parse("".join(linecache.getlines(filename)))
    except (SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])
