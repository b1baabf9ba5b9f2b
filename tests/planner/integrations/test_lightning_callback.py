"""Lightning's Trainer in bfloat16: within a budget, and the same bits as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planner import BadRequest
from planner.integrations import plan_of
from planner.running.states_on_host import storages_on_host
from planner.solvers import Limits
from tests.by_default import slow_but
from tests.planner.integrations.trainers import QUICK, gpt2, padded, same, sentences

lightning = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore")


class Whole(lightning.LightningModule):  # type: ignore[misc]
    """A model whose ``training_step`` calls one child, or itself."""

    def __init__(self, call: str = "net") -> None:
        super().__init__()
        self.net, self.call, self.losses = gpt2(), call, list[Tensor]()

    def forward(self, batch: Any) -> Any:
        return self.net(**batch, use_cache=False)

    def training_step(self, batch: Any, index: int) -> Tensor:
        if self.call == "net":
            labels = batch.pop("labels")
            logits = self.net(**batch).logits[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        else:
            loss = self(batch).loss
        self.losses.append(loss.detach())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("loss", self(batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def trained(folder: Path, model: Any, callback: Any = None) -> tuple[Any, Any]:
    torch.manual_seed(1)
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_epochs=1,
        accelerator="cpu",
        precision="bf16-mixed",
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        callbacks=[callback] if callback else [],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    data = torch.utils.data.DataLoader(sentences(10), batch_size=4, collate_fn=padded)
    held_out = torch.utils.data.DataLoader(sentences(6, 1), batch_size=4, collate_fn=padded)
    trainer.fit(model, data, held_out)
    trainer.save_checkpoint(folder / "last.ckpt")
    return model, trainer


@pytest.mark.slow
def test_states_of_the_optimizer_wait_on_the_host(tmp_path: Path) -> None:
    """From the first step on, in whose closure the plan is made."""
    from planner.integrations import LightningPlannerCallback

    budget = 300_000
    plain, _ = trained(tmp_path, Whole())
    host = {"states": True, "bytes_per_second": 4e9}
    callback = LightningPlannerCallback(budget, offload=host, **QUICK, limits=Limits(1.0))
    planned, trainer = trained(tmp_path, Whole(), callback)
    assert callback.plan is not None
    assert callback.plan.states is not None
    assert callback.plan.peak_bytes <= budget < callback.plan.plain_peak_bytes
    assert storages_on_host(trainer.optimizers[0])
    assert same(planned, plain)


@pytest.mark.parametrize(
    ("call", "module"), slow_but({("net", None)}, [("net", None), ("self", "")])
)
def test_lightning_is_the_same_in_less_memory(tmp_path: Path, call: str, module: str) -> None:
    from planner.integrations import LightningPlannerCallback

    plain, before = trained(tmp_path, Whole(call))
    callback = LightningPlannerCallback(430_000, module=module, **QUICK)
    planned, after = trained(tmp_path, Whole(call), callback)
    assert all(torch.equal(a, b) for a, b in zip(planned.losses, plain.losses, strict=True))
    assert torch.equal(after.callback_metrics["loss"], before.callback_metrics["loss"])
    assert same(planned, plain)
    assert callback.plan is not None
    assert callback.plan.peak_bytes <= 430_000 < callback.plan.plain_peak_bytes
    assert plan_of(planned.net) is None
    loaded = Whole.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    assert same(loaded, plain)


def test_a_module_that_is_not_called_is_said(tmp_path: Path) -> None:
    from planner.integrations import LightningPlannerCallback

    class Parts(Whole):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 2)

    with pytest.raises(BadRequest, match=r"pass module= .* \(it has net, head\)"):
        trained(tmp_path, Parts(), LightningPlannerCallback("1GB"))
    with pytest.raises(BadRequest, match="module='nett'"):
        trained(tmp_path, Whole(), LightningPlannerCallback("1GB", module="nett"))
