"""The largest batch within a budget, with a plan and without: ``python examples/max_batch.py``."""

import torch
from torch import Tensor, nn

import planner


def build() -> nn.Module:
    """Build a network on meta: nothing is allocated."""
    with torch.device("meta"):
        return nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1),
            *(m for _ in range(4) for m in (nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 1000),
        )


def images(batch: int) -> Tensor:
    """Return images of the shape that a batch has."""
    return torch.empty(batch, 3, 224, 224, device="meta")


def main() -> None:
    """Ask for at most a quarter more time."""
    found = planner.max_batch(
        build(),
        "8GB",
        inputs=images,
        targets=lambda batch: torch.zeros(batch, dtype=torch.long, device="meta"),
        loss=nn.functional.cross_entropy,
        max_overhead="25%",
        device="A100-40GB",
    )
    print(found)


if __name__ == "__main__":
    main()
