"""Questions about integer inputs: answered, remembered, asked again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import planner
from planner.graphs.capture.call_arguments import arguments, arguments_of
from planner.graphs.capture.guards.values import user_line
from planner.graphs.capture.joint_graph import Joint, source_of
from planner.graphs.capture.trace import trace
from planner.graphs.capture_error import CaptureError
from tests.scenes import Apply, mlp


def traced(ask: Callable[[Tensor], Any], ids: Tensor, **options: Any) -> Joint:
    """Trace a model that asks something of an integer input before it computes."""

    def run(m: Any, x: Tensor, ids: Tensor) -> Tensor:
        h = m.a(x)
        return (h if ask(ids) else -h).mean()

    return trace(Apply(run, a=mlp()), arguments((torch.zeros(4, 16), ids), {}), **options)


ONES = torch.ones(4, dtype=torch.long)
QUESTIONS: list[tuple[Callable[[Tensor], Any], Any]] = [
    (lambda ids: ids.all(), True),
    (lambda ids: (ids == 1).sum().item(), 4),
    (lambda ids: int(ids.max()) + 1, 1),
    (lambda ids: torch.equal(ids, torch.ones(4, dtype=torch.long)), True),
    (lambda ids: bool((ids.view(2, 2).sum(0) > 1)[0]), True),
    (lambda ids: ids.split(2)[1].float().mean().item(), 1.0),
]


@pytest.mark.parametrize(("ask", "answer"), QUESTIONS)
def test_an_answer_is_remembered_and_asked_again(ask: Callable[[Tensor], Any], answer: Any) -> None:
    decisions = traced(ask, ONES).decisions
    assert decisions.answers == (answer,)
    x = torch.zeros(4, 16)
    assert decisions.broken_by([x, ONES]) is None
    assert decisions.broken_by([x, ONES.clone()]) is None
    broken = decisions.broken_by([x, torch.tensor([0, 3, 0, 7])])
    assert broken is not None
    assert __file__ in broken.source


def test_lists_and_loops_are_questions() -> None:
    assert traced(lambda ids: ids.tolist()[0], ONES).decisions.answers == ([1, 1, 1, 1],)
    assert traced(lambda ids: [bool(i > 0) for i in ids], ONES).decisions.answers == (True,) * 4


def test_what_does_not_depend_on_inputs_is_no_decision() -> None:
    joint = traced(lambda ids: torch.arange(3).sum().item() == 3, ONES)
    assert joint.decisions.answers == ()


def test_recorded_answers_stand_in_for_data() -> None:
    blank = ONES.to("meta")
    ask = QUESTIONS[0][0]
    with pytest.raises(CaptureError, match=r"test_values\.py:\d+ asks .* no data"):
        traced(ask, blank)
    for answer in (True, False):
        joint = traced(ask, blank, answers=(answer,))
        assert joint.decisions.answers == (answer,)
        assert any(n.target is torch.ops.aten.neg.default for n in joint.graph.nodes) is not answer
    with pytest.raises(CaptureError, match="no answer"):
        traced(ask, blank, answers=())


def test_a_changed_tensor_is_forgotten() -> None:
    def ask(ids: Tensor) -> bool:
        mine = ids.clone()
        mine.view(2, 2)[0] = 0
        return bool(mine.all())

    with pytest.raises(CaptureError, match="needs the value of a tensor"):
        traced(ask, ONES)


@pytest.mark.parametrize("write", [lambda h: F.relu(h, inplace=True), lambda h: h.mul_(2)])
def test_what_a_transform_hands_out_may_be_written(write: Callable[[Tensor], Tensor]) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return torch.vmap(lambda w: write(x @ w))(m.a[0].weight.view(4, 16, -1)).mean()

    trace(Apply(run, a=mlp()), arguments_of(torch.zeros(4, 16)))


def test_random_numbers_are_no_answers() -> None:
    with pytest.raises(CaptureError, match="needs the value of a tensor"):
        traced(lambda ids: torch.randint_like(ids, 2).all(), ONES)


def test_who_called_the_planner_is_not_the_source_of_an_op() -> None:
    joint = trace(nn.Sequential(nn.Linear(4, 4)), arguments_of(torch.ones(2, 4)))
    assert {source_of(n) for n in joint.graph.nodes} == {""}


TORCH, OURS = Path(torch.__file__).parent, Path(planner.__file__).parent


@pytest.mark.parametrize(
    ("path", "users"),
    [
        (TORCH / "nn" / "functional.py", False),
        (OURS / "fit.py", False),
        (OURS / "graphs" / "capture" / "trace.py", False),
        (TORCH.with_name("torchvision") / "models" / "resnet.py", True),
        (OURS.with_name("planner_app") / "train.py", True),
        (OURS.with_name("train.py"), True),
    ],
    ids=lambda x: "/".join(x.parts[-3:]) if isinstance(x, Path) else str(x),
)
def test_a_line_of_the_user_is_told_by_its_folder(path: Path, users: bool) -> None:
    names: dict[str, Any] = {"sys": sys}
    exec(compile("frame = sys._getframe()", str(path), "exec"), names)
    assert user_line(names["frame"], walk=False) == (f"{path}:1" if users else "")
