"""The architectures of the zoo at sizes whose compiled step takes seconds to make, not minutes.

Two layers of each kind: what repeats compiles to the same kernels again. Activations outweigh
parameters.
"""

from __future__ import annotations

import transformers as hf
from torch import Tensor

from benchmarks.models.example import Example, Factory, classes, images, seeded, tokens
from benchmarks.models.unets import DiffusionUNet, UNet

_VOCABULARY = 512
_SEQUENCE = 128
_CLASSES = 10


def _ids() -> dict[str, Tensor]:
    ids = tokens(8, _SEQUENCE, _VOCABULARY)
    return {"input_ids": ids, "labels": ids}


def gpt2() -> Example:
    """Build GPT-2 with fused attention and dropout."""
    config = hf.GPT2Config(
        n_layer=2,
        n_embd=64,
        n_head=4,
        n_positions=_SEQUENCE,
        vocab_size=_VOCABULARY,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return seeded(lambda: hf.GPT2LMHeadModel(config)), _ids()


def llama() -> Example:
    """Build Llama: rotary positions, grouped keys, gated MLP."""
    config = hf.LlamaConfig(
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_SEQUENCE,
        vocab_size=_VOCABULARY,
        use_cache=False,
    )
    return seeded(lambda: hf.LlamaForCausalLM(config)), _ids()


def mixtral() -> Example:
    """Build Mixtral with grouped experts."""
    config = hf.MixtralConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=_SEQUENCE,
        vocab_size=_VOCABULARY,
        use_cache=False,
        experts_implementation="grouped_mm",
    )
    return seeded(lambda: hf.MixtralForCausalLM(config)), _ids()


def bert() -> Example:
    """Build BERT with its masked-language head, dropout included."""
    config = hf.BertConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_SEQUENCE,
        vocab_size=_VOCABULARY,
    )
    return seeded(lambda: hf.BertForMaskedLM(config)), _ids()


def t5() -> Example:
    """Build T5: encoder and decoder, shared embedding, relative positions, dropout."""
    config = hf.T5Config(
        d_model=64,
        d_kv=16,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        vocab_size=_VOCABULARY,
        pad_token_id=0,
        decoder_start_token_id=0,
        use_cache=False,
    )
    source, target = tokens(8, 96, _VOCABULARY), tokens(8, 64, _VOCABULARY)
    model = seeded(lambda: hf.T5ForConditionalGeneration(config))
    return model, {"input_ids": source, "labels": target}


def vit() -> Example:
    """Build a vision transformer."""
    config = hf.ViTConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        num_labels=_CLASSES,
    )
    model = seeded(lambda: hf.ViTForImageClassification(config))
    return model, {"pixel_values": images(8, 64), "labels": classes(8, _CLASSES)}


def resnet50() -> Example:
    """Build ResNet-50, all its layers, at an eighth of its width on small images."""
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[32, 64, 128, 256], num_labels=_CLASSES)
    model = seeded(lambda: hf.ResNetForImageClassification(config))
    return model, {"pixel_values": images(8, 64), "labels": classes(8, _CLASSES)}


def unet() -> Example:
    """Build the plain U-Net of three sizes, batch norm in train mode."""
    labels = tokens(4, 64 * 64, 4).view(4, 64, 64)
    model = seeded(lambda: UNet((16, 32, 64), labels=4))
    return model, {"pixels": images(4, 64), "labels": labels}


def diffusion_unet() -> Example:
    """Build the U-Net of a diffusion model, with dropout and attention at small sizes."""
    model = seeded(lambda: DiffusionUNet((16, 32), heads=4))
    noise = images(4, 32)
    steps = tokens(1, 4, 1000).view(-1)
    return model, {"noisy": images(4, 32) * 0.5 + noise, "steps": steps, "noise": noise}


SMALL: dict[str, Factory] = {
    "gpt2": gpt2,
    "llama": llama,
    "bert": bert,
    "vit": vit,
    "resnet50": resnet50,
    "unet": unet,
    "t5": t5,
    "diffusion_unet": diffusion_unet,
    "mixtral": mixtral,
}
