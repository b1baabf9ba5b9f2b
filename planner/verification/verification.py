"""What a check of a plan found: plain and planned training, measured and compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from planner.byte_sizes import format_both
from planner.errors import PlannerError

if TYPE_CHECKING:
    from torch import Tensor

    from planner.verification.difference import Difference
    from planner.verification.training_run import Measurement


class VerificationFailed(PlannerError, RuntimeError):
    """A training run could not be carried out in a process of its own."""


@dataclass(frozen=True)
class Verification:
    """What plain and planned training needed, and whether they agree."""

    plain: Measurement
    planned: Measurement
    predicted_bytes: int
    budget_bytes: int
    loss: Difference
    gradients: Difference
    parameters: Difference
    buffers: Difference

    @property
    def fits(self) -> bool:
        """Whether the measured peak is within the budget."""
        return self.planned.peak_bytes <= self.budget_bytes

    @property
    def identical(self) -> bool:
        """Whether losses, gradients, parameters and buffers agree in every bit."""
        compared = (self.loss, self.gradients, self.parameters, self.buffers)
        return all(difference.identical for difference in compared)

    @property
    def prediction_error(self) -> float:
        """How far the predicted peak is above the measured one, as a fraction of it."""
        return self.predicted_bytes / self.planned.peak_bytes - 1

    @property
    def time_ratio(self) -> float:
        """Time of a planned step over that of a plain one."""
        return self.planned.seconds / self.plain.seconds

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain dicts, lists and numbers."""
        derived = ("fits", "identical", "prediction_error", "time_ratio")
        found = asdict(self) | {name: getattr(self, name) for name in derived}
        return found | {"baseline": found["plain"], "patched": found["planned"]}  # until 0.3

    def __str__(self) -> str:
        """Answer first: does it fit, does it agree, what does it cost."""
        return _render(self)


def losses_of(measured: Measurement) -> dict[str, Tensor]:
    """Return the losses of a run by the number of their step."""
    import torch

    return {f"step {i + 1}": torch.tensor(x) for i, x in enumerate(measured.losses)}


def _render(found: Verification) -> str:
    fits = "fits" if found.fits else "DOES NOT FIT"
    agree = "bit-identical" if found.identical else "NOT bit-identical"
    plain, planned = found.plain, found.planned
    lines = [
        f"{fits}: measured peak {format_both(planned.peak_bytes)} of the budget "
        f"{format_both(found.budget_bytes)}; results {agree}",
        f"  predicted peak   {format_both(found.predicted_bytes)} "
        f"({found.prediction_error:+.2%} of measured)",
        f"  plain training   {format_both(plain.peak_bytes)}, {plain.seconds:.3f} s a step",
        f"  planned          {format_both(planned.peak_bytes)}, {planned.seconds:.3f} s a step "
        f"({found.time_ratio - 1:+.1%})",
    ]
    if planned.high_water_bytes and plain.high_water_bytes:
        lines.append(
            f"  seen by system   {format_both(plain.high_water_bytes)} plain, "
            f"{format_both(planned.high_water_bytes)} planned"
        )
    for what in ("loss", "gradients", "parameters", "buffers"):
        gap: Difference = getattr(found, what)
        if not gap.identical:
            lines.append(
                f"  {what} differ by {gap.absolute:.3g} ({gap.relative:.3g} relative), "
                f"most in {gap.name}"
            )
    return "\n".join(lines)
