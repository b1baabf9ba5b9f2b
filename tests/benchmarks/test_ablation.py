"""Switching off what the solvers try: every holder of a number sees it, and only meanwhile."""

from __future__ import annotations

import pytest

from benchmarks import ablation
from planner.solvers import Limits, tuning
from planner.solvers.search import polish


def test_every_trick_is_a_number_that_is_there() -> None:
    for values in ablation.TRICKS.values():
        with ablation.changed(values):
            assert {name: vars(tuning)[name] for name in values} == values
    with pytest.raises(KeyError, match="NO_SUCH"), ablation.changed({"NO_SUCH": 1}):
        pass


def test_what_was_imported_by_name_is_changed_too() -> None:
    before = polish.POLISH_WORK
    own, named = polish.polish.__defaults__, polish.polish.__kwdefaults__
    with ablation.changed({"POLISH_WORK": 7}):
        assert polish.POLISH_WORK == 7
        assert 7 in (
            *(polish.polish.__defaults__ or ()),
            *(polish.polish.__kwdefaults__ or {}).values(),
        )
    assert polish.POLISH_WORK == before == tuning.POLISH_WORK
    assert (polish.polish.__defaults__, polish.polish.__kwdefaults__) == (own, named)


def test_constants_keep_their_kind() -> None:
    found = dict(ablation.constants())
    assert found["TINY_OPS doubled"] == {"TINY_OPS": 2 * tuning.TINY_OPS}
    assert isinstance(found["TINY_OPS halved"]["TINY_OPS"], int)


@pytest.mark.slow
def test_masters_earn_something() -> None:
    only = {"integer masters": ablation.TRICKS["integer masters"]}
    (row,) = ablation.measure(only, [("gpt2_2_layers", 1.05)], Limits(seconds=30))
    (sum_,) = ablation.earned([row])
    assert row.plan_lost > 1
    assert sum_.beaten == 1
