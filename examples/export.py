"""Write a plan for other programs, and what they cannot do of it: ``python examples/export.py``."""

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import planner


def build() -> tuple[nn.Module, Tensor]:
    """Build a stack of equal layers and one batch, on meta."""
    with torch.device("meta"):
        layers = [
            nn.TransformerEncoderLayer(1024, 16, batch_first=True, dropout=0.0) for _ in range(4)
        ]
        return nn.Sequential(*layers), torch.empty(8, 512, 1024)


def main() -> None:
    """Write every format into a folder: the one named, or a temporary one."""
    model, x = build()
    plan = planner.fit(
        model,
        "4.9GB",
        inputs=x,
        loss=lambda out: out.square().mean(),
        world_size=8,
        device="A100-40GB",
    )
    print(repr(plan))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if sys.argv[1:] else temporary)
        plan.save(folder / "plan.json")
        for name, file in (
            ("fsdp2", "train.py"),
            ("deepspeed", "deepspeed.json"),
            ("accelerate", "accelerate.yaml"),
            ("html", "report.html"),
        ):
            notes = plan.export(folder / file, name)
            print(f"{name}: {(folder / file).stat().st_size:,} bytes in {file}")
            for note in notes:
                print(f"  - {note}")


if __name__ == "__main__":
    main()
