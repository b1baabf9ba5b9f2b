"""The zoo: every model is in train mode, has a loss, and comes out the same each time."""

import pytest
import torch

from benchmarks.models import ZOO
from planner.verification.training_run import scalar_of


@pytest.mark.parametrize("name", ZOO)
def test_models_are_built_the_same_each_time(name: str) -> None:
    (model, inputs), (again, same) = ZOO[name](), ZOO[name]()
    assert model.training
    assert inputs.keys() == same.keys()
    assert all(torch.equal(inputs[key], same[key]) for key in inputs)
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the libraries warn of is not ours to fix
@pytest.mark.parametrize("name", ZOO)
def test_models_train_the_same_each_time(name: str) -> None:
    model, inputs = ZOO[name]()
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        loss = scalar_of(model(**inputs))
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == losses[1]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
