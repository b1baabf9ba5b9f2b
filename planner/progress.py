"""Tell a person what is going on while they wait.

A ``Progress`` is called with a short sentence whenever the work enters a new part. Beside the
command line this is the one file that writes: on standard error, if that is a terminal, or in a
notebook.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import Progress as Display
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

Progress = Callable[[str], None]
Told = Literal["auto", "off"] | Progress | None
"""How a person is told: "auto", "off" (or ``None``), or by calling something."""


_ONE = threading.Lock()


class PlannerWarning(UserWarning):
    """Something holds memory that a plan does not count, or takes time at every call."""


def silent(_sentence: str) -> None:
    """Say nothing."""


@contextmanager
def telling(told: Told) -> Iterator[Progress]:
    """Give what to call inside the block.

    Raises:
        ValueError: neither "auto", "off" nor a callable.

    >>> said = []
    >>> with telling(said.append) as tell:
    ...     tell("capturing")
    >>> said
    ['capturing']
    """
    if callable(told):
        yield told
    elif told is None or told == "off":
        yield silent
    elif told == "auto":
        with on_terminal() as shown:
            yield shown
    else:
        raise ValueError(f"progress={told!r}: expected 'auto', 'off' or a function of a sentence")


@contextmanager
def on_terminal() -> Iterator[Progress]:
    """Show the current sentence and the time it takes, on a terminal or in a notebook."""
    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield silent
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    if not _ONE.acquire(blocking=False):
        yield silent  # another thread's display is on the same line
        return
    try:
        # what the user's own code prints meanwhile goes where it always goes
        with Display(
            *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
        ) as display:
            task = display.add_task("starting", total=None)

            def show(sentence: str) -> None:
                display.reset(task, description=sentence)

            yield show
    finally:
        _ONE.release()
