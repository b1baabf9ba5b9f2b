"""What every byte less costs in time, before a budget is chosen: ``python examples/pareto.py``."""

import sys

import torch
from torch import Tensor, nn

import planner


def build() -> tuple[nn.Module, Tensor]:
    """Build a deep stack of linear layers and one batch, on meta: nothing is allocated."""
    layers: list[nn.Module] = []
    with torch.device("meta"):
        for _ in range(6):
            layers += [nn.Linear(1024, 1024), nn.GELU(), nn.LayerNorm(1024)]
        return nn.Sequential(*layers), torch.empty(2048, 1024)


def main() -> None:
    """Print the curve, and draw it into a file if one is named."""
    model, x = build()
    curve = planner.pareto(
        model,
        inputs=x,
        loss=lambda y: y.square().mean(),
        limits=planner.Limits(seconds=5),
        points=5,
    )
    print(curve)
    found, proved = curve.overhead("190MB"), curve.bound_overhead("190MB")
    print(f"within 190MB: {found:.2%} more time, and no plan takes less than {proved:.2%} more")
    if sys.argv[1:]:
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            file.write(planner.render_curve_svg(curve))
        print(f"drawn in {sys.argv[1]}")


if __name__ == "__main__":
    main()
