"""Batch norm under a plan, trained bit for bit alike: ``python examples/cnn.py``."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import planner


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.two = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_one, self.norm_two = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions make of it."""
        y = F.relu(self.norm_one(self.one(x)))
        return F.relu(x + self.norm_two(self.two(y)))


def build() -> tuple[nn.Module, Tensor]:
    """Build a network of four blocks and one batch of images."""
    torch.manual_seed(0)
    blocks = [Block(32) for _ in range(4)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *blocks, *head), torch.rand(8, 3, 48, 48)


def train(model: nn.Module, x: Tensor, y: Tensor, *, planned: bool) -> list[float]:
    """Train three steps, within a budget or plain."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = model
    if planned:
        plan = planner.fit(
            model, "26MB", inputs=x, loss=F.cross_entropy, targets=y, optimizer=optimizer
        )
        print(repr(plan))
        step = plan.apply(model)
    losses = []
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        loss = step(x, targets=y) if planned else F.cross_entropy(step(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Compare every loss and every running statistic."""
    y = torch.arange(8)
    (one, x), (other, _) = build(), build()
    same = train(one, x, y, planned=False) == train(other, x, y, planned=True)
    states = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    print("losses equal:", same)
    print("weights and statistics equal:", all(torch.equal(a, b) for a, b in states))


if __name__ == "__main__":
    main()
