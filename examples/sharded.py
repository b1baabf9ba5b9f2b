"""Plan for eight GPUs on a machine that has none: ``python examples/sharded.py``.

The plan says what to shard and what to recompute. Saved, it is applied on the GPUs: under torchrun
every rank calls ``planner.load("plan.json").apply(model)``.
"""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import planner


def build() -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a Llama of half a billion weights and what one device reads, on meta."""
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=8,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=32000,
        use_cache=False,
    )
    with torch.device("meta"):
        ids = torch.zeros(1, 2048, dtype=torch.long)
        return LlamaForCausalLM(config).train(), {"input_ids": ids, "labels": ids}


def main() -> None:
    """Print the plan, and why every alternative was rejected."""
    model, inputs = build()
    plan = planner.fit(
        model,
        "8.6GB",
        inputs=inputs,
        world_size=8,
        device="A100-40GB",
        global_batch=16,
        precisions=["bfloat16"],
        offload=False,
    )
    print(plan.explain())


if __name__ == "__main__":
    main()
