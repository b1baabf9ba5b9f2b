"""A line of source as a plan names it: nothing in it says on whose machine the plan was made."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def short_line(source: str) -> str:
    """Shorten the path in ``file:line`` to what is below the working folder or a folder of modules.

    A file of neither keeps its own name and its folder's; what is no path stays as it is.

    >>> import os, typer
    >>> short_line(os.path.join(os.getcwd(), "models", "gpt.py") + ":12")
    'models/gpt.py:12'
    >>> short_line(f"{typer.__file__}:1")
    'typer/__init__.py:1'
    >>> short_line("/somewhere/else/entirely/net.py:3"), short_line("<string>:1")
    ('entirely/net.py:3', '<string>:1')
    """
    _, installed, short = source.rpartition("site-packages" + os.sep)
    if installed or not os.path.isabs(source):
        return short
    path = Path(source)
    modules = sorted(map(os.path.abspath, sys.path), key=len, reverse=True)
    folders = (folder for folder in (os.getcwd(), *modules) if folder != path.anchor)
    below = (path.relative_to(folder) for folder in folders if path.is_relative_to(folder))
    return str(next(below, Path(*path.parts[-2:])))
