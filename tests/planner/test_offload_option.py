"""``offload=``: what a plan says, holds and computes, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from torch import Tensor, nn

import planner
from planner.cli import cli
from planner.cli.options import moved
from planner.graphs import Action, simulate
from planner.graphs.hardware.devices import device
from planner.graphs.hardware.host_tier import HostTier, file_rates, tier_of
from planner.graphs.hardware.tiers import Tier, TierKind
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.host_option import host_tier
from planner.request import request_of
from planner.solvers import Limits
from tests.forgery import edit

ROWS, LENGTH = 4, 64
LIMITS = Limits(seconds=30.0, gap=0.02)


def language_model() -> nn.Module:
    """GPT-2 with dropout, whose random numbers come back with a recomputation."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_embd=32, n_head=2, vocab_size=97, n_positions=LENGTH, use_cache=False,
        bos_token_id=0, eos_token_id=0, loss_type="ForCausalLMLoss",
    )  # fmt: skip
    made: nn.Module = transformers.GPT2LMHeadModel(config).train()
    return made


def batch(rows: int = ROWS) -> dict[str, Tensor]:
    ids = torch.randint(0, 97, (rows, LENGTH), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids}


SAID: dict[str, Any] = {"inputs": batch(), "optimizer": None, "limits": LIMITS, "progress": "off"}


def gradients(model: nn.Module, rows: int = ROWS) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(2)
    loss = model(**batch(rows)).loss
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.fixture(scope="module")
def budget() -> int:
    """What no recomputation reaches for nothing."""
    return int(0.65 * planner.fit(language_model(), "1GB", **SAID).plain_peak_bytes)


@pytest.fixture(scope="module")
def plan(budget: int) -> planner.Plan:
    return planner.fit(language_model(), budget, offload={"bytes_per_second": 4e9}, **SAID)


def test_it_takes_less_time_than_recomputation_alone(budget: int, plan: planner.Plan) -> None:
    alone = planner.fit(language_model(), budget, **SAID)
    assert plan.schedule.moves
    assert plan.seconds < alone.seconds
    assert plan.bound_seconds <= plan.seconds
    assert plan.peak_bytes <= budget
    assert plan.fits


def test_training_is_the_same_in_every_bit_and_within_the_budget(
    budget: int, plan: planner.Plan
) -> None:
    model = language_model()
    planned = plan.apply(model)
    loss, made = gradients(language_model())
    other, found = gradients(planned)
    assert torch.equal(loss, other)
    assert all(map(torch.equal, made, found))
    planned.zero_grad(set_to_none=True)
    held = sum(plan.graph.values[v].size_bytes for v in plan.graph.resident)

    call = batch()

    def step() -> None:
        output = planned(**call)
        output.loss.backward()

    assert measure_peak(step).peak_bytes + held <= budget


@pytest.mark.slow
def test_verify_runs_it(plan: planner.Plan) -> None:
    found = planner.verify(language_model(), plan, batch())
    assert found.fits


def test_smaller_calls_are_served(plan: planner.Plan) -> None:
    planned = plan.apply(language_model())
    for rows in (1, 3, 2, ROWS):
        loss, made = gradients(language_model(), rows)
        other, found = gradients(planned, rows)
        assert torch.equal(loss, other)
        assert all(map(torch.equal, made, found))


