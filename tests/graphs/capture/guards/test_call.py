"""What a capture is valid for: told apart, rebuilt, kept as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from planner.graphs.capture.call_arguments import Arguments, arguments
from planner.graphs.capture.guards.call import differences, fake_call, signature_of
from planner.graphs.capture_error import CaptureError

CALL = arguments((torch.zeros(4, 16), [torch.ones(3).t(), 2, None]), {"b": True, "a": "x"})


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4))


def test_a_signature_is_json_and_equal_to_itself() -> None:
    found = signature_of(model(), CALL)
    assert json.loads(json.dumps(found)) == found
    assert list(differences(found, signature_of(model(), CALL))) == []


def test_a_fake_call_has_the_same_signature() -> None:
    call = arguments((torch.zeros(16, 4).t().requires_grad_(), 3), {"y": torch.ones(2).half()})
    found = signature_of(model(), call)
    assert signature_of(model(), fake_call(found)) == found


def _changed(kind: str) -> tuple[nn.Module, Arguments]:
    other, call = model(), CALL
    if kind == "dtype":
        other = other.double()
    elif kind == "frozen":
        other[0].bias.requires_grad_(False)  # type: ignore[index, union-attr]
    elif kind == "eval":
        other[1].eval()  # type: ignore[index, operator]
    elif kind == "class":
        other = nn.Linear(16, 4)
    elif kind == "constant":
        call = arguments((torch.zeros(4, 16), [torch.ones(3), 2, None]), {"b": False, "a": "x"})
    elif kind == "nesting":
        call = arguments((torch.zeros(4, 16), torch.ones(3), 2, None), {"b": True, "a": "x"})
    return other, call


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "dtype",
            "parameter '0.weight' is [[4, 16], 'float64', True], planned for [[4, 16], 'floa",
        ),
        (
            "frozen",
            "parameter '0.bias' is [[4], 'float32', False], planned for [[4], 'float32', Tr",
        ),
        ("eval", "train/eval mode of module '1' (1 in all) changed"),
        ("class", "the model is a Linear, planned for a Sequential"),
        ("constant", "is False, planned for True"),
        ("nesting", "argument 1[0] is missing, planned for float32[3]"),
    ],
)
def test_a_difference_is_named_first(kind: str, words: str) -> None:
    found = signature_of(*_changed(kind))
    first = next(differences(signature_of(model(), CALL), found))
    assert words in first


def test_arguments_are_named() -> None:
    def forward(self: Any, x: Any, mask: Any = None) -> None: ...

    def differ(planned: Any, found: Any) -> list[str]:
        one, other = (signature_of(model(), call) for call in (planned, found))
        return list(differences(one, other, forward))

    x, more = torch.zeros(4, 16), torch.zeros(5, 16)
    assert differ(arguments((x,), {}), arguments((more,), {})) == [
        "argument 'x' is float32[5, 16], planned for float32[4, 16]"
    ]
    assert differ(arguments((), {"x": x}), arguments((), {"x": x, "items": torch.tensor(7)})) == [
        "argument 'items' is new, int64[]; the plan was made without it"
    ]
    assert differ(arguments((x, x), {}), arguments((x,), {})) == [
        "argument 'mask' is missing, planned for float32[4, 16]"
    ]
    assert differ(arguments((), {"x": [x, x]}), arguments((), {"x": (x, x)})) == [
        "the arguments have another nesting or order than the planned ones"
    ]


@pytest.mark.parametrize("strange", [object(), 1j, slice(3)])
def test_arguments_that_no_file_can_hold_are_refused(strange: Any) -> None:
    with pytest.raises(CaptureError, match="expected tensors and plain constants"):
        signature_of(model(), arguments((strange,), {}))


def test_true_is_not_one() -> None:
    one, true = (signature_of(model(), arguments((v,), {})) for v in (1, True))
    assert list(differences(one, true))
