"""Convolutional networks with long skips: the plain U-Net and the one of diffusion models."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models.example import Example, images, seeded, tokens


class _Convolutions(nn.Sequential):
    """Two convolutions, each with batch norm and ReLU."""

    def __init__(self, inward: int, outward: int) -> None:
        layers: list[nn.Module] = []
        for width in (inward, outward):
            layers += [nn.Conv2d(width, outward, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(outward), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class UNet(nn.Module):
    """The network of Ronneberger et al.: what goes down joins what comes up at each size."""

    def __init__(self, widths: tuple[int, ...], labels: int) -> None:
        super().__init__()
        pairs = tuple(itertools.pairwise(widths))
        self.first = _Convolutions(3, widths[0])
        self.down = nn.ModuleList(_Convolutions(a, b) for a, b in pairs)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(_Convolutions(2 * a, a) for a, _ in pairs)
        self.last = nn.Conv2d(widths[0], labels, 1)

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy over all pixels."""
        x = self.first(pixels)
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(functional.max_pool2d(x, 2))
        for grow, block in zip(reversed(self.grow), reversed(self.up), strict=True):
            x = block(torch.cat((skips.pop(), grow(x)), dim=1))
        return functional.cross_entropy(self.last(x), labels)


def unet() -> Example:
    """Build the plain U-Net, five sizes, batch norm in train mode."""
    model = seeded(lambda: UNet((24, 48, 96, 192, 256), labels=8))
    labels = tokens(8, 128 * 128, 8).view(8, 128, 128)
    return model, {"pixels": images(8, 128), "labels": labels}


class _Residual(nn.Module):
    """Group norm, SiLU and convolution, twice; the time step is added in between."""

    def __init__(self, inward: int, outward: int, time: int) -> None:
        super().__init__()
        self.before = nn.Sequential(
            nn.GroupNorm(8, inward), nn.SiLU(), nn.Conv2d(inward, outward, 3, padding=1)
        )
        self.time = nn.Linear(time, outward)
        self.after = nn.Sequential(
            nn.GroupNorm(8, outward),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Conv2d(outward, outward, 3, padding=1),
        )
        self.skip = nn.Conv2d(inward, outward, 1) if inward != outward else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        inner = self.before(x) + self.time(time)[:, :, None, None]
        return self.skip(x) + self.after(inner)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Self-attention over the pixels of an image, as a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, width)
        self.project = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, breadth = x.shape
        split = self.project(self.norm(x)).view(batch, 3, self.heads, width // self.heads, -1)
        query, key, value = split.transpose(-1, -2).unbind(1)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        back = mixed.transpose(-1, -2).reshape(batch, width, height, breadth)
        return x + self.out(back)  # type: ignore[no-any-return]


class DiffusionUNet(nn.Module):
    """Predict the noise in an image at a time step: residuals, attention, skips, embedding."""

    def __init__(self, widths: tuple[int, ...], heads: int) -> None:
        super().__init__()
        self.frequencies = widths[0]
        time = 4 * widths[0]
        self.time = nn.Sequential(nn.Linear(widths[0], time), nn.SiLU(), nn.Linear(time, time))
        self.first = nn.Conv2d(3, widths[0], 3, padding=1)
        pairs = tuple(itertools.pairwise((widths[0], *widths)))
        self.down = nn.ModuleList(_Residual(a, b, time) for a, b in pairs)
        self.down_attention = nn.ModuleList(self._attention(b, heads, widths) for b in widths)
        self.middle = _Residual(widths[-1], widths[-1], time)
        self.up = nn.ModuleList(_Residual(2 * b, a, time) for a, b in pairs)
        self.up_attention = nn.ModuleList(self._attention(a, heads, widths) for a, _ in pairs)
        self.last = nn.Conv2d(widths[0], 3, 3, padding=1)

    @staticmethod
    def _attention(width: int, heads: int, widths: tuple[int, ...]) -> nn.Module:
        """Attend where images are small: the widest blocks only."""
        return nn.Identity() if width == widths[0] else _Attention(width, heads)

    def embed(self, steps: Tensor) -> Tensor:
        """Return sines and cosines of the time steps, through two linear layers."""
        half = self.frequencies // 2
        scale = torch.exp(torch.arange(half, device=steps.device) * (-math.log(1e4) / half))
        angles = steps[:, None].float() * scale
        return self.time(torch.cat((angles.sin(), angles.cos()), dim=1))  # type: ignore[no-any-return]

    def forward(self, noisy: Tensor, steps: Tensor, noise: Tensor) -> Tensor:
        """Return the mean squared error of the predicted noise."""
        time, x, skips = self.embed(steps), self.first(noisy), []
        for block, attend in zip(self.down, self.down_attention, strict=True):
            x = attend(block(x, time))
            skips.append(x)
            x = functional.avg_pool2d(x, 2)
        x = self.middle(x, time)
        for block, attend in zip(reversed(self.up), reversed(self.up_attention), strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = attend(block(torch.cat((skips.pop(), x), dim=1), time))
        return functional.mse_loss(self.last(functional.silu(x)), noise)


def diffusion_unet() -> Example:
    """Build the U-Net of a diffusion model, with dropout and attention at small sizes."""
    model = seeded(lambda: DiffusionUNet((32, 64, 128), heads=4))
    steps = tokens(1, 8, 1000).view(-1)
    noise = images(8, 64)
    return model, {"noisy": images(8, 64) * 0.5 + noise, "steps": steps, "noise": noise}
