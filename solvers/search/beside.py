"""Two searches at once: what one finds in a thread of its own the other takes in at the end.

The solver of linear programs runs without Python's lock, so that on a second core proving a bound
costs the search for plans little. Neither learns of the other before both are done: the answer does
not depend on which is faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from planner.solvers.search.incumbent import Search


@contextmanager
def beside(search: Search, work: Callable[[Search], object]) -> Iterator[None]:
    """Do some work on a copy of a search while the body runs; then let the search learn from it.

    What the work raises is raised in the end; if the body fails, the work is told to stop and not
    waited for.

    Args:
        search: what is known; the body goes on with it.
        work: takes a search of its own, and stops at its deadline.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> g = Graph((Op("a", "f", (), (0,), 1.0),), (Value("a", 1),))
    >>> search = Search(flatten(g), 1)
    >>> with beside(search, lambda own: own.raise_bound(0.5)):
    ...     search.bound
    0.0
    >>> search.bound
    0.5
    """
    own = search.copy()
    threads = ThreadPoolExecutor(1, thread_name_prefix="beside")
    done = threads.submit(work, own)
    try:
        yield
        done.result()
    except BaseException:
        own.deadline = -math.inf
        raise
    finally:
        threads.shutdown(wait=False)
    search.learn(own)
