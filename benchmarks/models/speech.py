"""Speech models from transformers."""

from __future__ import annotations

import torch
import transformers as hf

from benchmarks.models.example import Example, seeded, tokens


def whisper() -> Example:
    """Build Whisper: convolutions over a spectrogram, encoder, decoder with cross attention."""
    config = hf.WhisperConfig(
        d_model=256,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=1024,
        decoder_ffn_dim=1024,
        max_source_positions=300,
        max_target_positions=128,
        vocab_size=4096,
        dropout=0.1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        begin_suppress_tokens=None,
        use_cache=False,
    )
    spectrogram = torch.randn(4, 80, 600, generator=torch.Generator().manual_seed(1))
    model = seeded(lambda: hf.WhisperForConditionalGeneration(config))
    return model, {"input_features": spectrogram, "labels": tokens(4, 128, 4096)}
