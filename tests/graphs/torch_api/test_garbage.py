"""Old objects are out of garbage collection while a step is planned, and in it again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from planner.graphs.torch_api.garbage import only_new_collected


class Cycle:
    def __init__(self) -> None:
        self.own = self


@pytest.fixture(autouse=True)
def nothing_frozen() -> Iterator[None]:
    """Let a test run in a process in which nothing is frozen, and leave it so."""
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_what_is_made_inside_is_collected_and_what_was_there_is_not_looked_at() -> None:
    old = weakref.ref(Cycle())
    with only_new_collected():
        new = weakref.ref(Cycle())
        gc.collect()
        assert new() is None
        assert old() is not None
    gc.collect()
    assert old() is None


def test_all_is_as_before_after_an_error_and_inside_another_block() -> None:
    @only_new_collected()
    def failing() -> None:
        with only_new_collected():
            pass
        assert gc.get_freeze_count()
        raise ValueError("meanwhile")

    with pytest.raises(ValueError, match="meanwhile"):
        failing()
    assert not gc.get_freeze_count()


def test_what_somebody_froze_stays_frozen() -> None:
    gc.freeze()
    with only_new_collected():
        pass
    assert gc.get_freeze_count()
