"""The zoo: real architectures at sizes that two cores can train, with random weights.

Knows how to build each model and a batch for it. Knows nothing of plans or of measurements. Sizes
are reduced such that a step takes seconds and activations outweigh parameters.
"""

from benchmarks.models import language, recurrent, speech, unets, vision
from benchmarks.models.example import Example, Factory

ZOO: dict[str, Factory] = {
    "gpt2": language.gpt2,
    "gpt2_dropout": language.gpt2_dropout,
    "gpt2_eager_dropout": language.gpt2_eager_dropout,
    "llama": language.llama,
    "mixtral": language.mixtral,
    "bert": language.bert,
    "distilbert": language.distilbert,
    "t5": language.t5,
    "mamba": language.mamba,
    "whisper": speech.whisper,
    "vit": vision.vit,
    "clip": vision.clip,
    "segformer": vision.segformer,
    "resnet50": vision.resnet50,
    "convnext": vision.convnext,
    "mobilenet_v2": vision.mobilenet_v2,
    "unet": unets.unet,
    "diffusion_unet": unets.diffusion_unet,
    "lstm": recurrent.lstm,
}

__all__ = ["Example", "Factory", "ZOO"]
