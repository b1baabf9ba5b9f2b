"""The error of a step whose data ask for more than was planned for."""

from __future__ import annotations


class CapacityError(RuntimeError):
    """More rows arrive at a rank's experts than the plan has memory for."""
