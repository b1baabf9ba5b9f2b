"""A joint graph of Inductor's with its loss in chunks, run operator by operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planner.graphs.capture.fused.in_chunks import in_chunks
from planner.graphs.capture.node_kinds import added_to
from planner.graphs.capture.rewrites import Declined
from planner.graphs.torch_api.inductor.compiler import joint_step_with_inputs
from planner.graphs.torch_api.inductor.kept_operators import KEPT
from planner.graphs.torch_api.inductor.partitioner import JointStep, copy_of
from planner.running.compiled_model import step_of
from tests.speaker import Loss, Returning, Speaker, batch, distance, usual

WORDS, WIDTH, ROWS, LENGTH = 61, 8, 3, 7


def shifted(logits: Tensor, labels: Tensor) -> Tensor:
    return usual(logits[:, :-1], labels[:, 1:])


def smooth(logits: Tensor, labels: Tensor) -> Tensor:
    return usual(logits, labels, label_smoothing=0.1)


def own_mean(logits: Tensor, labels: Tensor) -> Tensor:
    each = usual(logits, labels, reduction="none")
    return each.sum() / (labels != -100).sum()


def capped(logits: Tensor, labels: Tensor) -> Tensor:
    return usual(30 * torch.tanh(logits / 30), labels)


def in_the_middle(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, 2), labels)


def with_z(logits: Tensor, labels: Tensor) -> Tensor:
    return usual(logits, labels) + 0.01 * logits.logsumexp(-1).square().mean()


def log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1))
    return -F.logsigmoid(chosen.sum((1, 2))).mean()


CASES: dict[str, tuple[Loss, dict[str, Any], str]] = {
    "usual": (usual, {}, "AB"),
    "tied": (usual, {"tied": True}, "AB"),
    "bias": (usual, {"bias": True}, "AB"),
    "dropout": (usual, {"drop": 0.3}, "AB"),
    "frozen": (usual, {"frozen": True}, "AB"),
    "shifted": (shifted, {"tied": True}, "AB"),
    "smooth": (smooth, {}, "AB"),
    "own mean": (own_mean, {}, "AB"),
    "capped": (capped, {}, "AB"),
    "in the middle": (in_the_middle, {}, "AB"),
    "z-loss": (with_z, {}, "A"),
    "log-probabilities": (log_probabilities, {}, "A"),
}
BOUND = {"A": 1e-6, "B": 1e-5}


def kept(model: nn.Module) -> tuple[JointStep, tuple[Any, ...]]:
    """Trace a model's step, and return what its placeholders stand for, too."""
    found = joint_step_with_inputs(step_of(type(model), None), model, batch(), {}, (), keep=True)
    assert found is not None
    return found


def run(step: JointStep, given: tuple[Any, ...]) -> list[Tensor]:
    """Run the graph of a step: what it returns, then gradients."""
    arriving = [
        torch.full(n.meta["val"].shape, 0.7, dtype=n.meta["val"].dtype)
        for n in step.module.graph.find_nodes(op="placeholder")[len(given) :]
    ]
    torch.manual_seed(7)
    with torch.no_grad():
        made = torch.fx.Interpreter(copy_of(step.module)).run(*given, *arriving)
    return [t for t in made if t is not None]


@pytest.mark.parametrize("case", CASES)
def test_chunks_compute_what_the_whole_does(case: str) -> None:
    loss, said, forms = CASES[case]
    step, given = kept(Speaker(loss, **said))
    before, wanted = str(step.module.graph), run(step, given)
    for form in "AB":
        if form not in forms:
            with pytest.raises(Declined, match="depends on the value of the loss"):
                in_chunks(step, f"loss_chunks 4 {form}")
            continue
        made = in_chunks(step, f"loss_chunks 4 {form}")
        assert distance(run(made, given), wanted) < BOUND[form]
        largest = max(_numbers(n) for n in made.module.graph.nodes if n.op == "call_function")
        assert largest < 0.5 * ROWS * LENGTH * WORDS or largest == WORDS * WIDTH
        assert KEPT.isdisjoint(n.target for n in made.module.graph.nodes)
    assert str(step.module.graph) == before


def _numbers(node: torch.fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else 0


@pytest.mark.parametrize("tied", [False, True])
def test_a_weights_gradient_is_one_tensor_that_is_added_to(*, tied: bool) -> None:
    step, _ = kept(Speaker(usual, tied=tied))
    for form in "AB":
        graph = in_chunks(step, f"loss_chunks 4 {form}").module.graph
        written = [n for n in graph.nodes if added_to(n) is not None]
        targets = [str(n.target) for n in written]
        assert targets == ["aten.addmm_.default"] * 3 + ["aten.index_put_.default"] * tied
        assert not any(n.users for n in written)  # an effect: whoever reads, reads the sum
        late = [n.meta["partitioner_tag"] == "is_backward" for n in written[:3]]
        assert late == [form == "A"] * 3


def test_sums_over_tokens_of_all_chunks_are_no_kernel_together() -> None:
    step, _ = kept(Speaker(usual, bias=True))
    for form in "AB":
        nodes = in_chunks(step, f"loss_chunks 4 {form}").module.graph.nodes
        large = [n for n in nodes if n.op == "call_function" and n.meta["val"].shape == (WORDS, 1)]
        assert [str(n.target) for n in large] == ["aten.mm.default"] * 4


def test_bfloat16_is_as_close_to_float64_as_the_whole() -> None:
    exact = run(*kept(Speaker(usual).bfloat16().double()))
    step, given = kept(Speaker(usual).bfloat16())
    whole = distance(run(step, given), exact)
    for form in "AB":
        made = run(in_chunks(step, f"loss_chunks 4 {form}"), given)
        assert distance(made, exact) < 1.25 * whole


def with_a_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum narrow logits over the tokens in float32, which float16 could not."""
    summed = logits.flatten(0, 1).sum(0, dtype=torch.float32)
    return usual(logits, labels) + 1e-12 * summed.square().mean()


def test_a_sum_in_another_dtype_stays_one() -> None:
    model = Speaker(with_a_sum, bias=True).half()
    with torch.no_grad():
        model.head.bias += 8000.0
    step, given = kept(model)
    wanted = run(step, given)
    made = run(in_chunks(step, "loss_chunks 2 A"), given)
    assert torch.isfinite(wanted[0])
    assert [t.dtype for t in made] == [t.dtype for t in wanted]
    torch.testing.assert_close(made[0], wanted[0], rtol=1e-5, atol=0)


def test_what_cannot_be_is_declined() -> None:
    step, _ = kept(Speaker(usual))
    with pytest.raises(Declined, match="nothing that is computed later"):
        in_chunks(step, "loss_chunks 4 A when_read")
    with pytest.raises(ValueError, match="is no rewrite"):
        in_chunks(step, "loss_chunks 4 C")
    with pytest.raises(Declined, match=r"let it return that alone, .* output\.loss"):
        in_chunks(kept(Returning(usual))[0], "loss_chunks 4 A")
    weights = torch.rand(WORDS)
    with pytest.raises(Declined, match="weighs its classes"):
        in_chunks(kept(Speaker(lambda x, y: usual(x, y, weight=weights)))[0], "loss_chunks 4 A")
