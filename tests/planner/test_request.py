"""What a person says of a training step, and what a model says of itself."""

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import BadCluster, BadRequest, CaptureError, Request, UnknownDevice
from planner.graphs.capture.training_step import capture
from planner.graphs.hardware import detect
from planner.graphs.hardware.device_files import save_device
from planner.graphs.hardware.devices import Device, device
from planner.request_defaults import example_inputs, find_device, optimizer_name
from planner.step_options import AnyOptions


def test_the_models_own_example_is_used(make_net: Callable[[], nn.Module]) -> None:
    model = make_net()
    model.example_input_array = torch.zeros(8, 16)
    assert "8, 16" in planner.fit(model, "1GB").signature["inputs"][0]


class Dummy(nn.Module):
    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        return {"x": torch.zeros(5, 16)}


def test_dummy_inputs_are_used() -> None:
    assert example_inputs(Dummy())["x"].shape == (5, 16)


class Labelled(Dummy):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(x) if labels is None else nn.functional.cross_entropy(self.head(x), labels)


def test_a_plan_says_that_dummy_inputs_have_no_labels() -> None:
    missing = "planned for Labelled's dummy_inputs, which have no labels"
    assert missing in str(planner.fit(Labelled(), "1GB")).replace("\n    ", " ")
    inputs = {"x": torch.zeros(5, 16), "labels": torch.zeros(5, dtype=torch.long)}
    assert missing not in str(planner.fit(Labelled(), "1GB", inputs=inputs))


def test_no_inputs_says_what_to_pass(make_net: Callable[[], nn.Module]) -> None:
    with pytest.raises(CaptureError, match=r"Net has neither .*: pass inputs="):
        planner.fit(make_net(), "1GB")


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (None, None),
        ("sgd", "sgd"),
        (torch.optim.SGD, "SGD"),
        (torch.optim.SGD([torch.zeros(1)]), "SGD"),
        (partial(torch.optim.SGD, lr=0.1), "partial"),
    ],
)
def test_optimizer_names(optimizer: Any, name: str | None) -> None:
    assert optimizer_name(optimizer) == name


MINE = Device("my card", {"float32": 1e12}, 2**34, 1e11)


def test_a_device_is_a_name_a_file_or_itself(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    save_device(MINE, tmp_path / "card.json")
    assert find_device(MINE, model) is MINE
    assert find_device(str(tmp_path / "card.json"), model) == MINE
    assert find_device(tmp_path / "card.json", model) == MINE
    assert find_device("NVIDIA A100-PCIE-40GB", model).name == "A100-PCIe-40GB"
    assert find_device("auto", model) == find_device("auto", model.to("meta")) == device("cpu")
    for unknown in ("TPU", str(tmp_path / "none.json")):
        with pytest.raises(UnknownDevice, match=unknown):
            find_device(unknown, model)


class Elsewhere(nn.Module):
    """A model on an accelerator, as far as anybody can tell here."""

    def __init__(self, kind: str, index: int | None) -> None:
        super().__init__()
        self.where = SimpleNamespace(type=kind, index=index)

    def parameters(self, recurse: bool = True) -> Any:
        yield SimpleNamespace(is_meta=False, device=self.where)


def test_the_device_of_a_model_is_that_of_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [
        SimpleNamespace(name="NVIDIA L4", total_memory=22 * 2**30),
        SimpleNamespace(name="NVIDIA Whatever", total_memory=2**34, multi_processor_count=30),
    ]
    fake = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: len(cards),
        get_device_properties=cards.__getitem__,
    )
    monkeypatch.setattr(detect.torch, "get_device_module", lambda _: fake)
    assert find_device("auto", Elsewhere("cuda", 0)).name == "L4"
    assert find_device("auto", Elsewhere("cuda", None)).name == "L4"
    found = find_device("auto", Elsewhere("cuda", 1))
    assert (found.name, found.memory_bytes) == ("NVIDIA Whatever", 2**34)
    for said in ("cuda", "cuda:0", torch.device("cuda"), torch.device("cuda", 0)):
        assert find_device(said, nn.Linear(2, 2)).name == "L4"
    assert find_device("cuda:1", nn.Linear(2, 2)) == found
    with pytest.raises(UnknownDevice, match=r"this machine has 2 of 'cuda'.*none is 2; name the"):
        find_device(torch.device("cuda", 2), nn.Linear(2, 2))
    fake.is_available = lambda: False
    with pytest.raises(UnknownDevice, match="has no 'cuda'; name the card to plan for"):
        find_device("cuda", nn.Linear(2, 2))
    with pytest.raises(UnknownDevice, match="lives on 'cuda', but this machine has no 'cuda': say"):
        find_device("auto", Elsewhere("cuda", 0))


