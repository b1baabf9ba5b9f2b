"""What a step is captured for: whose kernels, whose clock and memory, whatever is at hand here."""

from __future__ import annotations

from dataclasses import dataclass

from planner.graphs.hardware.devices import Device

RNG_STATE_BYTES = {"cpu": 5056, "cuda": 16}
"""The state of a default generator, by the type of its device."""


@dataclass(frozen=True, slots=True)
class Target:
    """A device to plan for, and the type of device whose kernels are captured.

    ``kernels`` is a type as torch names it ("cpu", "cuda"): it decides how operators fall apart,
    which autocast rules hold and which kernels optimizers choose. ``lean`` takes the leaner of two
    equal dropouts, as a step of ours may and eager mode on a CPU does not.
    """

    device: Device
    kernels: str = "cpu"
    lean: bool = True

    @property
    def rng_state_bytes(self) -> int:
        """The state of a generator that a random op which runs again sets aside."""
        return RNG_STATE_BYTES.get(self.kernels, RNG_STATE_BYTES["cpu"])
