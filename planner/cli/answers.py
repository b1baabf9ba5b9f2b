"""Answers and errors as a person or a machine reads them, and the exit code each ends in.

Knows what goes to standard output and what to standard error. Knows nothing of how an answer is
found.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, NoReturn, Protocol

import click

from planner.errors import InfeasibleBudget, PlannerError
from planner.output.plan_text import binding_summary, summary
from planner.output.sharded_plan_text import sharded_summary
from planner.plans import Plan, ShardedPlan

FITS, DOES_NOT_FIT, WRONG_INPUT, DEFECT, INTERRUPTED = 0, 1, 2, 3, 130


class Told(Protocol):
    """What was found, in text (``str``) and as JSON types."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain dicts, lists and numbers."""


def tell(found: Told, *, as_json: bool) -> None:
    """Print an answer."""
    click.echo(dumped(found.to_json()) if as_json else str(found))


def show_plan(plan: Plan | ShardedPlan, *, as_json: bool) -> NoReturn:
    """Print a plan and end with what it says."""
    if as_json:
        answers = summary(plan) if isinstance(plan, Plan) else sharded_summary(plan)
    click.echo(dumped(answers) if as_json else str(plan))
    finish(fits=plan.fits)


def finish(*, fits: bool) -> NoReturn:
    """End the process with what was asked: does it fit?"""
    sys.exit(FITS if fits else DOES_NOT_FIT)


@contextmanager
def answering(*, as_json: bool) -> Iterator[None]:
    """Turn what users can do wrong into one paragraph and an exit code.

    What the user's own code prints meanwhile goes to standard error.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except InfeasibleBudget as error:
        if as_json:
            click.echo(dumped(_infeasible(error)))
        click.echo(f"Does not fit: {error}", err=True)
        sys.exit(DOES_NOT_FIT)
    except (PlannerError, OSError) as error:
        if as_json:
            click.echo(dumped({"error": type(error).__name__, "message": str(error)}))
        click.echo(f"Error: {error}", err=True)
        sys.exit(WRONG_INPUT)
    except KeyboardInterrupt:
        click.echo("Interrupted", err=True)
        sys.exit(INTERRUPTED)  # click would say 1, which means that the plan does not fit


def _infeasible(error: InfeasibleBudget) -> dict[str, Any]:
    return {
        "fits": False,
        "budget_bytes": error.budget_bytes,
        "least_bytes": error.least_bytes,
        "binding": binding_summary(error.binding),
        "message": str(error),
    }


def dumped(data: dict[str, Any]) -> str:
    """Write JSON as every command does."""
    return json.dumps(data, indent=2)
