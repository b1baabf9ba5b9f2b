"""MLPs in chunks, predicted and measured: ``python -m benchmarks.mlp_chunks``.

For a long sequence through a model like Llama's and one like GPT-2, narrow, whose MLPs are wide:
the least budget known to work in 1, 2, 4 and 8 chunks, and the plans at two budgets, run. Peaks are
of the CPU allocator's records beside what is held all along; times are beside a plain step of the
model. Gradients are compared with the model's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

import planner
from benchmarks.loss_chunks import Least, LossAlone, Row, planned
from benchmarks.record import record, show
from planner.request import request_of
from planner.solvers import Limits, minimum_budget
from planner.step_variants import captured_step

LENGTH = 2048
COUNTS = (1, 2, 4, 8)
SHARES = (0.1, 0.5)
"""Where the budgets lie between the least that works in chunks and what the plain step needs."""


def llama() -> nn.Module:
    """Return a narrow Llama of few words."""
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=1024, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LENGTH,
        use_cache=False,
    )  # fmt: skip
    return LossAlone(transformers.LlamaForCausalLM(config))


def gpt2() -> nn.Module:
    """Return a narrow GPT-2 of few words."""
    config = transformers.GPT2Config(
        vocab_size=256, n_embd=64, n_inner=1024, n_layer=2, n_head=4, n_positions=LENGTH,
        use_cache=False, loss_type="ForCausalLMLoss",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LossAlone(transformers.GPT2LMHeadModel(config))


MODELS: dict[str, Callable[[], nn.Module]] = {"llama": llama, "gpt2": gpt2}


def least(name: str, model: nn.Module, said: dict[str, Any]) -> tuple[list[Least], list[int]]:
    """Find the least budgets of a model; return what they are, and budgets to plan for.

    Args:
        name: of the model.
        model: that is planned.
        said: of the step.
    """
    whole = captured_step(request_of(model, said))
    assert whole.variant is not None, "it is captured op by op"
    held = sum(whole.graph.values[v].size_bytes for v in whole.graph.resident)
    rows: list[Least] = []
    for chunks in COUNTS:
        variant = whole if chunks == 1 else whole.variant(f"mlp_chunks {chunks}")
        found = minimum_budget(variant.graph, Limits(seconds=10))
        rows.append(Least(name, str(chunks), found.least_bytes - held, found.floor_bytes - held))
    low = held + min(row.least_bytes for row in rows)
    high = planner.fit(model, "1TB", **said).plain_peak_bytes
    return rows, [int(low + share * (high - low)) for share in SHARES]


def main() -> None:
    """Run every model, print two tables and write two files."""
    found: list[Least] = []
    rows: list[Row] = []
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model, ids = make().train(), torch.randint(0, 256, (1, LENGTH))
        inputs = {"input_ids": ids, "labels": ids}
        said: dict[str, Any] = {
            "inputs": inputs,
            "optimizer": None,
            "progress": "off",
            "limits": Limits(seconds=10),
        }
        several, budgets = least(name, model, said)
        found += several
        rows += planned(name, model, said, budgets, option="mlp_chunks", counts=COUNTS)
    show("The least budget known to work", found)
    show("Plans, run", rows)
    print(record("mlp_chunks_least", found))
    print(record("mlp_chunks", rows))


if __name__ == "__main__":
    main()
