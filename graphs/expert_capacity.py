"""How many rows a rank's experts may receive: what is planned for, and the error of more."""

from __future__ import annotations

CAPACITY_FACTOR = 2.0
"""How many times the even share of rows is planned for, unless something else is said."""


class CapacityError(RuntimeError):
    """More rows arrive at a rank's experts than the plan has memory for."""
