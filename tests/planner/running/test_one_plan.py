"""Ranks go on together or not at all: four of them, as threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed import multi_threaded_pg as threaded

from planner.errors import CaptureError, PlanMismatch
from planner.running.one_plan import all_or_none

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture
def threads() -> Iterator[None]:
    """Let each thread be a process to ``torch.distributed``."""
    isolated: Any = torch._C._distributed_c10d._set_thread_isolation_mode  # type: ignore[attr-defined]
    isolated(True)
    threaded._install_threaded_pg()
    yield
    threaded._uninstall_threaded_pg()
    isolated(False)
    threaded.ProcessLocalGroup.reset()


def on_four(block: Callable[[int, dict[str, str]], None]) -> dict[int, Exception | None]:
    """Run a block on each of four ranks, in one group of all; return what each raised."""
    found: dict[int, Exception | None] = {}
    store = dist.HashStore()

    def run(rank: int) -> None:
        dist.init_process_group("threaded", rank=rank, world_size=4, store=store)
        try:
            with all_or_none([cast("Any", dist.group.WORLD)]) as told:
                block(rank, told)
            found[rank] = None
        except Exception as error:  # noqa: BLE001
            found[rank] = error
        dist.destroy_process_group()

    ranks = [threading.Thread(target=run, args=(r,), daemon=True) for r in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert len(found) == 4, "a rank waits for others"
    return found


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
