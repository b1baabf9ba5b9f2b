"""Language models from transformers: decoders, encoders, encoder-decoder, experts, state space."""

from __future__ import annotations

import transformers as hf

from benchmarks.models.example import Example, seeded, tokens

_VOCABULARY = 4096


def _gpt2(attention: str, dropout: float) -> Example:
    config = hf.GPT2Config(
        n_layer=6,
        n_embd=256,
        n_head=8,
        n_positions=256,
        vocab_size=_VOCABULARY,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        attn_implementation=attention,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    ids = tokens(8, 256, _VOCABULARY)
    return seeded(lambda: hf.GPT2LMHeadModel(config)), {"input_ids": ids, "labels": ids}


def gpt2() -> Example:
    """Build GPT-2 with fused attention and no dropout."""
    return _gpt2("sdpa", 0.0)


def gpt2_dropout() -> Example:
    """Build GPT-2 with fused attention and dropout."""
    return _gpt2("sdpa", 0.1)


def gpt2_eager_dropout() -> Example:
    """Build GPT-2 with attention written out and dropout, also on the attention weights."""
    return _gpt2("eager", 0.1)


def llama() -> Example:
    """Build Llama: rotary positions, grouped keys, gated MLP."""
    config = hf.LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        vocab_size=_VOCABULARY,
        use_cache=False,
    )
    ids = tokens(8, 256, _VOCABULARY)
    return seeded(lambda: hf.LlamaForCausalLM(config)), {"input_ids": ids, "labels": ids}


def mixtral() -> Example:
    """Build Mixtral with grouped experts: the loop over experts depends on the data."""
    config = hf.MixtralConfig(
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        vocab_size=_VOCABULARY,
        use_cache=False,
        experts_implementation="grouped_mm",
    )
    ids = tokens(8, 256, _VOCABULARY)
    return seeded(lambda: hf.MixtralForCausalLM(config)), {"input_ids": ids, "labels": ids}


def bert() -> Example:
    """Build BERT with its masked-language head, dropout included."""
    config = hf.BertConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=256,
        vocab_size=_VOCABULARY,
    )
    ids = tokens(8, 256, _VOCABULARY)
    return seeded(lambda: hf.BertForMaskedLM(config)), {"input_ids": ids, "labels": ids}


def distilbert() -> Example:
    """Build DistilBERT with its masked-language head, dropout included."""
    config = hf.DistilBertConfig(
        dim=256,
        hidden_dim=1024,
        n_layers=6,
        n_heads=8,
        max_position_embeddings=256,
        vocab_size=_VOCABULARY,
    )
    ids = tokens(8, 256, _VOCABULARY)
    return seeded(lambda: hf.DistilBertForMaskedLM(config)), {"input_ids": ids, "labels": ids}


def t5() -> Example:
    """Build T5: encoder and decoder, shared embedding, relative positions, dropout."""
    config = hf.T5Config(
        d_model=256,
        d_kv=32,
        d_ff=1024,
        num_layers=4,
        num_decoder_layers=4,
        num_heads=8,
        vocab_size=_VOCABULARY,
        pad_token_id=0,
        decoder_start_token_id=0,
        use_cache=False,
    )
    source, target = tokens(8, 192, _VOCABULARY), tokens(8, 128, _VOCABULARY)
    model = seeded(lambda: hf.T5ForConditionalGeneration(config))
    return model, {"input_ids": source, "labels": target}


def mamba() -> Example:
    """Build Mamba, its scan written out as one long chain of small operators."""
    config = hf.MambaConfig(
        hidden_size=192,
        state_size=8,
        num_hidden_layers=4,
        vocab_size=_VOCABULARY,
        use_cache=False,
        use_associative_scan=False,
    )
    ids = tokens(8, 64, _VOCABULARY)
    return seeded(lambda: hf.MambaForCausalLM(config)), {"input_ids": ids, "labels": ids}
