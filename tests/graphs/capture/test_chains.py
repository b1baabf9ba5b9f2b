"""MLPs in chunks: the rewritten graph computes what the captured one does, to rounding.

Both graphs are interpreted on real tensors; how plans run them is tested in ``tests/planner``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planner.graphs.capture.call_arguments import arguments_of
from planner.graphs.capture.chunks.chain import with_chains
from planner.graphs.capture.joint_graph import Joint, copied
from planner.graphs.capture.passes.eager_semantics import normalized
from planner.graphs.capture.rewrites import REWRITES, Declined, rewrite_of, rewritten
from planner.graphs.capture.trace import trace
from tests.graphs.capture.test_chunks import distance, interpreted

WIDTH, WIDE, ROWS, LENGTH = 8, 48, 3, 14


class Gelu(nn.Module):
    """GPT-2's: an up-projection, an activation, a down-projection, with biases."""

    def __init__(self, act: Callable[[Tensor], Tensor] = F.gelu, *, bias: bool = True) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDE, bias), nn.Linear(WIDE, WIDTH, bias)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))  # type: ignore[no-any-return]


class Gated(nn.Module):
    """Llama's: a gate beside the up-projection."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, WIDE, bias=False) for _ in "ab")
        self.down = nn.Linear(WIDE, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class Halves(Gelu):
    """One up-projection for gate and values, which are halves of it."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(WIDE // 2, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        gate, values = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * values)  # type: ignore[no-any-return]


class Deep(Gelu):
    """Two wide layers, and a scale of each feature between them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.rand(WIDE)), nn.Linear(WIDE, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.inner(F.gelu(self.up(x)) * self.scale)))  # type: ignore[no-any-return]


def dropped(x: Tensor) -> Tensor:
    return F.dropout(F.gelu(x), 0.1)


def across(x: Tensor) -> Tensor:
    return F.gelu(x) - x.mean(1, keepdim=True)


def attending(x: Tensor) -> Tensor:
    rows = x.flatten(0, 1)
    return (rows @ rows.t() @ rows).view(x.shape)


class Net(nn.Module):
    """Residual MLPs, of which neighbours may be one."""

    def __init__(self, make: Callable[[], nn.Module], *, shared: bool = False) -> None:
        super().__init__()
        first = make()
        self.layers = nn.ModuleList([first, first if shared else make()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(F.layer_norm(x, [WIDTH]))
        return x.square().mean()


class Added(Gelu):
    """A sum over tokens to which something is added, scaled, in the same call."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(0, 1)
        wide = self.act(self.up(x))
        return torch.addmm(self.up.weight, wide.t(), x, beta=0.5) + self.down(wide).sum()


MLPS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "gelu": (lambda: Net(Gelu), 2e-6),
    "tanh": (lambda: Net(lambda: Gelu(lambda x: F.gelu(x, approximate="tanh"), bias=False)), 2e-6),
    "gated": (lambda: Net(Gated), 2e-6),
    "deep": (lambda: Net(Deep), 2e-6),
    "shared": (lambda: Net(Gelu, shared=True), 2e-6),
    "float64": (lambda: Net(Gated).double(), 1e-14),
    "bfloat16": (lambda: Net(Gelu).bfloat16(), 2e-2),
}


