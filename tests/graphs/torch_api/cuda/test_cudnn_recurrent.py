"""Recurrent layers are cuDNN's one kernel on a card; what is around it is run with a stand-in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planner
from planner.graphs.capture import recapture, training_step
from planner.graphs.capture.call_arguments import arguments_of
from planner.graphs.capture.trace import trace
from planner.graphs.hardware.devices import device
from planner.graphs.torch_api.cuda.card import Card, card_of
from planner.graphs.torch_api.cuda.cudnn_recurrent import recurrent_of_cuda
from tests.graphs.torch_api.cuda.stand_ins import standing_in

aten = torch.ops.aten
A100 = card_of("sm_80")
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(6, 8),
    "lstm, rows first": lambda: nn.LSTM(6, 8, 2, batch_first=True),
    "lstm, both ways": lambda: nn.LSTM(6, 8, 2, bidirectional=True),
    "lstm, projected": lambda: nn.LSTM(6, 8, proj_size=4),
    "lstm, no biases": lambda: nn.LSTM(6, 8, bias=False),
    "lstm, dropped between": lambda: nn.LSTM(6, 8, 3, dropout=0.5, bidirectional=True),
    "gru": lambda: nn.GRU(6, 8, 2, batch_first=True),
    "gru, dropped between": lambda: nn.GRU(6, 8, 2, dropout=0.5),
    "rnn": lambda: nn.RNN(6, 8),
    "rnn, relu": lambda: nn.RNN(6, 8, nonlinearity="relu", bias=False),
}


class Recurring(nn.Module):
    """The mean of what a layer makes, and of its last states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.layer(x)
        states = state if isinstance(state, tuple) else (state,)
        made: Tensor = y.square().mean() + sum(s.sin().mean() for s in states)
        return made


