"""Losses in chunks: the rewritten graph computes what the captured one does, to rounding.

Both graphs are interpreted on real tensors; how plans run them is tested in ``tests/planner``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from planner.graphs.capture.call_arguments import arguments_of
from planner.graphs.capture.chunks.region import heads, products
from planner.graphs.capture.chunks.rewrite import in_chunks
from planner.graphs.capture.chunks.token_dims import moved
from planner.graphs.capture.chunks.writer import Form, spans
from planner.graphs.capture.joint_graph import Joint, copied
from planner.graphs.capture.node_kinds import added_to
from planner.graphs.capture.passes.eager_semantics import normalized
from planner.graphs.capture.rewrites import Declined
from planner.graphs.capture.trace import trace
from tests.by_default import slow_but

WORDS, WIDTH, ROWS, LENGTH = 211, 16, 3, 14
Loss = Callable[[Tensor, Tensor], Tensor]


class Net(nn.Module):
    """Embedding, one layer, head."""

    def __init__(self, *, tied: bool = False, bias: bool = False, padding: int | None = None):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH, padding_idx=padding)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=bias)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(self.embedding(ids))))  # type: ignore[no-any-return]


class Autocast(Net):
    def forward(self, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(ids)


class Scaled(Net):
    """Scales its logits by a weight, whose gradient is a sum over all of them."""

    def __init__(self) -> None:
        super().__init__(tied=True)
        self.scale = nn.Parameter(torch.tensor(1.3))

    def forward(self, ids: Tensor) -> Tensor:
        return self.scale * super().forward(ids)


def flat(logits: Tensor, labels: Tensor, **how: Any) -> Tensor:
    return F.cross_entropy(logits.reshape(-1, WORDS), labels.reshape(-1), **how)


def shifted_labels(logits: Tensor, labels: Tensor) -> Tensor:
    labels = F.pad(labels, (0, 1), value=-100)[..., 1:].contiguous()
    return flat(logits.float(), labels, ignore_index=-100, reduction="sum") / 17


def z_loss(logits: Tensor, labels: Tensor) -> Tensor:
    scores = logits.view(-1, WORDS).float()
    return flat(scores, labels) + 1e-3 * torch.logsumexp(scores, -1).square().mean()


def log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    scores = F.log_softmax(logits.float(), -1)
    chosen = torch.gather(scores, 2, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -F.logsigmoid((chosen * (labels != -100)).sum(-1) * 0.01).mean()


LOSSES: dict[str, Loss] = {
    "flat": flat,
    "smooth": lambda x, t: flat(x, t, label_smoothing=0.1),
    "classes in the middle": lambda x, t: F.cross_entropy(x.transpose(1, 2), t),
    "per token": lambda x, t: flat(x, t, reduction="none").mean(),
    "shifted labels": shifted_labels,
    "shifted logits": lambda x, t: flat(x[:, :-1], t[:, 1:]),
    "shifted, then upcast": lambda x, t: flat(x[..., :-1, :].contiguous().float(), t[..., 1:]),
    "upcast, then a suffix": lambda x, t: flat(x.float()[:, 3:], t[:, 3:]),
    "capped": lambda x, t: flat(3 * torch.tanh(x / 3), t),
    "of probabilities": lambda x, t: -(F.one_hot(t.clamp(min=0), WORDS) * x.log_softmax(-1)).sum(),
    "z": z_loss,
    "log-probabilities": log_probabilities,
}
ONLY_A = ("z", "log-probabilities")
NETS: dict[str, Callable[[], nn.Module]] = {
    "tied": lambda: Net(tied=True),
    "tied, padded": lambda: Net(tied=True, padding=5),
    "bias": lambda: Net(bias=True),
    "bfloat16": lambda: Net(tied=True).bfloat16(),
    "autocast": Autocast,
    "float64": lambda: Net(tied=True).double(),
}
QUICK = {
    ("tied", Form.B),
    ("tied, padded", Form.A),
    ("bias", Form.B),
    ("bfloat16", Form.A),
    ("autocast", Form.B),
    ("float64", Form.A),
    ("scaled", Form.B),
    ("chosen", Form.A),
    ("words left out", Form.B),
    ("divided", Form.A),
}
"""Nets and constants that run by default, each in one of the forms."""


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, WORDS, (ROWS, LENGTH), generator=generator)
    labels = ids.roll(1, 1)
    labels[:, :4] = -100
    return ids, labels


def captured(model: nn.Module, loss: Loss | None = None) -> Joint:
    ids, labels = batch()
    call = arguments_of((ids,), labels if loss else None)
    return normalized(trace(model, call, loss=loss))


def computed(joint: Joint, model: nn.Module, tangent: float) -> tuple[Tensor, list[Tensor]]:
    return interpreted(joint, model, batch(), tangent)


def interpreted(
    joint: Joint, model: nn.Module, inputs: tuple[Tensor, ...], tangent: float
) -> tuple[Tensor, list[Tensor]]:
    """Return the first output and the gradients of a joint graph, interpreted."""
    given: dict[fx.Node, Tensor] = dict(zip(joint.inputs, inputs, strict=False))
    given |= {
        n: dict(model.named_parameters())[name].detach() for name, n in joint.parameters.items()
    }
    given |= {n: torch.tensor(tangent, dtype=n.meta["val"].dtype) for n in joint.tangents.values()}
    made: dict[fx.Node, Any] = {}

    class Kept(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            made[n] = super().run_node(n)
            return made[n]

    runner = Kept(joint.module, graph=joint.graph, garbage_collect_values=False)
    runner.run(*(given[n] for n in joint.graph.nodes if n.op == "placeholder"))
    return made[joint.forward_outputs[0]], [made[n] for n in joint.gradients if n is not None]


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp(min=1e-30))


def check(model: nn.Module, loss: Loss, form: Form, most: float, chunks: int = 5) -> Joint:
    """Compare the step in chunks with the whole; 5 chunks of 42 tokens are not of one size."""
    joint = captured(model, loss)
    rewritten = in_chunks(copied(joint), chunks, form)
    value, gradients = computed(joint, model, 0.7)
    found, others = computed(rewritten, model, 0.7)
    assert distance(found, value) < most
    for new, old in zip(others, gradients, strict=True):
        assert distance(new, old) < most
        assert (new.shape, new.stride(), new.dtype) == (old.shape, old.stride(), old.dtype)
    large = {
        n for n in rewritten.graph.nodes
        if isinstance(x := n.meta.get("val"), Tensor) and x.numel() >= ROWS * LENGTH * WORDS // 2
    }  # fmt: skip
    assert not large or loss is LOSSES["of probabilities"], "the logits are there, or half of them"
    return rewritten


@pytest.mark.parametrize("name", LOSSES)
def test_loss_in_chunks(name: str) -> None:
    torch.manual_seed(0)
    model = Net()
    check(model, LOSSES[name], Form.A, 1e-6)
    if name in ONLY_A:
        with pytest.raises(Declined, match="depends on the value of the loss"):
            check(model, LOSSES[name], Form.B, 1e-5)
    else:
        check(model, LOSSES[name], Form.B, 1e-5)


@pytest.mark.parametrize(("name", "form"), slow_but(QUICK, itertools.product(NETS, Form)))
def test_head_in_chunks(name: str, form: Form) -> None:
    torch.manual_seed(0)
    model = NETS[name]()
    narrow = name in ("bfloat16", "autocast")
    most = 2e-2 if narrow else 1e-12 if name == "float64" else 1e-5
    made = check(model, flat, form, most)
    written = [n for n in made.graph.nodes if added_to(n) is not None]
    assert written, "nothing is added in place"
    if name.startswith("tied"):
        assert not made.graph.find_nodes(
            op="call_function", target=torch.ops.aten.embedding_dense_backward.default
        )


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("name", ["flat", "shifted logits", "per token"])
def test_a_gradient_that_is_a_sum_over_the_logits(name: str, form: Form) -> None:
    torch.manual_seed(0)
    check(Scaled(), LOSSES[name], form, 1e-5)


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("name", ["bfloat16", "autocast"])
def test_narrow_sums_are_as_good_as_the_whole(name: str, form: Form) -> None:
    """Against float64, in which the same weights are used."""
    torch.manual_seed(0)
    model = NETS[name]()
    exact = Net(tied=name == "bfloat16").double()
    exact.load_state_dict(model.state_dict())
    value, gradients = computed(captured(exact, flat), exact, 1.0)
    joint = captured(model, flat)
    whole, wholes = computed(joint, model, 1.0)
    found, founds = computed(in_chunks(copied(joint), 8, form), model, 1.0)
    bound = lambda error: 1.25 * error + 2**-9  # noqa: E731 - a rounding of the result itself
    assert distance(found.double(), value) <= bound(distance(whole.double(), value))
    for new, old, best in zip(founds, wholes, gradients, strict=True):
        assert distance(new.double(), best) <= bound(distance(old.double(), best))


class Clamped(torch.autograd.Function):
    """Clamps the gradient that arrives, which is not linear in it."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.clamp(-1e-3, 1e-3)


