"""What tests of the compiled engine share: a step worth planning, and what is measured of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from planner.graphs.torch_api.allocation_records import measure_peak
from planner.solvers import Limits

QUICK = {"optimizer": None, "limits": Limits(seconds=3), "progress": "off"}
ROWS = 2048


class Block(nn.Module):
    """A residual layer of a transformer's kind, without attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.nn.functional.gelu(self.up(self.norm(x)), approximate="tanh")
        return x + self.drop(self.down(hidden))


class Net(nn.Module):
    """A few blocks and a loss."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.gain = 2.0

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.square().mean() * self.gain


class Broken(Net):
    """A model whose step cannot be traced whole."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](x)
        torch._dynamo.graph_break()
        print("half way")
        return self.blocks[1](x).square().mean()


def net() -> tuple[Net, Tensor]:
    """Make the model and its input."""
    torch.manual_seed(0)
    return Net(), torch.randn(ROWS, 32)


def static_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Add up what is there throughout."""
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers(), *inputs))


def step(model: nn.Module, *inputs: Tensor) -> Tensor:
    """Take one step, and return its loss."""
    model.zero_grad(set_to_none=True)
    loss: Tensor = model(*inputs)
    loss.backward()
    return loss.detach()


def measured_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Measure what a warm step holds at most."""
    step(model, *inputs)
    step(model, *inputs)
    model.zero_grad(set_to_none=True)
    return static_bytes(model, *inputs) + measure_peak(lambda: step(model, *inputs)).peak_bytes


def gradients(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Take one step from a seed, and return the loss and the gradients."""
    torch.manual_seed(3)
    return [
        step(model, *inputs),
        *(p.grad.clone() for p in model.parameters() if p.grad is not None),
    ]
