"""Save a plan, load it elsewhere, train with it: ``python examples/saved_plan.py``."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import planner


def build() -> tuple[nn.Module, Tensor]:
    """Build a deep stack and one batch."""
    torch.manual_seed(0)
    layers = [m for _ in range(6) for m in (nn.Linear(256, 256), nn.GELU(), nn.Dropout(0.1))]
    return nn.Sequential(*layers).train(), torch.randn(2048, 256)


def loss_of(out: Tensor) -> Tensor:
    """A loss without targets."""
    return out.square().mean()


def main() -> None:
    """Plan once; what is in the file is all that training needs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        model, x = build()
        planner.fit(model, "28MB", inputs=x, loss=loss_of).save(path)
        print(f"saved {path.stat().st_size:,} bytes of JSON")

        plan = planner.load(path)
        assert isinstance(plan, planner.Plan)  # for one device
        planned = plan.apply(model, loss=loss_of)  # a file holds no functions
        planned(x).backward()
        print(f"loaded and applied: {plan!r}")

        other = nn.Sequential(nn.Linear(256, 256), nn.Tanh())
        try:
            plan.apply(other, loss=loss_of)
        except planner.PlanMismatch as error:
            print(f"another model is refused: {error}")


if __name__ == "__main__":
    main()
