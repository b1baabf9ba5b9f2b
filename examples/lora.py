"""A frozen base with low-rank adapters: what a plan saves there: ``python examples/lora.py``."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import planner


class LoRA(nn.Module):
    """A frozen linear layer plus a product of two thin matrices that are trained."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Add the correction to what the base makes."""
        return torch.add(self.base(x), self.up(self.down(x)))


class Layer(nn.Module):
    """A residual layer whose linear maps are adapted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width).requires_grad_(False)
        self.rise = LoRA(nn.Linear(width, 4 * width))
        self.fall = LoRA(nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Add what the layer makes."""
        return torch.add(x, self.fall(F.gelu(self.rise(self.norm(x)))))


def build() -> tuple[nn.Module, Tensor]:
    """Build eight layers and one batch."""
    torch.manual_seed(0)
    return nn.Sequential(*(Layer(256) for _ in range(8))), torch.randn(4, 256, 256)


def main() -> None:
    """Plan for the adapters alone: the frozen weights have no gradients and no state."""
    model, x = build()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    print(
        f"{sum(n for n, on in sizes if on):,} of {sum(n for n, _ in sizes):,} weights are trained"
    )
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    plan = planner.fit(
        model, "80MB", inputs=x, loss=lambda y: y.square().mean(), optimizer=optimizer
    )
    print(str(plan).partition("\n\n")[0])
    planned = plan.apply(model)
    planned(x).backward()
    optimizer.step()
    frozen = [p.grad is None for p in model.parameters() if not p.requires_grad]
    print("one step taken; no frozen weight has a gradient:", all(frozen))


if __name__ == "__main__":
    main()
