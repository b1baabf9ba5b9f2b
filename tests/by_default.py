"""Which cases of a test run by default, and which are marked slow."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(quick: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """Return cases for ``parametrize``, those marked slow that the default run does without.

    Args:
        quick: the cases that run by default.
        cases: all of them; a tuple is one case of several arguments.

    >>> len(slow_but({"a"}, ["a", "b"]))
    2
    """
    return [case if case in quick else _slow(case) for case in cases]


def _slow(case: Any) -> Any:
    arguments = case if isinstance(case, tuple) else (case,)
    return pytest.param(*arguments, marks=pytest.mark.slow)
