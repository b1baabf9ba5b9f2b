"""The networks of the published batch-size experiments, at full size, on meta.

VGG-19 and MobileNet at 224 x 224 with 1,000 classes, U-Net with the VGG-16 encoder at 416 x 608
with 19 classes: the settings of Checkmate (arXiv 1910.02653, the branch ``mlsys20_artifact`` of its
repository). Nothing is allocated, so any batch can be captured.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
VGG19 = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
MOBILE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2))
SCENE = (416, 608)


class Classifier(nn.Module):
    """A network that ends in classes, and its loss."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(self.layers(pixels), labels)


def _convolutions(inward: int, outward: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(count):
        layers += [nn.Conv2d(outward if i else inward, outward, 3, padding=1)]
        layers += [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def vgg19() -> nn.Module:
    """Build VGG-19: sixteen convolutions, three linear layers."""
    layers: list[nn.Module] = []
    inward = 3
    for outward, count in VGG19:
        layers += [_convolutions(inward, outward, count), nn.MaxPool2d(2)]
        inward = outward
    head = [nn.Flatten(), nn.Linear(512 * 49, 4096), nn.ReLU(inplace=True)]
    head += [nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Linear(4096, 1000)]
    return Classifier(*layers, *head)


def _separable(inward: int, outward: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inward, inward, 3, stride, padding=1, groups=inward, bias=False),
        nn.BatchNorm2d(inward),
        nn.ReLU6(inplace=True),
        nn.Conv2d(inward, outward, 1, bias=False),
        nn.BatchNorm2d(outward),
        nn.ReLU6(inplace=True),
    )


def mobilenet() -> nn.Module:
    """Build MobileNet (arXiv 1704.04861): thirteen separable convolutions."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, padding=1, bias=False)]
    layers += [nn.BatchNorm2d(32), nn.ReLU6(inplace=True)]
    inward = 32
    for outward, stride in (*MOBILE, (1024, 1)):
        layers.append(_separable(inward, outward, stride))
        inward = outward
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(1e-3), nn.Linear(1024, 1000)]
    return Classifier(*layers)


class VggUNet(nn.Module):
    """U-Net whose way down is VGG-16; it labels pixels at half the size of the image."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        widths = [3, *(width for width, _ in VGG16[:4])]
        self.down = nn.ModuleList(
            _convolutions(widths[i], width, count) for i, (width, count) in enumerate(VGG16[:4])
        )
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inward, outward, 3, padding=1), nn.BatchNorm2d(outward))
            for inward, outward in ((512, 512), (768, 256), (384, 128), (192, 64))
        )
        self.last = nn.Conv2d(64, labels, 3, padding=1)

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        x, skips = pixels, []
        for block in self.down:
            x = functional.max_pool2d(block(x), 2)
            skips.append(x)
        x = self.up[0](skips.pop())
        for block in list(self.up)[1:]:
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat((x, skips.pop()), dim=1))
        return functional.cross_entropy(self.last(x), labels)


def vgg_unet() -> nn.Module:
    """Build U-Net with the VGG-16 encoder."""
    return VggUNet(19)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model in train mode without data."""
    with torch.device("meta"):
        return build().train()


def classifier_batch(batch: int) -> dict[str, Tensor]:
    """Return images of 224 x 224 and their classes, without data."""
    return _batch(batch, (224, 224), ())


def scene_batch(batch: int) -> dict[str, Tensor]:
    """Return street scenes and the labels of their pixels at half the size, without data."""
    height, width = SCENE
    return _batch(batch, SCENE, (height // 2, width // 2))


def _batch(batch: int, size: tuple[int, int], labelled: tuple[int, ...]) -> dict[str, Tensor]:
    pixels = torch.empty(batch, 3, *size, device="meta")
    labels = torch.empty(batch, *labelled, dtype=torch.int64, device="meta")
    return {"pixels": pixels, "labels": labels}