def test_capture_takes_a_device_of_ones_own(tmp_path: Path) -> None:
    model, inputs = nn.Linear(256, 256), torch.zeros(4096, 256)  # no matter of launches
    save_device(MINE, tmp_path / "card.json")
    mine = capture(model, inputs, device=MINE).graph
    assert mine == capture(model, inputs, device=tmp_path / "card.json").graph
    assert mine.seconds > capture(model, inputs, device="H100 SXM").graph.seconds


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"precisions": ("bfloat16",)}, "precisions= would have no effect on one device"),
        ({"allocator": "segments"}, "allocator= is for an accelerator"),
        ({"global_batch": 8, "link": "NDR"}, "global_batch=, link= would have no effect"),
        ({"world_size": 2, "accumulate": True}, "accumulate=True is for one device"),
        ({"world_size": 2, "rewrites": ["as_captured"]}, "rewrites= are for one device"),
        ({"world_sice": 2}, "did you mean 'world_size'"),
        (
            {"colour": "red"},
            "'colour' cannot be said here; it takes accumulate, allocator, capacity_factor, ",
        ),
        ({"progress": "loud"}, "progress='loud': expected 'auto', 'off'"),
        ({"engine": "steam"}, "unknown engine 'steam'"),
        ({"costs": "free"}, "unknown costs 'free'"),
        ({"method": "atuo"}, "did you mean 'auto'"),
    ],
)
def test_nothing_is_dropped_in_silence(
    make_net: Callable[[], nn.Module], said: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        planner.fit(make_net(), "1GB", inputs=torch.zeros(8, 16), **said)


@pytest.mark.parametrize("ask", [planner.pareto, partial(planner.compare, budget="1GB")])
def test_every_door_refuses_what_it_does_not_take(
    make_net: Callable[[], nn.Module], ask: Callable[..., Any]
) -> None:
    with pytest.raises(planner.BadRequest, match="'world_size' cannot be said here"):
        ask(make_net(), inputs=torch.zeros(8, 16), world_size=2)


def test_a_request_is_asked_many_things(make_net: Callable[[], nn.Module]) -> None:
    inputs = torch.zeros(64, 16)
    asked = planner.Request(make_net(), inputs, optimizer=None, progress="off")
    plan = planner.fit(asked, "1GB")
    assert (plan.optimizer, plan.fits) == (None, True)
    assert planner.fit(asked, "1GB", optimizer="sgd").optimizer == "sgd"
    assert planner.compare(asked, "1GB", methods=["plain"]).rows[0].fits
    assert planner.pareto(asked, points=2).points


def test_the_options_are_the_fields_of_a_request() -> None:
    names = {f.name for f in fields(planner.Request)}
    assert names - {"model"} == set(AnyOptions.__annotations__)
    said = planner.Request.__doc__ or ""
    assert all(f"        {name}: " in said for name in names)


def test_signatures_show_what_may_be_said() -> None:
    shown = inspect.signature(planner.fit).parameters
    assert set(shown) == {"model", "budget", *AnyOptions.__annotations__}
    assert (shown["optimizer"].default, shown["world_size"].default) == ("adamw", 1)
    assert "world_size" not in inspect.signature(planner.pareto).parameters
    assert (
        inspect.signature(planner.max_batch).parameters["inputs"].default is inspect.Parameter.empty
    )


def rows(count: int) -> torch.Tensor:
    return torch.zeros(count, 4)


def _request(**said: Any) -> Request:
    return Request(nn.Linear(4, 4), inputs=torch.zeros(2, 4), loss=torch.sum, **said)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda r: planner.fit(r, "1MB"), {"precisions": ("bfloat16",), "global_batch": 3}),
        (lambda r: planner.fit(r, "1MB"), {"rewrites": ("as_captured", "x"), "world_size": 2}),
        (lambda r: planner.pareto(r, points=3), {"world_size": 8}),
        (lambda r: planner.pareto(r, points=3), {"rewrites": ("other",)}),
        (lambda r: planner.compare(r, "1MB"), {"world_size": 8}),
        (lambda r: planner.max_batch(r, "1MB", inputs=rows), {"method": "plain"}),
    ],
)
def test_a_request_drops_nothing_in_silence(ask: Any, said: dict[str, Any]) -> None:
    with pytest.raises((BadRequest, BadCluster)):
        ask(_request(**said))


@pytest.mark.parametrize(
    "said",
    [
        {"rewrites": ()},
        {"rewrites": "as_captured"},
        {"precisions": "bfloat16"},
        {"progress": "on"},
        {"world_size": True},
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(said: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=next(iter(said))):
        planner.fit(_request(**said), "1MB")
    with pytest.raises(BadRequest, match=r"expected an nn\.Module"):
        planner.fit("a model", "1MB")  # type: ignore[call-overload]


def test_room_for_others_is_taken_off_and_said() -> None:
    alone = planner.fit(_request(), "1MB")
    beside = planner.fit(_request(reserve="400kB"), "1MB")
    assert beside.peak_bytes == alone.peak_bytes + 400_000
    assert "400 KB" in str(beside)
    assert "reserve=" in str(beside)
    with pytest.raises(planner.InfeasibleBudget):
        planner.fit(_request(reserve="1MB"), "1MB")


def test_times_that_nothing_was_measured_for_are_said_to_be_estimates() -> None:
    estimated = planner.fit(_request(device="A100-40GB"), "2GB")
    asked = planner.fit(_request(device="A100-40GB", costs="measured"), "2GB")
    assert asked.costs == "roofline"
    assert asked.seconds == estimated.seconds
    assert "were measured" not in str(asked)
    assert "the model is not on A100-40GB here" in " ".join(str(asked).split())
    shapes = planner.fit(replace(_request(costs="measured"), model=nn.Linear(4, 4, device="meta"),
                                 inputs=torch.empty(2, 4, device="meta")), "1MB")  # fmt: skip
    assert "the model has no data" in str(shapes)
    here = planner.fit(_request(costs="measured"), "1MB")
    assert here.costs == "measured"
    assert "nothing was measured" not in str(here)


def test_a_budget_that_the_card_does_not_have_is_said() -> None:
    said = "the budget is more than A100-40GB has"
    assert said in str(planner.fit(_request(device="A100-40GB"), "100GB"))
    assert said not in str(planner.fit(_request(device="A100-40GB"), "100%"))


def test_several_devices_say_so_too() -> None:
    said = {"device": "A100-40GB", "world_size": 2, "inputs": torch.zeros(2, 4)}
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    plan = planner.fit(model, "90GB", loss=torch.sum, costs="measured", **said)  # type: ignore[call-overload]
    text = " ".join(str(plan).split())
    assert "the budget is more than A100-40GB has" in text
    assert "the model is not on A100-40GB here" in text
    assert plan.step.costs == "roofline"
