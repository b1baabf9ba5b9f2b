"""The tree of errors."""

import pickle
from collections.abc import Callable

import pytest

import planner
import planner.graphs.capture_error
from planner import errors
from planner.plans import Plan


def _all_errors() -> list[type[Exception]]:
    return [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]


@pytest.mark.parametrize("error", _all_errors())
def test_one_except_clause_catches_all(error: type[Exception]) -> None:
    assert issubclass(error, planner.PlannerError)
    assert error.__doc__
    assert error is planner.PlannerError or issubclass(
        error, ValueError | NotImplementedError | RuntimeError
    )


@pytest.mark.parametrize("error", _all_errors())
def test_the_tree_in_the_docstring_is_the_tree(error: type[Exception]) -> None:
    assert errors.__doc__ is not None
    assert f"  {error.__name__} " in errors.__doc__.replace("\n", " \n")


def test_capture_errors_are_those_of_the_graph_too() -> None:
    assert issubclass(planner.CaptureError, planner.graphs.capture_error.CaptureError)


def test_unknown_method_names_the_likely_one_first() -> None:
    text = str(errors.UnknownMethod("chen_sqr", ["auto", "milp", "chen_sqrt"]))
    assert "did you mean 'chen_sqrt'" in text
    assert text.endswith("valid methods: auto, chen_sqrt, milp")
    assert "did you mean" not in str(errors.UnknownMethod("zzz", ["auto"]))


def test_infeasible_budget_survives_pickling(make_plan: Callable[..., Plan]) -> None:
    error = planner.InfeasibleBudget(10, 20, make_plan().binding, "try something")
    again = pickle.loads(pickle.dumps(error))
    assert (again.budget_bytes, again.least_bytes, str(again)) == (10, 20, "try something")
    assert again.binding == error.binding


def test_all_is_sorted_and_true() -> None:
    assert planner.__all__ == sorted(planner.__all__)
    assert all(hasattr(planner, name) for name in planner.__all__)
