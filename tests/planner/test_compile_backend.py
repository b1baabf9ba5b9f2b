"""The backend of torch.compile: every step that it is given is planned within the budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

import planner
from planner.compile_backend import by_name
from planner.graphs import Kind
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.solvers import Limits
from tests.compiled import Broken, Net, measured_bytes, net, static_bytes, step
from tests.speaker import Speaker, batch, usual

QUICK = {"optimizer": None, "limits": Limits(seconds=3)}
SLOW = pytest.mark.slow
pytestmark = pytest.mark.usefixtures("stubbed")


def test_a_step_is_planned_within_the_budget_and_a_recompiled_one_too() -> None:
    model, x = net()
    said: list[str] = []
    large = planner.backend("1GB", **QUICK, progress=said.append)
    step(torch.compile(model, backend=large, dynamic=False), x)
    (plan,) = large.plans
    assert plan.engine == "inductor"
    assert said[-1] == repr(plan)
    assert "no optimizer is counted" in plan.remarks[-1]

    budget = int(0.65 * plan.plain_peak_bytes)
    torch._dynamo.reset()
    small = planner.backend(budget, **QUICK)
    compiled = torch.compile(model, backend=small, dynamic=False)
    assert measured_bytes(compiled, x) <= budget
    assert measured_bytes(compiled, x[:1024]) <= budget
    first, second = small.plans
    assert first.recomputed
    assert second.plain_peak_bytes < first.plain_peak_bytes
    with torch.no_grad():
        compiled(x)
    assert len(small.plans) == 2  # without gradients there is nothing to plan


@pytest.mark.parametrize(
    ("dynamic", "counts"),
    [
        (None, (1, 2, 2, 3)),
        pytest.param(True, (1, 1, 1, 2), marks=SLOW),
        pytest.param(False, (1, 2, 3, 4), marks=SLOW),
    ],
)
def test_one_plan_is_for_all_sizes_up_to_the_largest_so_far(
    *, dynamic: bool | None, counts: tuple[int, ...]
) -> None:
    model, x = Net(depth=1), torch.randn(600, 32)
    budget = 950_000
    backend = planner.backend(budget, **QUICK)
    compiled = torch.compile(model, backend=backend, dynamic=dynamic)
    found = []

    def train(*lengths: int) -> None:
        for rows in lengths:
            assert measured_bytes(compiled, x[:rows]) <= backend.plans[-1].peak_bytes <= budget
            found.append(len(backend.plans))

    with torch._dynamo.config.patch(recompile_limit=counts[-1]):
        train(512, 256, 384)
        with pytest.warns(planner.PlannerWarning, match="no more sizes"):
            train(600)
    assert tuple(found) == counts
    assert backend.plans[0].recomputed
    assert backend.plans[-1].peak_bytes > backend.plans[0].peak_bytes


def test_a_dimension_that_is_marked_is_planned_for_the_most_that_it_is_said_to_be() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.GELU(), nn.Linear(8, 8, bias=False))
    x = torch.randn(64, 8, requires_grad=True)
    torch._dynamo.mark_dynamic(x, 0, min=2, max=512)
    backend = planner.backend("1GB", **QUICK)
    compiled = torch.compile(model, backend=backend)

    def step(given: Tensor) -> None:
        compiled(given).backward(torch.ones(len(given), 8))

    step(x)
    (plan,) = backend.plans
    large = torch.randn(512, 8, requires_grad=True)
    step(large)
    assert backend.plans == (plan,)
    for tensor in (large, *model.parameters()):
        tensor.grad = None
    held = static_bytes(model, large) + measure_peak(lambda: step(large)).peak_bytes
    assert held <= plan.peak_bytes <= 1.05 * held


class Rest(nn.Module):
    """Computes the more the less it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.layer = nn.Parameter(torch.randn(600, 32)), nn.Linear(32, 128)

    def forward(self, x: Tensor) -> Tensor:
        rest = nn.functional.gelu(self.layer(self.rows[: 600 - x.shape[0]]))
        return rest.square().mean() + (self.rows[0] * x).square().mean()


def test_a_step_that_holds_more_at_a_smaller_size_than_the_budget_is_refused() -> None:
    compiled = torch.compile(Rest(), backend=planner.backend(400_000, **QUICK), dynamic=True)
    with pytest.raises(BackendCompilerFailed, match=r"at some size .*dynamic=False"):
        compiled(torch.randn(512, 32))


def test_a_plan_from_a_file_is_carried_out_again(tmp_path: Path) -> None:
    model, x = Net(depth=1), torch.randn(512, 32)
    first = planner.backend("8MB", **QUICK)
    step(torch.compile(model, backend=first), x)
    first.plans[0].save(tmp_path / "plan.json")
    known = planner.load(tmp_path / "plan.json")
    said: list[str] = []
    again = planner.backend("8MB", plans=[known], **QUICK, progress=said.append)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=again, dynamic=False)
    assert measured_bytes(compiled, x) <= known.peak_bytes
    assert again.plans == (known,)
    assert not any("solving" in text for text in said)
    step(compiled, x[:256])
    assert len(again.plans) == 2
    with pytest.raises(planner.BadRequest, match="has one of str"):
        planner.backend("8MB", plans=["plan.json"])  # type: ignore[list-item]


def test_the_optimizers_state_is_counted() -> None:
    model, x = net()
    counted = planner.backend("1GB", limits=Limits(seconds=3))
    step(torch.compile(model, backend=counted), x)
    state = sum(2 * p.nbytes for p in model.parameters())
    values = counted.plans[0].graph.values
    planned = sum(v.size_bytes for v in values if v.kind is Kind.OPTIMIZER)
    assert state <= planned <= state + 8 * len(list(model.parameters()))


