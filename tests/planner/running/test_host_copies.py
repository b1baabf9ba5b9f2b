"""Values go to the host and come back: not a bit changes, and memory is held as predicted."""

from __future__ import annotations

import gc
import os
import threading
import traceback
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.graphs import Action, Graph, Schedule, Step
from planner.graphs.hardware.host_tier import HostTier
from planner.graphs.host_memory import host_layout, movable
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.running import copies_to_files, host_copies
from planner.running.host_copies import HostMemory, send
from planner.solvers.model.gaps import gaps_of, with_copies
from planner.solvers.model.problem import flatten
from tests.by_default import slow_but
from tests.layers import SCENES
from tests.training import Scene, assert_same, measured_peak, train

ROUNDED_ELSEWHERE = {"gru"}
BY_DEFAULT = {
    ("dropout", "recompute_all"),
    ("batch_norm", "plain"),
    ("several_outputs", "plain"),
    ("lstm", "plain"),
}
MEASURED = ("dropout", "attention", "batch_norm")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def all_away(graph: Graph, order: Sequence[int], *, early: bool = False) -> Schedule:
    """Move all that may move wherever it is not read; ``early``: copy out as soon as it is made."""
    gaps = gaps_of(flatten(graph), order, movable(graph))
    after: dict[int, list[Step]] = {}
    before: dict[int, list[Step]] = {}
    for gap in gaps:
        begun = gap.made if early else gap.after
        after.setdefault(begun, []).append(Step(Action.OFFLOAD, gap.value))
        before.setdefault(gap.after + 1, []).append(Step(Action.FREE, gap.value))
        before.setdefault(gap.before, []).append(Step(Action.FETCH, gap.value))
    return with_copies(graph, order, before, after)


def moved(plan: planner.Plan, directory: Path, *, early: bool = False) -> planner.Plan:
    schedule = all_away(plan.graph, plan.schedule.order, early=early)
    tier = HostTier(1e9, 1e9, directory=str(directory))
    made: planner.Plan = replace(plan, schedule=schedule, host=tier)
    return made


def _cases() -> list[Any]:
    names = sorted(SCENES.keys() - ROUNDED_ELSEWHERE)
    cases = [(name, method) for name in names for method in ("plain", "recompute_all")]
    return slow_but(BY_DEFAULT, cases)


