"""Vision models from transformers: attention, convolutions, both; batch norm in train mode."""

from __future__ import annotations

import transformers as hf
from torch import Tensor, nn

from benchmarks.models.example import Example, classes, images, seeded, tokens

_CLASSES = 100


def vit() -> Example:
    """Build a vision transformer."""
    config = hf.ViTConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=8,
        image_size=128,
        patch_size=8,
        num_labels=_CLASSES,
    )
    model = seeded(lambda: hf.ViTForImageClassification(config))
    return model, {"pixel_values": images(8, 128), "labels": classes(8, _CLASSES)}


class _Contrastive(nn.Module):
    """Ask the model inside for its loss: CLIP has no labels to pass instead."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        output = self.inner(input_ids=input_ids, pixel_values=pixel_values, return_loss=True)
        return output.loss  # type: ignore[no-any-return]


def clip() -> Example:
    """Build CLIP: two towers that meet in a contrastive loss."""
    text = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "max_position_embeddings": 64,
        "vocab_size": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    sight = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "image_size": 112,
        "patch_size": 8,
    }
    config = hf.CLIPConfig(text_config=text, vision_config=sight, projection_dim=128)
    model = seeded(lambda: _Contrastive(hf.CLIPModel(config)))
    return model, {"input_ids": tokens(12, 64, 4096), "pixel_values": images(12, 112)}


def segformer() -> Example:
    """Build SegFormer: a pyramid of attention, upsampled and joined for a label per pixel."""
    config = hf.SegformerConfig(
        depths=[2, 2, 2, 2],
        hidden_sizes=[32, 64, 128, 160],
        decoder_hidden_size=128,
        num_labels=_CLASSES // 5,
    )
    model = seeded(lambda: hf.SegformerForSemanticSegmentation(config))
    labels = tokens(16, 160 * 160, _CLASSES // 5).view(16, 160, 160)
    return model, {"pixel_values": images(16, 160), "labels": labels}


def resnet50() -> Example:
    """Build ResNet-50 at full width on small images; batch norm updates its statistics."""
    model = seeded(lambda: hf.ResNetForImageClassification(hf.ResNetConfig(num_labels=_CLASSES)))
    return model, {"pixel_values": images(16, 128), "labels": classes(16, _CLASSES)}


def convnext() -> Example:
    """Build ConvNeXt: depthwise convolutions, layer norm, stochastic depth off."""
    config = hf.ConvNextConfig(
        depths=[2, 2, 6, 2], hidden_sizes=[48, 96, 192, 384], num_labels=_CLASSES
    )
    model = seeded(lambda: hf.ConvNextForImageClassification(config))
    return model, {"pixel_values": images(24, 128), "labels": classes(24, _CLASSES)}


def mobilenet_v2() -> Example:
    """Build MobileNetV2: inverted residuals, batch norm in train mode."""
    config = hf.MobileNetV2Config(num_labels=_CLASSES)
    model = seeded(lambda: hf.MobileNetV2ForImageClassification(config))
    return model, {"pixel_values": images(12, 128), "labels": classes(12, _CLASSES)}