def test_what_would_break_the_budget_is_refused() -> None:
    model, x = net()
    broken = torch.compile(Broken(), backend=planner.backend("1GB", **QUICK))
    with pytest.raises(BackendCompilerFailed, match=r"breaks at .*tests/compiled.py:\d+ \(torch"):
        broken(x)
    shared = planner.backend("1GB", **QUICK)
    step(torch.compile(model, backend=shared), x)
    with pytest.raises(BackendCompilerFailed, match="beside the first"):
        torch.compile(model.blocks[0], backend=shared)(x)
    with pytest.raises(BackendCompilerFailed, match="No schedule was found"):
        torch.compile(model, backend=planner.backend("600KB", **QUICK))(x)
    with pytest.raises(planner.BadRequest, match="cannot be said"):
        planner.backend("1GB", loss=torch.mean)
    with pytest.raises(planner.BadRequest, match="did you mean 'optimizer'"):
        planner.backend("1GB", optimiser="sgd")


def test_a_mark_for_one_graph_of_all_sizes_is_refused_where_each_is_planned_by_itself() -> None:
    model, x = Net(depth=1), torch.randn(64, 32)
    plan = planner.fit(model, "1GB", inputs=x.clone(), **QUICK, engine="inductor")
    torch._dynamo.mark_dynamic(x, 0)
    with pytest.raises(planner.PlanMismatch, match=r"leave torch\._dynamo\.mark_dynamic out"):
        plan.apply(Net(depth=1))(x)
    with pytest.raises(planner.CaptureError, match=r"leave torch\._dynamo\.mark_dynamic out"):
        planner.fit(model, "1GB", inputs=x, **QUICK, engine="inductor")


class Scaled(nn.Module):
    """Takes a number of Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, scale: int) -> Tensor:
        hidden: Tensor = self.layer(x)
        return hidden.square().mean() * scale


def test_a_number_that_changes_from_call_to_call_is_named() -> None:
    model, x, backend = Scaled(), torch.randn(16, 8), planner.backend("1GB", **QUICK)
    compiled = torch.compile(model, backend=backend)
    compiled(x, 2).backward()
    with pytest.warns(planner.PlannerWarning, match=r"L\['scale'\] changes from call to call"):
        compiled(x, 3).backward()
    assert len(backend.plans) == 2


class Counting(Net):
    """Counts its calls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


@pytest.mark.slow
def test_a_step_that_is_compiled_again_and_again_is_planned_once_and_warned_of() -> None:
    model, x, backend = Counting(depth=1), torch.randn(64, 32), planner.backend("1GB", **QUICK)
    compiled = torch.compile(model, backend=backend)
    step(compiled, x)
    with pytest.warns(planner.PlannerWarning, match="the step is compiled again for a call like"):
        step(compiled, x)
    assert len(backend.plans) == 1
    plan = planner.fit(model, "1GB", inputs=x, engine="inductor", **QUICK)
    planned = plan.apply(model)
    step(planned, x)
    with pytest.warns(planner.PlannerWarning, match="Counting is compiled again for a call like"):
        step(planned, x)
    step(planned, x[:32])  # another size is no such call
    assert model.calls == 5


def test_by_name() -> None:
    model, x = net()
    options = {"budget": "1GB", **QUICK}
    step(torch.compile(model, backend=by_name, options=options), x)
    with pytest.raises(BackendCompilerFailed, match="budget"):
        torch.compile(model, backend=by_name)(x)


@pytest.mark.slow
def test_the_loss_may_be_computed_in_chunks(tmp_path: Path) -> None:
    words, said = 4001, {**QUICK, "progress": "off"}
    inputs = batch(words, 4, 64)
    model = Speaker(usual, words, 16, tied=True)
    logits_bytes = 4 * 64 * words * 4
    with pytest.raises(BackendCompilerFailed, match="loss_chunks=8 the least budget") as error:
        torch.compile(model, backend=planner.backend(logits_bytes // 2, **said))(*inputs)
    assert isinstance(error.value.inner_exception, planner.InfeasibleBudget)
    torch._dynamo.reset()
    chunked = planner.backend(logits_bytes // 2, loss_chunks=8, **said)
    assert measured_bytes(torch.compile(model, backend=chunked), *inputs) <= logits_bytes // 2
    (plan,) = chunked.plans
    assert plan.rewrite == "loss_chunks 8 B"
    assert "no optimizer is counted" in plan.remarks[-1]
    with torch.no_grad():
        torch.compile(model, backend=chunked)(*inputs)
    assert len(chunked.plans) == 1
    plan.save(tmp_path / "plan.json")
    known = planner.load(tmp_path / "plan.json")
    for chunks in (1, 8):  # a plan is carried out as it was made, whatever is said
        torch._dynamo.reset()
        again = planner.backend(logits_bytes, plans=[known], loss_chunks=chunks, **said)
        step(torch.compile(model, backend=again), *inputs)
        assert again.plans == (known,)
    with pytest.raises(planner.BadRequest, match="a number from 1 on"):
        planner.backend("1GB", loss_chunks=0)


def test_sizes_that_are_symbols_have_no_chunks() -> None:
    model, inputs = Speaker(usual, 61, 8), batch(61, 4, 8)
    chunked = planner.backend("1GB", loss_chunks=4, **{**QUICK, "progress": "off"})
    with pytest.raises(BackendCompilerFailed, match=r"sizes are symbols .*dynamic=False"):
        torch.compile(model, backend=chunked, dynamic=True)(*inputs)