def kernels(model: nn.Module, x: Tensor, card: Card = A100) -> list[str]:
    joint = trace(model, arguments_of(x), card=card)
    return [str(n.target) for n in joint.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_one_kernel(name: str) -> None:
    layer = LAYERS[name]()
    found = kernels(Recurring(layer), torch.zeros(5, 3, 6))
    apart = layer.num_layers if "dropped" in name else 1
    assert found.count("aten._cudnn_rnn.default") == apart
    assert found.count("aten._cudnn_rnn_backward.default") == apart
    assert found.count("aten.native_dropout.default") == apart - 1
    assert not any("mkldnn" in kernel or "sigmoid" in kernel for kernel in found)


def test_what_cudnn_does_not_run_is_none_of_a_cpu_either() -> None:
    model, x = Recurring(nn.LSTM(6, 8)), torch.zeros(5, 3, 6)
    turing, amd = card_of("sm_75"), card_of("gfx942")
    for where, dtype in ((turing, torch.bfloat16), (amd, torch.float32)):
        found = kernels(model.to(dtype), x.to(dtype), where)
        assert not any("rnn" in kernel for kernel in found)
    with torch.backends.cudnn.flags(enabled=False):
        assert not any("rnn" in kernel for kernel in kernels(model, x))
    assert any("cudnn_rnn" in kernel for kernel in kernels(model, x, turing))


def test_autocast_is_in_float16_whatever_it_is() -> None:
    model = Recurring(nn.LSTM(6, 8, 2))
    with torch.autocast("cpu", torch.bfloat16):
        joint = trace(model, arguments_of(torch.zeros(5, 3, 6)), card=A100)
    (node,) = joint.graph.find_nodes(op="call_function", target=aten._cudnn_rnn.default)
    y, _, _, _, gathered = node.meta["val"]
    assert y.dtype is gathered.dtype is torch.float16
    assert all(g is None or g.meta["val"].dtype is torch.float32 for g in joint.gradients)


def test_a_plan_counts_what_is_kept() -> None:
    model, x = Recurring(nn.LSTM(64, 64)), torch.zeros(50, 16, 64)
    plan = planner.fit(model, "4GB", inputs=x, device="A100-40GB", optimizer=None)
    (op,) = [o for o in plan.graph.ops if o.target == "aten._cudnn_rnn.default"]
    sizes = [plan.graph.values[v].size_bytes for v in op.outputs]
    step = 50 * 16 * 64 * 4
    assert max(sizes) == pytest.approx(6 * step, rel=1e-2)
    assert sum(sizes) >= 7 * step + sum(p.nbytes for p in model.parameters())
    assert "what cuDNN keeps of recurrent layers" in " ".join(str(plan).split())
    products = 2 * 50 * 16 * (64 + 64) * 256
    assert op.seconds >= products / max(device("A100-40GB").peak_flops.values())


def _parts(args: Sequence[Any], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Compute what cuDNN's kernel returns by the layers that a CPU has."""
    x, _, _, _, hx, cx, kind, _, _, layers, batch_first, dropout, train, both = args[:14]
    assert not dropout, "it is between the layers"
    own: Any = (torch.rnn_relu, torch.rnn_tanh, torch.lstm, torch.gru)[kind]
    state = hx if cx is None else (hx, cx)
    biases = any(w.dim() == 1 for w in leaves)
    y, *states = own(x, state, leaves, biases, layers, 0.0, train, both, batch_first)
    return y, *states


def _run(*args: Any) -> tuple[Tensor, ...]:
    with torch.no_grad():
        made = _parts(args, args[1])
    gathered = torch.cat([w.flatten() for w in args[1]])
    states = made[1:] if args[5] is not None else (made[1], made[0].new_empty(0))
    return made[0].clone(), *states, torch.ones(40, dtype=torch.uint8), gathered


def _run_backward(*args: Any) -> tuple[Any, ...]:
    x, weights, stride, gathered, hx, cx, _, *rest = args
    given, (*numbers, reserve, mask) = rest[:3], rest[3:]
    assert bool(reserve.all()), "it is what the forward kernel left, and used once"
    reserve.zero_()
    assert torch.equal(gathered, torch.cat([w.flatten() for w in weights]))
    leaves = [t.detach().requires_grad_() for t in (x, hx, *weights)]
    cell = None if cx is None else cx.detach().requires_grad_()
    wanted = leaves if cell is None else [*leaves, cell]

    def differentiated() -> tuple[Tensor, ...]:
        call = leaves[0], weights, stride, None, leaves[1], cell, *numbers[:8]
        made = _parts(call, leaves[2:])
        pairs = [(m, g) for m, g in zip(made, given, strict=False) if g is not None]
        outputs, gradients = zip(*pairs, strict=True)
        return torch.autograd.grad(outputs, wanted, gradients, allow_unused=True)

    with ThreadPoolExecutor(1) as another:  # a kernel runs below autograd
        found = another.submit(differentiated).result()
    flat = torch.cat([g.flatten() for g in found[2 : len(leaves)]])
    parts = flat.split([w.numel() for w in weights])
    shaped = [p.view(w.shape) for p, w in zip(parts, weights, strict=True)]
    return found[0], found[1], found[-1] if cell is not None else None, shaped if mask[3] else []


@pytest.fixture
def on_a_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a CPU capture and run recurrent layers as a card does."""
    kernels = {"_cudnn_rnn": _run, "_cudnn_rnn_backward": _run_backward}
    with standing_in(kernels, recurrent_of_cuda, A100, monkeypatch):
        yield


@pytest.mark.parametrize("name", [n for n in LAYERS if "dropped" not in n])
@pytest.mark.usefixtures("on_a_card")
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_a_plan_runs_it(name: str) -> None:
    assert recapture.trace is training_step.trace is trace, "both go the same way"
    torch.manual_seed(0)
    plain = Recurring(LAYERS[name]())
    planned = copy.deepcopy(plain)
    x = torch.randn(5, 3, 6)
    plan = planner.fit(planned, "1GB", inputs=x, optimizer=None, method="recompute_all")
    assert any(op.target == "aten._cudnn_rnn.default" for op in plan.graph.ops)
    step = plan.apply(planned)
    for rows in (x, x[:3], x):
        losses = [model(rows) for model in (plain, step)]
        torch.testing.assert_close(*losses)
        for loss in losses:
            loss.backward()
    for p, q in zip(plain.parameters(), planned.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
