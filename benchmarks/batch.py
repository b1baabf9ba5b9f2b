"""The largest batch in 16 GB with at most one more forward pass: ``python -m benchmarks.batch``.

Against the ratios to plain training that Checkmate (arXiv 1910.02653, figure 6) reports for the
same networks, image sizes and memory. What differs here: a step counts every storage as PyTorch
holds it (a ReLU overwrites its input, gradients die at once), with SGD's update and the context of
the device; times are a V100's roofline, where the paper counts FLOPs. ``bound_batch`` is what no
plan exceeds, by the proven bound.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from benchmarks.models import classics
from benchmarks.record import record, show
from planner import Limits, max_batch

BUDGET = "16GB"
DEVICE = "V100-16GB"
LIMITS = Limits(seconds=10)


@dataclass(frozen=True)
class Subject:
    """A network, the batch that Checkmate's artifact reports for it, and the paper's ratio."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], dict[str, Tensor]]
    published_batch: int
    published_ratio: float


SUBJECTS = {
    "vgg19": Subject(classics.vgg19, classics.classifier_batch, 289, 1.73),
    "mobilenet": Subject(classics.mobilenet, classics.classifier_batch, 1105, 5.1),
    "vgg_unet": Subject(classics.vgg_unet, classics.scene_batch, 57, 3.8),
}


@dataclass(frozen=True)
class Row:
    """What was found for one network. ``bound_ratio`` is what no plan exceeds."""

    model: str
    ops: int
    plain_batch: int
    batch: int
    bound_batch: int
    ratio: float
    bound_ratio: float
    published_batch: int
    published_ratio: float
    overhead_fraction: float
    allowed_fraction: float
    captures: int
    total_seconds: float


def measure(name: str) -> Row:
    """Find the largest batches of one network."""
    subject, start = SUBJECTS[name], time.perf_counter()
    found = max_batch(
        classics.on_meta(subject.build),
        BUDGET,
        inputs=subject.inputs,
        optimizer="sgd",
        device=DEVICE,
        limits=LIMITS,
        progress=lambda text: print(text, file=sys.stderr),
    )
    return Row(
        model=name,
        ops=len(found.plan.graph.ops),
        plain_batch=found.plain_batch,
        batch=found.batch,
        bound_batch=found.bound_batch,
        ratio=found.ratio,
        bound_ratio=found.bound_batch / found.plain_batch,
        published_batch=subject.published_batch,
        published_ratio=subject.published_ratio,
        overhead_fraction=found.plan.overhead,
        allowed_fraction=found.max_overhead,
        captures=found.captures,
        total_seconds=time.perf_counter() - start,
    )


def main() -> None:
    """Measure the networks named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="NAME", default=list(SUBJECTS))
    rows = [measure(name) for name in parser.parse_args().models]
    show(f"largest batch in {BUDGET}", rows)
    print(record("batch", rows))


if __name__ == "__main__":
    main()
