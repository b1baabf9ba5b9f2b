"""Tell a person what is going on while they wait.

A ``Progress`` is called with a short sentence whenever the work enters a new part. Knows how to
show it on a terminal; stays silent when the output is not one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Display
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

Progress = Callable[[str], None]


def silent(_sentence: str) -> None:
    """Say nothing."""


@contextmanager
def on_terminal() -> Iterator[Progress]:
    """Show the current sentence and the time it takes on standard error, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield silent
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Display(*columns, console=console, transient=True) as display:
        task = display.add_task("starting", total=None)

        def show(sentence: str) -> None:
            display.reset(task, description=sentence)

        yield show