def test_a_file_keeps_what_moves_and_where(plan: planner.Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    again = planner.load(tmp_path / "plan.json")
    assert isinstance(again, planner.Plan)
    assert again == plan
    assert again.host == plan.host
    assert '"action offload":1' in (tmp_path / "plan.json").read_text()


@pytest.mark.parametrize("rate", [-1.0, 1e6, "quick"])
def test_a_file_whose_host_is_another_is_refused(
    plan: planner.Plan, tmp_path: Path, rate: Any
) -> None:
    plan.save(tmp_path / "plan.json")
    edit(tmp_path / "plan.json", lambda body: body["host"].update(to_host=rate))
    with pytest.raises(planner.InvalidPlan, match=r"to_host|states a step of"):
        planner.load(tmp_path / "plan.json")


def test_the_text_says_what_moves(plan: planner.Plan) -> None:
    text = str(plan)
    assert "Moved to the host: " in text
    assert "its link is busy" in text
    assert "at 4.00 GB/s there and 4.00 GB/s back" in text
    assert "recomputing alone would take +" in text.replace("\n    ", " ")
    assert "<svg" in planner.render_timeline_svg(plan)
    moved = sum(step.action is Action.OFFLOAD for step in plan.schedule.steps)
    assert f"Moved to the host: {moved} values" in text


def test_a_step_that_fits_moves_nothing_and_says_so() -> None:
    plan = planner.fit(language_model(), "1GB", offload=True, **SAID)
    assert not plan.schedule.moves
    assert "need not: the step fits as it is" in " ".join(str(plan).split())


def test_a_link_too_slow_to_help_is_left_alone(budget: int) -> None:
    plan = planner.fit(language_model(), budget, offload={"bytes_per_second": 1e3}, **SAID)
    assert not plan.schedule.moves
    assert "and do not: it would be no quicker" in " ".join(str(plan).split())


@pytest.mark.slow
def test_planned_on_meta_for_a_card_through_its_allocator() -> None:
    with torch.device("meta"):
        model = language_model()
    inputs = {k: v.to("meta") for k, v in batch(2048).items()}
    said = {**SAID, "inputs": inputs}
    free = planner.fit(model, "20GB", device="RTX 4090", **said)
    budget = int(0.7 * (free.plain_peak_bytes - 2**30)) + 2**30
    plan = planner.fit(model, budget, device="RTX 4090", offload=True, **said)
    assert plan.host == tier_of(device("RTX 4090"))
    assert plan.host.limit_bytes is None
    assert plan.needs is not None
    assert plan.fits
    assert plan.needs.needed_bytes <= budget
    assert "pinned memory of the host" in " ".join(str(plan).split()) or not plan.schedule.moves


@pytest.mark.parametrize(
    "more",
    [
        {"loss_chunks": 4, "logits": "when_read"},
        {"accumulate": True},
        {"accumulate": True, "loss_chunks": 4, "logits": "when_read"},
    ],
)
@pytest.mark.slow
def test_a_loss_in_chunks_and_kept_gradients_go_with_it(more: dict[str, Any]) -> None:
    said = {**SAID, **more, "limits": Limits(3.0)}
    kept = planner.fit(language_model(), "1GB", **said)
    budget = int(0.75 * kept.plain_peak_bytes)
    plan = planner.fit(language_model(), budget, offload={"bytes_per_second": 4e9}, **said)
    assert plan.schedule.moves
    assert plan.rewrite == kept.rewrite
    one, other = plan.apply(language_model()), kept.apply(language_model())
    for model in (one, other):
        model.zero_grad(set_to_none=True)
    for rows in (ROWS, 2, ROWS):
        for model in (one, other):
            if "accumulate" not in more:
                model.zero_grad(set_to_none=True)
            torch.manual_seed(2)
            model(**batch(rows)).loss.backward()
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        assert all(torch.equal(p.grad, q.grad) for p, q in pairs)  # type: ignore[arg-type]
    if "accumulate" not in more:
        one.zero_grad(set_to_none=True)
    held = sum(plan.graph.values[v].size_bytes for v in plan.graph.resident)
    call = batch()

    def step() -> None:
        output = one(**call)
        output.loss.backward()

    assert measure_peak(step).peak_bytes + held <= budget


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"engine": "inductor"}, "offload= is not for engine='inductor'"),
        ({"offload": "much"}, "offload is 'much'; expected True"),
        ({"offload": {"size": 3}}, r"a mapping with \['size'\]"),
        *[
            ({"offload": {"bytes_per_second": rate}}, "expected a number of more than 0")
            for rate in (-1, True, "2GB", (1e9, False), (1e9, 1e9, 1e9), [], float("nan"))
        ],
        ({"offload": {"bytes": True}}, "not a whole number of bytes"),
        ({"offload": {"bytes": "800TB"}}, "no more than .* can be had: free some"),
        ({"offload": {"states": 1}}, "expected True or False"),
        ({"offload": {"directory": 7}}, "the directory is 7, expected a path"),
        ({"offload": {"directory": ""}}, "the directory is '', expected a path"),
        ({"offload": {"tier": "a floppy"}}, "no tier 'a floppy'; known: Samsung 990 PRO"),
        ({"offload": {"tier": "Micron CZ120 256GB"}}, "files, which a disk holds"),
        ({"offload": Path("/nowhere/at/all")}, "is no directory"),
        ({"offload": ["64GB"]}, r"offload is \['64GB'\]; expected True"),
        ({"offload": "/nowhere/at/all"}, "is no directory"),
        ({"offload": 7}, "offload is 7"),
        ({"offload": "/tmp", "device": "A100-80GB"}, "a directory is for steps on a CPU"),
        ({"world_size": 2, "offload": "/tmp"}, "for several devices it says whether states"),
        ({"world_size": 2, "offload": {"states": True}}, r"into how many bytes of a node's memory"),
    ],
)
def test_what_it_does_not_go_with_is_refused_by_name(said: dict[str, Any], match: str) -> None:
    with pytest.raises((planner.BadRequest, planner.BadCluster), match=match):
        planner.fit(language_model(), "1GB", **{"offload": True, **SAID, **said})


