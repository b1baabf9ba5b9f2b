"""Ranks go on together or not at all: four of them, as threads of this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch.distributed as dist

from planner.errors import CaptureError, PlanMismatch
from planner.running.one_plan import all_or_none
from tests.planner.running import threaded_ranks


def on_four(block: Callable[[int, dict[str, str]], None]) -> dict[int, Exception | None]:
    """Run a block on each of four ranks that go on together; return what each raised."""

    def run(rank: int) -> None:
        with all_or_none([cast("Any", dist.group.WORLD)]) as told:
            block(rank, told)

    return threaded_ranks.on_four(run)


def test_all_go_on_that_say_the_same() -> None:
    found = on_four(lambda _, told: told.update(plan="a", model="b"))
    assert found == dict.fromkeys(range(4))


@pytest.mark.parametrize("what", ["plan", "model"])
def test_what_differs_is_named_on_every_rank(what: str) -> None:
    found = on_four(lambda rank, told: told.update({what: str(rank > 1)}))
    for error in found.values():
        assert isinstance(error, PlanMismatch)
        assert f"ranks 2, 3 have another {what} than rank 0" in str(error)


@pytest.mark.parametrize("failing", [0, 3])
def test_what_one_rank_raises_ends_all(failing: int) -> None:
    """The others do not wait: they raise what it says, and it raises its own."""

    def block(rank: int, told: dict[str, str]) -> None:
        if rank == failing:
            raise CaptureError("no such module")
        told["plan"] = "a"

    found = on_four(block)
    assert str(found.pop(failing)) == "no such module"
    for error in found.values():
        assert isinstance(error, PlanMismatch)
        assert f"cannot be applied on ranks {failing}" in str(error)
        assert "CaptureError: no such module" in str(error)


def test_all_may_fail_each_by_itself() -> None:
    def block(rank: int, _: dict[str, str]) -> None:
        raise CaptureError(f"rank {rank}")

    assert [str(error) for _, error in sorted(on_four(block).items())] == [
        f"rank {rank}" for rank in range(4)
    ]
