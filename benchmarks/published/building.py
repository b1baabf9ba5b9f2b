"""From a case to the model that its source trained, on meta, and the inputs of one micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import transformers as hf
from torch import nn

from benchmarks.models import litgpt, mpt, torchtitan
from benchmarks.published.case import Case, Library, Precision

Built = tuple[nn.Module, dict[str, Any]]
IMAGE = 224


def build(case: Case) -> Built:
    """Build the model of a case in training mode, and a micro-batch for it, without data."""
    torch.set_default_dtype(
        torch.bfloat16 if case.precision is Precision.TRUE_BFLOAT16 else torch.float32
    )
    try:
        with torch.device("meta"):
            model, inputs = _BUILDERS[case.library](case)
    finally:
        torch.set_default_dtype(torch.float32)
    if case.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs["pixel_values"] = inputs["pixel_values"].to(memory_format=torch.channels_last)
    return model.train(), inputs


def _tokens(case: Case) -> torch.Tensor:
    return torch.empty(case.batch, case.length, dtype=torch.long)


def _images(case: Case) -> dict[str, Any]:
    # their dtype would follow the default one
    images = torch.empty(case.batch, 3, IMAGE, IMAGE, dtype=torch.float32)
    return {"pixel_values": images, "labels": torch.empty(case.batch, dtype=torch.long)}


def _bert(case: Case) -> Built:
    config = hf.BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        vocab_size=28996, attn_implementation="eager",
    )  # fmt: skip
    inputs = {"input_ids": _tokens(case), "labels": torch.empty(case.batch, dtype=torch.long)}
    return hf.BertForSequenceClassification(config), inputs


def _deit(case: Case) -> Built:
    width, heads = {"DeiT-Ti": (192, 3), "DeiT-S": (384, 6), "DeiT-B": (768, 12)}[case.model]
    config = hf.ViTConfig(
        hidden_size=width, num_hidden_layers=12, num_attention_heads=heads,
        intermediate_size=4 * width, num_labels=1000, attn_implementation="eager",
    )  # fmt: skip
    return hf.ViTForImageClassification(config), _images(case)


def _resnet(case: Case) -> Built:
    return hf.ResNetForImageClassification(hf.ResNetConfig(num_labels=1000)), _images(case)


def _gpt2(case: Case) -> Built:
    """Build GPT-2 as nanoGPT has it: no dropout, a padded vocabulary."""
    config = hf.GPT2Config(
        use_cache=False, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, vocab_size=50304,
        attn_implementation="eager" if case.attention == "written out" else "sdpa",
    )  # fmt: skip
    ids = _tokens(case)
    return hf.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}


def _decoder(model: Callable[[Case], nn.Module]) -> Callable[[Case], Built]:
    def built(case: Case) -> Built:
        ids = _tokens(case)
        return model(case), {"ids": ids, "targets": ids}

    return built


def _litgpt(case: Case) -> nn.Module:
    shape, adapters = litgpt.SHAPES[case.model], None
    if case.adapters:
        on = litgpt.EVERYWHERE if case.adapters.everywhere else litgpt.ON_ATTENTION
        adapters = litgpt.Adapters(case.adapters.rank, on)
    shape = replace(shape, narrow_norms=case.library is Library.LITGPT_2023)
    pretrains = case.library is Library.LITGPT_PRETRAINING
    return litgpt.LitGPT(shape, case.length, adapters, pretrains=pretrains)


def _titan(case: Case) -> nn.Module:
    return torchtitan.Llama(
        torchtitan.SIZES[case.model],
        case.length,
        chunks=case.loss_chunks,
        names_logits=case.library is not Library.TUNE,
    )


_BUILDERS: dict[Library, Callable[[Case], Built]] = {
    Library.TRANSFORMERS: _bert,
    Library.MESA: _deit,
    Library.NVIDIA: _resnet,
    Library.NANOGPT: _gpt2,
    Library.LITGPT: _decoder(_litgpt),
    Library.LITGPT_2023: _decoder(_litgpt),
    Library.LITGPT_PRETRAINING: _decoder(_litgpt),
    Library.FOUNDRY: _decoder(lambda case: mpt.MPT(mpt.SIZES[case.model], case.length)),
    Library.TITAN: _decoder(_titan),
    Library.FMS_FSDP: _decoder(_titan),
    Library.TUNE: _decoder(_titan),
}
