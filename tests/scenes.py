"""Small models, one difficulty each, by name; every one is trained plain and planned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training import Scene

SCENES: dict[str, Scene] = {}
"""All of them, once ``tests.layers`` is imported, too."""


def scene(*shape: int, **options: Any) -> Callable[[Callable[[], nn.Module]], Any]:
    """Register a function that makes a model; by default it is called with noise of this shape."""

    def register(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        inputs = options.pop("inputs", lambda: torch.randn(shape))
        SCENES[make.__name__] = Scene(make, inputs, **options)
        return make

    return register


class Apply(nn.Module):
    """Modules, and a function of them and the inputs: a model in one line."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def chain(*layers: nn.Module) -> nn.Module:
    """Return the layers, one after another, with the mean square as the loss."""
    return Apply(lambda m, x: m.body(x).square().mean(), body=nn.Sequential(*layers))


def mlp(width: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Tanh()
    )


@scene(64, 16)
def scalar_loss_in_the_model() -> nn.Module:
    return chain(mlp(), mlp(), mlp())


@scene(64, 16, loss=F.mse_loss, targets=torch.ones(64, 16))
def loss_callable_with_targets() -> nn.Module:
    return nn.Sequential(mlp(), mlp())


@scene(64, 16, loss=lambda out: out.square().sum())
def loss_callable_without_targets() -> nn.Module:
    return nn.Sequential(mlp(), mlp())


@scene(64, 16)
def output_differentiated_later() -> nn.Module:
    return nn.Sequential(mlp(), mlp())


@scene(64, 16)
def several_outputs() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        h = m.a(x)
        return h, [m.b(h), 3], {"mask": h > 0, "flag": True, "none": None}

    return Apply(run, a=mlp(), b=mlp())


@scene(64, 16)
def output_that_is_a_view() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        h = m.a(x)
        return h.view(32, 2, 16).transpose(0, 1), h[:3], h[:1].expand(5, 16), h[:, ::2]

    return Apply(run, a=nn.Sequential(mlp(), mlp()))


@scene(64, 16)
def outputs_that_are_inputs_and_parameters() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        h = m.a(x)
        return h, x, m.a[0].weight, h.detach(), h

    return Apply(run, a=mlp())


@scene(64, 16)
def loss_first_of_a_tuple() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        h = m.a(x)
        return h.mean(), h.argmax(-1)

    return Apply(run, a=nn.Sequential(mlp(), mlp()))


@scene(inputs=lambda: torch.randint(0, 11, (16, 6)))
def embedding_with_padding() -> nn.Module:
    return chain(nn.Embedding(11, 16, padding_idx=0), mlp(), mlp())


@scene(inputs=lambda: torch.randint(0, 11, (16, 6)))
def tied_three_times() -> nn.Module:
    def run(m: Any, ids: Tensor) -> Tensor:
        h = m.body(m.embed(ids))
        h = h + h @ m.embed.weight.t() @ m.embed.weight
        return F.cross_entropy(m.head(h).flatten(0, 1), ids.flatten())

    model = Apply(run, embed=nn.Embedding(11, 16), body=mlp(), head=nn.Linear(16, 11, bias=False))
    model.head.weight = model.embed.weight  # type: ignore[union-attr]
    return model


class Counting(nn.Module):
    """Changes one buffer in place and rebinds another, and reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(mlp(), mlp())
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(16))
        self.register_buffer("unused", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        self.steps = self.steps + 1
        self.average.mul_(0.9).add_(0.1 * x.mean(0))
        return (self.body(x - self.average) / self.steps).square().mean()


@scene(64, 16)
def buffers_changed() -> nn.Module:
    return Counting()


@scene(64, 16)
def frozen_with_adapters() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        return (m.base(x) + m.up(m.down(m.base(x)))).square().mean()

    model = Apply(
        run,
        base=mlp().requires_grad_(False),
        down=nn.Linear(16, 2),
        up=nn.Linear(2, 16),
    )
    return nn.Sequential(mlp().requires_grad_(False), model)


@scene(64, 16)
def called_twice() -> nn.Module:
    return Apply(lambda m, x: m.a(m.a(m.a(x))).square().mean(), a=mlp())


@scene(inputs=lambda: torch.randn(64, 16, requires_grad=True))
def input_that_requires_grad() -> nn.Module:
    return chain(mlp(), mlp())


@scene(64, 16)
def plain_tensor_attribute() -> nn.Module:
    model = Apply(lambda m, x: (m.a(x) * m.scale).square().mean(), a=mlp())
    model.scale = torch.linspace(0, 1, 16)
    return model


def _half_inputs() -> Tensor:
    return torch.randn(64, 16).bfloat16()


@scene(inputs=_half_inputs)
def bfloat16() -> nn.Module:
    return chain(mlp(), nn.LayerNorm(16), nn.Dropout(0.1), mlp()).bfloat16()


@scene(64, 16, around=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
def autocast() -> nn.Module:
    return chain(mlp(), nn.LayerNorm(16), nn.Dropout(0.1), mlp())


@scene(inputs=lambda: torch.randn(64, 16, dtype=torch.complex64))
def complex_numbers() -> nn.Module:
    weight = nn.Linear(16, 16, dtype=torch.complex64)
    return Apply(lambda m, x: (m.a(x) * m.a(x)).abs().square().mean(), a=weight)


@scene(64, 16)
def user_checkpoints() -> nn.Module:
    from torch.utils.checkpoint import checkpoint

    def run(m: Any, x: Tensor) -> Tensor:
        h = checkpoint(m.a, x, use_reentrant=False)
        return checkpoint(m.b, h, use_reentrant=False).square().mean()

    return Apply(run, a=mlp(), b=nn.Sequential(nn.Dropout(0.2), mlp()))


@scene(inputs=lambda: {"x": torch.randn(64, 16), "extra": [torch.randn(16), {"y": torch.ones(1)}]})
def keyword_and_nested_inputs() -> nn.Module:
    def run(m: Any, *, x: Tensor, extra: Any, scale: float = 2.0) -> Tensor:
        return (m.a(x + extra[0]) * extra[1]["y"] * scale).square().mean()

    return Apply(run, a=nn.Sequential(mlp(), mlp()))


@scene(64, 16)
def gradient_that_stops() -> nn.Module:
    """One branch ends at an argmax, one parameter is never used."""

    def run(m: Any, x: Tensor) -> Any:
        h = m.a(x)
        with torch.no_grad():
            best = m.b(h).argmax(-1)
        return (h * best[:, None]).square().mean()

    return Apply(run, a=nn.Sequential(mlp(), mlp()), b=mlp(), unused=nn.Linear(2, 2))


@dataclass
class Answer:
    """An output of the user's own class, known to torch's trees."""

    loss: Tensor
    hidden: list[Tensor]
    note: str = "fine"


torch.utils._pytree.register_dataclass(Answer)


DEEP = Scene(
    lambda: Apply(
        lambda m, x: m.body(x).square().mean(),
        body=nn.Sequential(mlp(), nn.Dropout(0.2), nn.BatchNorm1d(16), mlp(), mlp()),
    ),
    lambda: torch.randn(64, 16),
)
LOGITS = Scene(lambda: nn.Sequential(mlp(), mlp()), lambda: torch.randn(64, 16))