class Offset(Clamped):
    """Adds to the gradient what does not scale with it, as an auxiliary loss of its own does."""

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad + 1e-3


NOT_LINEAR: dict[str, Loss] = {
    "clamped logits": lambda x, t: flat(Clamped.apply(x), t),
    "clamped loss": lambda x, t: Clamped.apply(flat(x, t)),
    "added to": lambda x, t: flat(Offset.apply(x), t),
    "absolute": lambda x, t: flat(_absolute(x), t),
}


def _absolute(x: Tensor) -> Tensor:
    x = x * 1
    x.register_hook(torch.abs)
    return x


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_a_gradient_that_is_no_multiple_is_not_multiplied_last(name: str) -> None:
    torch.manual_seed(0)
    check(Net(), NOT_LINEAR[name], Form.A, 1e-6)
    with pytest.raises(Declined, match="not known to be linear"):
        check(Net(), NOT_LINEAR[name], Form.B, 1e-5)


CONSTANTS: dict[str, Loss] = {
    "scaled": lambda x, t: flat(x * torch.tensor(2.0), t),
    "chosen": lambda x, t: flat(torch.where(x > 0, x, torch.tensor(0.5)), t),
    "words left out": lambda x, t: flat(x + torch.tensor([0.0, -9.0] * (WORDS // 2) + [0.0]), t),
    "divided": lambda x, t: flat(x, t) / torch.tensor(4.0),
}


@pytest.mark.parametrize(("name", "form"), slow_but(QUICK, itertools.product(CONSTANTS, Form)))
def test_constants_of_the_code(name: str, form: Form) -> None:
    torch.manual_seed(0)
    check(Net(), CONSTANTS[name], form, 1e-5)


def test_what_reads_all_logits_is_given_all() -> None:
    """Though the loss drops some: their sum counts every one."""

    class Sums(Net):
        def forward(self, ids: Tensor) -> Any:
            logits = super().forward(ids)
            seen = logits.detach().square().sum()
            return {"loss": flat(logits[:, :-1], ids[:, 1:]), "seen": seen}

    torch.manual_seed(0)
    with pytest.raises(Declined, match="no softmax"):
        in_chunks(captured(Sums()), 4, Form.A)


def test_float16_is_not_scaled_last() -> None:
    with pytest.raises(Declined, match="float16"):
        in_chunks(captured(Net().half(), flat), 4, Form.B)
    in_chunks(captured(Net().half(), flat), 4, Form.A)


class Returns(Net):
    """Returns what ``returned`` makes of the logits beside the loss."""

    def __init__(self, returned: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, ids: Tensor) -> Any:
        logits = super().forward(ids)
        return {"loss": flat(logits, ids), "seen": self.returned(logits)}


@pytest.mark.parametrize(
    ("model", "loss", "reason"),
    [
        (Net(), lambda x, t: flat(x, t, weight=torch.ones(WORDS)), "weighs its classes"),
        (Net(), lambda x, t: x.square().sum(), "no softmax"),
        (Net(), lambda x, t: flat(x, t) + x.cumsum(1).mean(), "cumsum"),
        (Net(), lambda x, t: flat(F.softmax(x, 1), t), "runs over the tokens"),
        (Net(), lambda x, t: flat(x + x.roll(1, 1), t), "slice|cat|roll"),
        (Returns(lambda x: x), None, "returns 'seen' beside the loss"),
        (nn.Sequential(nn.Linear(LENGTH, 9), nn.Linear(9, 4)), None, "no product"),
    ],
)
def test_declined(model: nn.Module, loss: Loss | None, reason: str) -> None:
    inputs = (batch()[0].float(),) if isinstance(model, nn.Sequential) else (batch()[0],)
    outer = (lambda out: out.sum()) if isinstance(model, nn.Sequential) else loss
    targets = batch()[1] if loss else None
    joint = normalized(trace(model, arguments_of(inputs, targets), loss=outer))
    before = str(joint.graph)
    with pytest.raises(Declined, match=reason):
        in_chunks(copied(joint), 4, Form.A)
    assert str(joint.graph) == before, "a copy is rewritten"


class Adapted(Net):
    """A head with an adapter beside it, and what is returned made of both."""

    def __init__(self, returned: Callable[[Tensor, Tensor], Tensor], *, first: bool) -> None:
        super().__init__()
        self.head.requires_grad_(False)
        self.down, self.up = nn.Linear(WIDTH, 4, bias=False), nn.Linear(4, WORDS, bias=False)
        self.returned, self.first = returned, first

    def forward(self, ids: Tensor) -> Any:
        embedded = self.embedding(ids)
        h = torch.tanh(self.layer(embedded))
        small = lambda: self.up(self.down(h))  # noqa: E731
        logits = small() + self.head(h) if self.first else self.head(h) + small()
        return {"loss": flat(logits, ids), "seen": self.returned(logits, embedded)}


@pytest.mark.parametrize("first", [True, False])
def test_what_two_products_make_is_computed_late(first: bool) -> None:
    """Of the hidden states alone, whichever of the two comes first, and in two ways at once."""
    torch.manual_seed(0)
    model = Adapted(lambda x, _: x + x.exp(), first=first)
    joint = captured(model)
    made = in_chunks(copied(joint), 4, Form.A, late_logits=True)
    (late,) = made.outputs.late
    ids, *_ = batch()
    hidden = torch.tanh(model.layer(model.embedding(ids))).detach()
    parameters = [*made.parameters]
    given = [model.get_parameter(parameters[i]).detach() for i in late.operands]
    node = made.forward_outputs[late.index]
    seen = late.compute(hidden.reshape(node.meta["val"].shape), *given)
    assert torch.equal(seen, model(ids)["seen"])
    pairs = zip(*(computed(j, model, 1.0)[1] for j in (made, joint)), strict=True)
    assert all(distance(new, old) < 1e-6 for new, old in pairs)


@pytest.mark.parametrize(
    "returned",
    [
        lambda x, embedded: x + torch.cat([embedded] * 14, -1)[..., :WORDS],
        lambda x, _: x * torch.rand(()),
    ],
)
def test_what_is_gone_is_not_computed_late(returned: Callable[[Tensor, Tensor], Tensor]) -> None:
    """And nobody is told to ask for what they asked for."""
    joint = captured(Adapted(returned, first=False))
    with pytest.raises(Declined, match="is gone when it is read: have the model return the loss"):
        in_chunks(joint, 4, Form.A, late_logits=True)


def test_small_readers_of_the_logits_do_not_stand_in_the_way() -> None:
    """A value for each token is put together from the chunks."""
    torch.manual_seed(0)
    model = Returns(lambda x: x.logsumexp(-1))
    joint = captured(model)
    made = in_chunks(copied(joint), 4, Form.A)
    assert distance(*(computed(j, model, 1.0)[0] for j in (made, joint))) < 1e-6


def test_all_labels_ignored_or_more_chunks_than_tokens() -> None:
    torch.manual_seed(0)
    model = Net()
    check(model, flat, Form.A, 1e-6, chunks=ROWS * LENGTH + 5)
    none = lambda x, t: flat(x, torch.full_like(t, -100), reduction="sum")  # noqa: E731
    value, gradients = computed(in_chunks(captured(model, none), 4, Form.B), model, 1.0)
    assert value == 0
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("chunks", [2, 3, 8])
def test_no_chunk_grows_when_there_are_fewer_tokens(chunks: int) -> None:
    """So that a plan for the largest call holds for the smaller ones."""
    for tokens in range(40):
        more, fewer = spans(tokens + 1, chunks), spans(tokens, chunks)
        assert all(a.count >= b.count for a, b in zip(more, fewer, strict=True))
        assert sum(s.count for s in fewer) == tokens


def test_views_that_mix_tokens() -> None:
    assert moved((6, 4), (2, 3, 4), (0,)) == (0, 1)
    assert moved((1, 6, 4), (6, 4), (1,)) == (0,)
    assert moved((6, 4), (3, 8), (0,)) is None


class Unrolled(Net):
    """Makes many products before its head, none of which a softmax is made of."""

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        for _ in range(8):
            hidden = torch.tanh(hidden @ self.head.weight.T) @ self.head.weight
        return self.head(hidden)  # type: ignore[no-any-return]


@pytest.mark.parametrize("cut", [0, 1], ids=["all", "a slice"])
def test_only_products_that_a_softmax_is_made_of_are_looked_at(cut: int) -> None:
    """A recurrent network has hundreds of others, each of which takes a pass over its graph."""
    ids = torch.randint(WORDS, (ROWS, LENGTH))
    joint = trace(
        Unrolled(),
        arguments_of((ids,), targets=ids),
        loss=lambda out, t: F.cross_entropy(out[:, cut:].flatten(0, 1), t[:, cut:].flatten()),
    )
    joint = normalized(joint)
    assert len(products(joint)) == 9
    assert heads(joint) == [max(products(joint), key=list(joint.graph.nodes).index)]


def test_heads_as_large_as_each_other_are_tried_in_their_order() -> None:
    ids = torch.randint(WORDS, (ROWS, LENGTH))

    def loss(hidden: Tensor, t: Tensor, weights: list[Tensor]) -> Tensor:
        return sum(F.cross_entropy((hidden @ w.T).flatten(0, 1), t.flatten()) for w in weights)  # type: ignore[return-value]

    class Several(Net):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.ParameterList(torch.randn_like(self.head.weight) for _ in range(8))

        def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
            return loss(self.embedding(ids), targets, list(self.more))

    joint = normalized(trace(Several(), arguments_of((ids, ids))))
    assert len(heads(joint)) == 8
    assert heads(joint) == products(joint)
