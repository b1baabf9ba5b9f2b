"""What tests of running plans share."""

from __future__ import annotations

from typing import Any

import pytest

from planner.running.engines import op_by_op


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each trace of a program, whether it was for any size."""
    found: list[bool] = []
    own = op_by_op.recapture

    def counted(*args: Any, any_size: bool) -> Any:
        found.append(any_size)
        return own(*args, any_size=any_size)

    monkeypatch.setattr(op_by_op, "recapture", counted)
    return found