@pytest.mark.parametrize(("name", "method"), _cases())
def test_moving_all_that_may_move_changes_no_bit(name: str, method: str, tmp_path: Path) -> None:
    scene, model = SCENES[name], SCENES[name].model()
    plan = moved(scene.plan(model, method), tmp_path, early=method == "plain")
    assert_same(train(scene, scene.model(), steps=2), train(scene, plan.apply(model), steps=2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", slow_but(MEASURED[1:], MEASURED))
def test_what_is_away_is_not_held(name: str, tmp_path: Path) -> None:
    scene, model = SCENES[name], SCENES[name].model()
    plain = scene.plan(model, "plain")
    plan = moved(plain, tmp_path)
    assert plan.schedule.moves
    measured = measured_peak(scene, plan.apply(model))
    assert measured <= plan.peak_bytes
    assert measured >= 0.98 * plan.peak_bytes
    assert plan.peak_bytes < plain.peak_bytes


@pytest.fixture
def scene() -> Scene:
    return SCENES["scalar_loss_in_the_model"]


def test_a_slow_copy_holds_no_more(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan relies on the ends of copies, not on when they should be."""
    model = scene.model()
    plan = moved(scene.plan(model, "plain"), tmp_path, early=True)
    write = os.pwrite

    def late(*args: Any) -> int:
        threading.Event().wait(0.003)
        return write(*args)

    monkeypatch.setattr(copies_to_files.os, "pwrite", late)
    assert measured_peak(scene, plan.apply(model)) <= plan.peak_bytes


def test_two_runs_at_once_have_a_block_each(scene: Scene, tmp_path: Path) -> None:
    plain, model = scene.model(), scene.model()
    planned = moved(scene.plan(model, "plain"), tmp_path).apply(model)
    one, other = torch.randn(64, 16), torch.randn(64, 16)
    for each in (plain, planned):
        first, second = each(one), each(other)
        second.backward()
        first.backward()
    pairs = zip(plain.parameters(), planned.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)  # type: ignore[arg-type]


def test_blocks_are_used_again(scene: Scene, tmp_path: Path) -> None:
    model = scene.model()
    plan = moved(scene.plan(model, "plain"), tmp_path)
    planned = plan.apply(model)
    (memory,) = (m for k, m in host_copies._KNOWN.items() if k[2] == str(tmp_path))
    for _ in range(3):
        planned(scene.call()).backward()
        assert len(memory._free) == 1
    dropped = planned(scene.call())
    assert not memory._free
    del dropped
    gc.collect()
    assert len(memory._free) == 1


def test_a_full_disk_fails_when_the_plan_is_applied(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    model = scene.model()
    plan = moved(scene.plan(model, "plain"), tmp_path)
    monkeypatch.setattr(copies_to_files.os, "posix_fallocate", full)
    with pytest.raises(planner.HostMemoryError, match="cannot be made there: No space left"):
        plan.apply(model)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_none_is_named(scene: Scene, tmp_path: Path) -> None:
    model = scene.model()
    plan = moved(scene.plan(model, "plain"), tmp_path / "nowhere")
    with pytest.raises(planner.HostMemoryError, match=r"nowhere.*No such file"):
        plan.apply(model)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError("no memory")])
@pytest.mark.parametrize("call", ["pwrite", "preadv"])
def test_a_copy_that_fails_ends_the_step_and_nothing_else(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: Exception
) -> None:
    model = scene.model()
    planned = moved(scene.plan(model, "plain"), tmp_path).apply(model)
    before = train(scene, planned)

    def broken(*args: Any) -> int:
        raise error

    planned.zero_grad(set_to_none=True)
    with monkeypatch.context() as patched:
        patched.setattr(copies_to_files.os, call, broken)
        with pytest.raises(
            planner.HostMemoryError, match=r"could not be .*(Input/output error|no memory)"
        ):
            planned(scene.call()).backward()
    assert all(p.grad is None for p in planned.parameters())
    assert_same(before, train(scene, planned))


def test_what_is_not_the_steps_own_is_not_moved(scene: Scene, tmp_path: Path) -> None:
    model = scene.model()
    plan = scene.plan(model, "plain")
    graph = plan.graph
    kept = next(iter(graph.outputs))
    maker = next(i for i, s in enumerate(plan.schedule.steps) if s.index == graph.producer[kept])
    steps = list(plan.schedule.steps)
    steps[maker + 1 : maker + 1] = [
        Step(action, kept) for action in (Action.OFFLOAD, Action.FREE, Action.FETCH)
    ]
    wrong = replace(plan, schedule=Schedule(tuple(steps)), host=HostTier(1e9, 1e9))
    with pytest.raises(planner.InvalidPlan, match="not the step's own to move"):
        wrong.apply(model)


def test_other_devices_are_refused() -> None:
    with pytest.raises(planner.HostMemoryError, match="works on 'cuda' and 'cpu'"):
        host_copies.HostMemory(64, torch.device("meta"), None)


def test_the_peak_without_moving_is_larger(scene: Scene, tmp_path: Path) -> None:
    """Memory that the allocator has really given back: the records fall, too."""
    model, call = scene.model(), scene.call()
    plan = scene.plan(model, "plain")
    peaks: list[int] = []
    for each in (plan, moved(plan, tmp_path)):
        planned = each.apply(model)
        planned(call).backward()
        model.zero_grad(set_to_none=True)
        peaks.append(measure_peak(lambda m=planned: m(call).backward()).peak_bytes)  # type: ignore[misc]
        model.zero_grad(set_to_none=True)
    assert peaks[1] < 0.8 * peaks[0]


def test_places_of_copies_that_are_there_at_once_are_apart(scene: Scene, tmp_path: Path) -> None:
    plan = moved(scene.plan(scene.model(), "plain"), tmp_path, early=True)
    layout = host_layout(plan.graph, plan.schedule)
    assert layout.size_bytes >= plan.trace.host_peak_bytes
    assert layout.size_bytes <= plan.trace.host_peak_bytes + 64 * len(layout.offset_bytes)
    assert all(offset % 64 == 0 for offset in layout.offset_bytes.values())


class _Conjugated(nn.Module):
    """Reads a lazily conjugated view of a value, whose bit no kernel writes, far apart twice."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 16) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.complex(torch.tanh(x @ self.w), torch.sin(x @ self.w))
        c = z.conj()
        t = torch.tanh((c * c).imag @ self.w)
        return ((c * torch.sigmoid(t @ self.w)).imag * t).square().sum()


@pytest.mark.parametrize("early", [False, True])
def test_a_view_that_is_a_bit_is_written_anew(tmp_path: Path, early: bool) -> None:
    scene = Scene(_Conjugated, lambda: torch.randn(64, 16))
    away = moved(scene.plan(scene.model(), "plain"), tmp_path, early=early)
    assert_same(train(scene, scene.model()), train(scene, away.apply(scene.model())))


def _train_in_two_forks(made: planner.Plan, directory: Path) -> None:
    """Two children train at once, before their parent has, and again when it has threads."""
    scene = SCENES["scalar_loss_in_the_model"]
    wanted = train(scene, scene.model())
    parent = moved(made, directory).apply(scene.model())
    for _ in range(2):
        children = []
        for _ in range(2):
            if not (child := os.fork()):
                try:
                    fresh = moved(made, directory).apply(scene.model())
                    assert_same(wanted, train(scene, fresh))
                except BaseException:  # noqa: BLE001 - it ends here
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        train(scene, parent)


def test_a_fork_has_files_and_threads_of_its_own(scene: Scene, tmp_path: Path) -> None:
    """In a process of its own: autograd refuses a fork of one whose backward passes nested deep."""
    made = scene.plan(scene.model(), "plain")
    process = get_context("spawn").Process(target=_train_in_two_forks, args=(made, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_step_does_not_go_on_in_a_fork() -> None:
    memory = HostMemory(64, torch.device("cpu"), None)
    lease = memory.opener()()
    sent = send(lease, 0, 64, torch.zeros(16))
    sent.left()
    lease.process += 1
    with pytest.raises(planner.HostMemoryError, match="begun before a fork"):
        sent.fetch()


def test_a_value_is_no_larger_than_its_place() -> None:
    lease = HostMemory(64, torch.device("cpu"), None).opener()()
    with pytest.raises(planner.HostMemoryError, match="68 bytes, and planned of 64"):
        send(lease, 0, 64, torch.zeros(17))


def test_few_blocks_are_kept() -> None:
    memory = HostMemory(64, torch.device("cpu"), None)
    leases = [memory.opener()() for _ in range(5)]
    assert len({id(lease.block) for lease in leases}) == 5
    del leases
    gc.collect()
    again = [memory.take() for _ in range(3)]
    assert len({id(block) for block in again}) == 3
