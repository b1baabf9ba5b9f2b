"""The largest batch: verified on both sides, with and without a plan, and what none exceeds."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import planner
from planner.analysis.batch_search import Batches
from planner.analysis.max_batch import MaxBatch
from planner.cli import cli
from planner.graphs import Graph, Op, Phase, Value, plain_schedule, simulate
from planner.request import request_of
from tests.asked import capture_step

BACKWARD = Phase.BACKWARD


def _images(batch: int) -> Tensor:
    return torch.empty(batch, 16, device="meta")


@pytest.fixture(scope="module")
def found(make_net: Callable[[], nn.Module]) -> MaxBatch:
    return planner.max_batch(make_net(), "1MB", inputs=_images, optimizer="sgd")


def _plain_peak(model: nn.Module, batch: int) -> int:
    captured = capture_step(
        model,
        inputs=_images(batch),
        loss=None,
        targets=None,
        optimizer="sgd",
        device="cpu",
        costs="roofline",
        accumulate=False,
        progress=None,
    )
    return simulate(captured.graph, plain_schedule(captured.graph)).peak_bytes


def test_the_plain_batch_is_the_last_that_fits(
    make_net: Callable[[], nn.Module], found: MaxBatch
) -> None:
    assert _plain_peak(make_net(), found.plain_batch) <= 10**6
    assert _plain_peak(make_net(), found.plain_batch + 1) > 10**6


def test_the_planned_batch(make_net: Callable[[], nn.Module], found: MaxBatch) -> None:
    assert found.plain_batch < found.batch <= found.bound_batch
    assert found.plan.fits
    assert found.plan.overhead <= found.max_overhead
    assert found.ratio == found.batch / found.plain_batch
    assert found.plan.signature["inputs"] == [f"float32[{found.batch}, 16]"]
    beyond = planner.fit(make_net(), "1MB", inputs=_images(found.bound_batch + 1), optimizer="sgd")
    assert beyond.bound_overhead > found.max_overhead


def test_each_batch_has_the_variant_that_suits_it() -> None:
    """One is quick and grows fast, the other slow and small; a third takes too long at any size."""

    def step(seconds: float, size: int) -> Graph:
        ops = (Op("f", "f", (), (0,), seconds), Op("g", "g", (0,), (1,), seconds, phase=BACKWARD))
        return Graph(ops, (Value("x", size), Value("y", 1)))

    def capture(batch: int) -> list[Any]:
        graphs = {
            "quick": step(1.0 * batch, 10 * batch),
            "small": step(1.1 * batch, 30 + batch),
            "slow": step(2.0 * batch, batch),
        }
        return [SimpleNamespace(graph=g, rewrite=name) for name, g in graphs.items()]

    request = request_of(nn.Linear(1, 1), {"inputs": torch.zeros(1, 1), "loss_chunks": "auto"})
    search = Batches(capture, 101, None, request)
    assert search.largest(search.fits) == 70
    assert search.best(70)[0].rewrite == "small"
    assert search.best(4)[0].rewrite == "quick"
    assert search.largest(search.fits_plain) == 10  # the first is the step without a plan
    assert search.allowed_seconds(search.graphs(4)[1]) == pytest.approx(4.0 - 0.8)
    assert not search.fits(search.graphs(4)[2])


def test_few_captures_are_enough(found: MaxBatch) -> None:
    assert found.captures <= 8


def test_one_more_forward_pass_is_what_forward_takes(found: MaxBatch) -> None:
    forward = sum(op.seconds for op in found.plan.graph.ops if op.phase.value == "forward")
    assert found.max_overhead == pytest.approx(forward / found.plan.graph.seconds)


def test_less_overhead_never_gives_a_larger_batch(
    make_net: Callable[[], nn.Module], found: MaxBatch
) -> None:
    tight = planner.max_batch(make_net(), "1MB", inputs=_images, optimizer="sgd", max_overhead="1%")
    none = planner.max_batch(make_net(), "1MB", inputs=_images, optimizer="sgd", max_overhead=0)
    assert none.plain_batch == none.batch == none.bound_batch == found.plain_batch
    assert none.batch <= tight.batch <= found.batch
    assert tight.max_overhead == pytest.approx(0.01)


def test_a_budget_too_small_for_one(make_net: Callable[[], nn.Module]) -> None:
    with pytest.raises(planner.InfeasibleBudget, match="least budget"):
        planner.max_batch(make_net(), "10KB", inputs=_images)


@pytest.mark.parametrize("text", ["much", "-3%", "", -0.1, math.inf, "nan"])
def test_an_overhead_that_is_none(make_net: Callable[[], nn.Module], text: str | float) -> None:
    with pytest.raises(planner.BadBudget, match="'forward' for one more forward pass"):
        planner.max_batch(make_net(), "1MB", inputs=_images, max_overhead=text)


def test_the_plan_is_applied(make_net: Callable[[], nn.Module], found: MaxBatch) -> None:
    planned = found.plan.apply(make_net())
    planned(torch.randn(found.batch, 16)).backward()


def test_answer_first(found: MaxBatch) -> None:
    first, second, *_ = str(found).splitlines()
    assert first == f"Largest batch {found.batch} within 1.00 MB (977 KiB)"
    assert f"{found.plain_batch} fits without recomputation" in second


def test_on_the_command_line(tmp_path: Path, forget_imports: None) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n"
        "    layers = [m for _ in range(3) for m in (nn.Linear(16, 16), nn.GELU())]\n"
        "    return nn.Sequential(*layers), torch.zeros(8, 16)\n"
        "def batch(n):\n"
        "    return torch.empty(n, 16, device='meta')\n"
    )
    spec = f"{tmp_path}/net.py"
    asked = ["max-batch", f"{spec}:make", "--budget", "1MB", "--max-overhead", "50%", "--json"]
    scaled = CliRunner().invoke(cli, asked)
    assert scaled.exit_code == 0
    given = CliRunner().invoke(cli, [*asked, "--inputs", f"{spec}:batch"])
    assert json.loads(given.stdout) == json.loads(scaled.stdout)
    assert json.loads(given.stdout)["ratio"] > 1
    missing = CliRunner().invoke(cli, [*asked, "--inputs", f"{spec}:nothing"])
    assert missing.exit_code == 2
    assert "has no function 'nothing'" in missing.output
    failing = CliRunner().invoke(cli, [*asked, "--inputs", f"{spec}:make"])
    assert failing.exit_code == 2
    assert "takes 0 positional arguments" in failing.output
