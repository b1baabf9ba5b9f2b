"""The loss is computed by the loop, not by the model: ``python examples/loss_outside.py``."""

import torch
from torch import nn

import planner


def build() -> tuple[nn.Module, torch.Tensor]:
    """Build a classifier of sequences and one batch."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(128, 4, dim_feedforward=512, batch_first=True)
    body = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
    return nn.Sequential(body, nn.Linear(128, 10)).train(), torch.randn(8, 128, 128)


def main() -> None:
    """Train with a loss that the plan does not see, then with one that it does."""
    model, x = build()
    y = torch.randint(10, (8 * 128,))
    criterion = nn.CrossEntropyLoss()

    plan = planner.fit(model, "30MB", inputs=x)
    planned = plan.apply(model)
    outside = criterion(planned(x).flatten(0, 1), y)  # what this holds is not in the plan
    outside.backward()
    print(f"outside: loss {outside.item():.4f}, {plan!r}")

    plan = planner.fit(
        model, "30MB", inputs=x, loss=lambda out, y: criterion(out.flatten(0, 1), y), targets=y
    )
    planned = plan.apply(model)
    inside = planned(x, targets=y)  # the loss is part of the planned step
    inside.backward()
    print(f"inside:  loss {inside.item():.4f}, {plan!r}")


if __name__ == "__main__":
    main()
