"""A plain training loop, and the two lines that make it fit: ``python examples/plain_loop.py``."""

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import planner


def build() -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a small GPT-2 with random weights and one batch, as ``planner fit`` wants them."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=4,
        n_embd=128,
        n_head=4,
        vocab_size=512,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    ids = torch.randint(config.vocab_size, (4, 128))
    return GPT2LMHeadModel(config).train(), {"input_ids": ids, "labels": ids}


def main() -> None:
    """Plan, then train as before."""
    model, batch = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    plan = planner.fit(model, budget="30MB", inputs=batch, optimizer=optimizer)
    planned = plan.apply(model)  # the same parameters, another schedule

    for step in range(5):
        optimizer.zero_grad(set_to_none=True)
        loss = planned(**batch).loss
        loss.backward()
        optimizer.step()
        print(f"step {step}, loss {loss.item():.4f}")
    print(str(plan).partition("\n\n")[0])


if __name__ == "__main__":
    main()
