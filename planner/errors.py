"""Everything that can go wrong for a user, as one tree.

    PlannerError
      BadBudget           ValueError           the budget is not a size
      BadCluster          ValueError           these devices and links do not make a cluster
      BadRequest          ValueError           something is said that this does not take
      BadEstimate         ValueError           an estimate is asked of numbers that make no model
      CapacityExceeded    graphs.CapacityError more rows arrive at experts than the plan holds
      CaptureError        graphs.CaptureError  the training step cannot be captured
      CheckFailed         ValueError           a check in the model's own code fails
      HostMemoryError     RuntimeError         the host cannot take what a plan moves there
      InfeasibleBudget    ValueError           no schedule found fits the budget
      InvalidPlan         ValueError           a plan file is damaged, foreign or too new
      PlanMismatch        ValueError           the plan was made for another model or other inputs
        OtherKernels      PlanMismatch         the step runs other kernels here than were planned
      UnknownMethod       ValueError           no solver has this name
      UnknownEngine       ValueError           no engine has this name
      UnknownDevice       ValueError           no device has this name
      BadSpec             ValueError           a MODEL text does not lead to a model

Every message says what was found, what was expected and what to do next. Knows nothing of torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from planner.graphs import capture_error, expert_capacity
from planner.graphs.binding import Binding


class PlannerError(Exception):
    """The root: ``except PlannerError`` catches whatever this package raises on purpose."""


class BadBudget(PlannerError, ValueError):
    """The budget is not a positive size in bytes, a text such as "40GB", or a percentage."""


class BadCluster(PlannerError, ValueError):
    """The devices do not divide into nodes, or a link is not a rate."""


class BadRequest(PlannerError, ValueError, TypeError):
    """An unknown option, or one that is not for what was called."""


class BadEstimate(PlannerError, ValueError):
    """A count is not positive, does not fit the others, or a configuration cannot be read."""


class CapacityExceeded(PlannerError, expert_capacity.CapacityError):
    """More rows arrive at a rank's experts than the plan has memory for; raised on all ranks."""


class CaptureError(PlannerError, capture_error.CaptureError):
    """The training step cannot be captured; the message names the line and what to change."""


class CheckFailed(PlannerError, ValueError):
    """A check in the model's code, which passed when the step was planned, fails for a call."""


class HostMemoryError(PlannerError, RuntimeError):
    """The host has no room for what a plan moves there, or a copy there or back failed."""


class InfeasibleBudget(PlannerError, ValueError):
    """No schedule found fits the budget.

    Attributes:
        budget_bytes: what was asked for.
        least_bytes: the least budget known to work.
        binding: the moment that holds most in the schedule for ``least_bytes``.
    """

    def __init__(
        self, budget_bytes: int, least_bytes: int, binding: Binding, explanation: str
    ) -> None:
        # all of them are arguments of the base class, so that the error survives pickling
        super().__init__(budget_bytes, least_bytes, binding, explanation)
        self.budget_bytes, self.least_bytes, self.binding = budget_bytes, least_bytes, binding
        self._explanation = explanation

    def with_more(self, text: str) -> InfeasibleBudget:
        """Return the same error that says more.

        Args:
            text: what is added at the end.
        """
        explanation = self._explanation + text
        return InfeasibleBudget(self.budget_bytes, self.least_bytes, self.binding, explanation)

    def __str__(self) -> str:
        """Say what was asked, what would work, what binds and what to try."""
        return self._explanation


class InvalidPlan(PlannerError, ValueError):
    """A plan file is damaged, truncated, foreign, or written by a newer version."""


class PlanMismatch(PlannerError, ValueError):
    """The plan was made for another model, other inputs or another mode."""


class OtherKernels(PlanMismatch):
    """The step runs other kernels on this device than were planned on another."""


class BadSpec(PlannerError, ValueError):
    """A MODEL argument leads to no function that returns a model, or a format is unknown."""


class UnknownDevice(PlannerError, ValueError):
    """No device has this name; the message lists the valid ones."""


class UnknownEngine(PlannerError, ValueError):
    """No engine has this name; the message lists the valid ones."""


class UnknownMethod(PlannerError, ValueError):
    """No solver has this name; the message lists the valid ones, the likely one first.

    >>> print(UnknownMethod("atuo", ["auto", "milp"]))
    unknown method 'atuo' (did you mean 'auto'?); valid methods: auto, milp
    """

    def __init__(self, name: str, valid: Iterable[str]) -> None:
        self.name, self.valid = name, tuple(sorted(valid))
        super().__init__(name, self.valid)

    def __str__(self) -> str:
        """List the valid names."""
        close = difflib.get_close_matches(self.name, self.valid, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return f"unknown method {self.name!r}{hint}; valid methods: {', '.join(self.valid)}"
