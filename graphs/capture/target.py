"""What a step is captured for: whose kernels, whose clock and memory, whatever is at hand here."""

from __future__ import annotations

from dataclasses import dataclass

from planner.graphs.hardware.devices import Device
from planner.graphs.torch_api.cuda.card import Card, card_of

RNG_STATE_BYTES = {"cpu": 5056, "cuda": 16}
"""The state of a default generator, by the type of its device."""


@dataclass(frozen=True, slots=True)
class Target:
    """A device to plan for, and the type of device whose kernels are captured.

    ``kernels`` is a type as torch names it ("cpu", "cuda"): it decides how operators fall apart,
    which autocast rules hold and which kernels optimizers choose. ``host`` is the type that the
    tensors are on while the step is captured. ``lean`` takes the leaner of two equal dropouts, as a
    step of ours may and eager mode on a CPU does not.
    """

    device: Device
    kernels: str = "cpu"
    host: str = "cpu"
    lean: bool = True

    @property
    def card(self) -> Card | None:
        """What kernels are chosen by where they are called by name; ``None`` if torch chooses."""
        if self.kernels == self.host:
            return None
        return card_of(self.device.architecture)

    @property
    def rng_state_bytes(self) -> int:
        """The state of a generator that a random op which runs again sets aside."""
        return RNG_STATE_BYTES.get(self.kernels, RNG_STATE_BYTES["cpu"])