def given(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(ROWS, LENGTH, WIDTH, generator=generator)
    return x.to(next(model.parameters()).dtype)


def captured(model: nn.Module, x: Tensor | None = None) -> Joint:
    x = given(model) if x is None else x
    return normalized(trace(model, arguments_of((x,), None), loss=None))


def wide(joint: Joint) -> int:
    """Count what is as large as a wide tensor of all tokens, or of no less than half of them."""
    large = ROWS * LENGTH * WIDE
    made = (n.meta.get("val") for n in joint.graph.nodes if n.op == "call_function")
    return sum(isinstance(x, Tensor) and large // 2 <= x.numel() <= large for x in made)


@pytest.mark.parametrize("name", MLPS)
def test_mlps_in_chunks(name: str) -> None:
    """5 chunks of 42 tokens are not of one size."""
    torch.manual_seed(0)
    make, most = MLPS[name]
    model = make()
    joint = captured(model)
    chunked = with_chains(copied(joint), 5)
    value, gradients = interpreted(joint, model, (given(model),), 0.7)
    found, others = interpreted(chunked, model, (given(model),), 0.7)
    assert distance(found, value) <= most
    for new, old in zip(others, gradients, strict=True):
        assert distance(new, old) <= most
        assert (new.shape, new.stride(), new.dtype) == (old.shape, old.stride(), old.dtype)
    assert wide(joint) > 0
    assert wide(chunked) == 0


@pytest.mark.parametrize("shape", [(1, WIDTH), (6, WIDE // 6)])
def test_tokens_may_be_as_many_as_features(shape: tuple[int, int]) -> None:
    """Then a weight, or its gradient, is as large as what is wide."""
    torch.manual_seed(0)
    model, x = Net(Deep), torch.randn(*shape, WIDTH)
    joint = captured(model, x)
    value, gradients = interpreted(joint, model, (x,), 1.0)
    found, others = interpreted(with_chains(copied(joint), 3), model, (x,), 1.0)
    assert distance(found, value) <= 2e-6
    assert max(map(distance, others, gradients)) <= 2e-6


def test_narrow_sums_are_as_good_as_the_whole() -> None:
    """Against float64, in which the same weights are used."""
    torch.manual_seed(0)
    model = Net(Gated).bfloat16()
    exact = Net(Gated).double()
    exact.load_state_dict(model.state_dict())
    x = given(model)
    _, gradients = interpreted(captured(exact), exact, (x.double(),), 1.0)
    joint = captured(model)
    _, wholes = interpreted(joint, model, (x,), 1.0)
    _, founds = interpreted(with_chains(copied(joint), 8), model, (x,), 1.0)
    for new, old, best in zip(founds, wholes, gradients, strict=True):
        assert distance(new.double(), best) <= 1.25 * distance(old.double(), best) + 2**-9


DECLINED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout inside": (lambda: Net(lambda: Gelu(dropped)), "draws random numbers for addmm"),
    "across tokens": (lambda: Net(lambda: Gelu(across)), "for some tokens together"),
    "of other tokens": (lambda: Net(lambda: Gelu(attending)), "is a product of addmm that mixes"),
    "added to": (Added, "adds something to a product that sums over tokens"),
    "halves": (lambda: Net(Halves), "reads addmm, and cannot be computed in chunks"),
    "no widening": (lambda: nn.Sequential(nn.Linear(WIDTH, 1), nn.Flatten(0)), "makes something w"),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_is_declined(name: str) -> None:
    make, reason = DECLINED[name]

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.of = make()

        def forward(self, x: Tensor) -> Tensor:
            return self.of(x).mean()  # type: ignore[no-any-return]

    with pytest.raises(Declined, match=reason):
        with_chains(captured(Loss()), 4)


def test_one_that_can_be_is_in_chunks_beside_others_that_cannot() -> None:
    torch.manual_seed(0)
    model = Net(Gelu)
    model.layers[1].act = torch.nn.Dropout(0.1)  # type: ignore[assignment]
    joint = captured(model)
    assert 0 < wide(with_chains(copied(joint), 4)) < wide(joint)


def test_the_rewrite_takes_a_number_and_maybe_a_loss() -> None:
    family = REWRITES["mlp_chunks"]
    for name in ("mlp_chunks 4", "mlp_chunks 2 loss_chunks 8 A when_read"):
        assert rewrite_of(name) is family
    for name in ("mlp_chunks", "mlp_chunks 0", "mlp_chunks 4 A", "mlp_chunks 4 loss_chunks 8"):
        with pytest.raises(ValueError, match="is no rewrite: expected 'mlp_chunks 4' or the like"):
            rewrite_of(name)
    joint = captured(Net(Gelu))
    assert rewritten(joint, "mlp_chunks 4")[1] == "mlp_chunks 4"


def test_a_chain_declined_while_it_is_written_leaves_nothing_behind() -> None:
    class Two(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = (x + self.layers[0](x)).flatten(0, 1)
            wide = F.gelu(torch.addmm(x.new_ones(len(x), WIDE // 2), x, self.layers[1].up))
            return self.layers[1].down(wide).square().mean()  # type: ignore[no-any-return,operator]

    torch.manual_seed(0)
    model = Two(Gelu)
    model.layers[1] = Halves()
    del model.layers[1].up
    model.layers[1].up = nn.Parameter(torch.randn(WIDTH, WIDE // 2))
    joint = captured(model)
    chunked = with_chains(copied(joint), 5)
    _, gradients = interpreted(joint, model, (given(model),), 1.0)
    _, others = interpreted(chunked, model, (given(model),), 1.0)
    assert max(map(distance, others, gradients)) <= 2e-6