def test_a_tier_of_ones_own_is_checked() -> None:
    for wrong in ((True, 1e9), (1e9, 0.0), (1e9, 1e9, True), (1e9, 1e9, 0)):
        with pytest.raises(ValueError, match="expected"):
            HostTier(*wrong)
    with pytest.raises(ValueError, match="'mine' has True"):
        Tier("mine", TierKind.DISK, True, 3e9, 10**12, "none")


def test_a_directory_that_cannot_be_written_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(planner.BadRequest, match="no files can be made in"):
        host_tier(tmp_path, device("cpu"))


def test_the_command_line_says_all_of_it(tmp_path: Path) -> None:
    assert moved("bytes=2GB, rate=1GB/s,states") == {
        "offload": {"bytes": "2GB", "bytes_per_second": 1e9, "states": True}
    }
    assert moved("tier=Micron 9550 MAX 6.4TB,directory=/nvme")["offload"]["directory"] == "/nvme"
    assert moved("states") == {"offload": {"states": True}}
    odd = tmp_path / "a,b=c"
    odd.mkdir()
    assert moved(str(odd)) == {"offload": str(odd)}
    for wrong in ("rate=fast", "size=3", "bytes=", "states=maybe", "64GB,states"):
        with pytest.raises(planner.BadRequest, match="--offload says"):
            moved(wrong)


def test_where_values_may_go(tmp_path: Path) -> None:
    card = device("A100-80GB")
    assert host_tier(False, card) is None
    assert host_tier(True, card) == HostTier(24.8e9, 24.8e9, 125_000_000_000)
    assert host_tier({"bytes": "1GB", "bytes_per_second": 1e9}, card) == HostTier(1e9, 1e9, 10**9)
    here = host_tier(str(tmp_path), device("cpu"))
    assert here is not None
    assert here.directory == str(tmp_path)
    with pytest.raises(planner.BadRequest, match="link to the host is not known"):
        host_tier(True, replace(card, host_link=0.0))
    request = request_of(language_model(), {**SAID, "offload": str(tmp_path)})
    assert request.host == replace(here, limit_bytes=request.host and request.host.limit_bytes)


def test_files_are_timed_once(tmp_path: Path) -> None:
    rates = file_rates(str(tmp_path))
    assert min(rates) > 0
    assert file_rates(str(tmp_path)) is rates
    assert not list(tmp_path.iterdir())


def test_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(
        "from tests.planner.test_offload_option import batch, language_model\n"
        "def model():\n    return language_model(), batch()\n"
    )
    common = ["fit", f"{tmp_path / 'made.py'}:model", "--budget", "1GB"]
    common += ["--optimizer", "none", "--time-limit", "4", "--offload"]
    found = CliRunner().invoke(cli, [*common, str(tmp_path)])
    assert found.exit_code == 0, found.output
    assert "need not: the step fits as it is" in " ".join(found.output.split())
    refused = CliRunner().invoke(cli, [*common, "auto", "--world-size", "2", "--no-offload"])
    assert refused.exit_code
    assert "--offload and --no-offload were both said" in refused.output


def test_a_plan_is_simulated_with_its_own_rates(plan: planner.Plan) -> None:
    assert plan.host is not None
    trace = simulate(plan.graph, plan.schedule, link_bytes_per_second=plan.host.rates)
    assert trace.seconds == plan.seconds
