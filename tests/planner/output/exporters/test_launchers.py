"""Exports: the files parse, their readers accept them, and what they cannot say is in them."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from planner import BadSpec
from planner.cli import cli
from planner.graphs import Graph, Op, Phase, Schedule, Value, plain_schedule, schedule_from_order
from planner.graphs.hardware.cluster import cluster
from planner.output.exporters import EXPORTERS, export
from planner.plan.configuration import Configuration, UnitPlan
from planner.plan.sharded_step_plan import UnitKind
from planner.plan.strategy import Strategy
from planner.plans import Plan, ShardedPlan
from planner.sharding.wrapped.unit_captures import capture_units
from planner.solvers import Status
from tests.planner.sharding.blocks import batch, decoder
from tests.planner.sharding.ranks import CASES, plan_of
from tests.sharded_steps import Sizes, step

ROOT = Path(__file__).parents[4]
LAUNCHERS = {name: e.file_name for name, e in EXPORTERS.items() if e.file_name}
FORMATS = sorted(EXPORTERS)
KIND = UnitKind(
    Graph(
        (
            Op("f", "f", (), (0,), 1.0),
            Op("g", "g", (), (1,), 1.0),
            Op("b", "b", (0, 1), (2,), 2.0, phase=Phase.BACKWARD, recomputable=False),
        ),
        (Value("x", 1), Value("w", 1), Value("y", 1)),
        frozenset({2}),
        "Block",
    ),
    {
        "model": "Model.Block",
        "parameters": [["w", [100, 30], "float32", True], ["b", [30], "float32", True]],
    },
)
FSDP = Configuration(Strategy.FSDP, 8, 1, 2, 4)
CONFIGURATIONS = {
    "ddp": Configuration(Strategy.DDP, 1, 8, 2, 4),
    "ddp16": Configuration(Strategy.DDP, 1, 8, 2, 1, "bfloat16"),
    "zero1": Configuration(Strategy.ZERO1, 8, 1, 2, 4),
    "fsdp": FSDP,
    "hsdp": Configuration(Strategy.FSDP, 4, 2, 2, 1, "bfloat16"),
    "offload": Configuration(Strategy.FSDP, 8, 1, 1, 1, "bfloat16", offload=True),
}


def make(
    configuration: Configuration = FSDP,
    *,
    kept: tuple[bool, ...] = (False, False, False),
    recompute: bool = False,
    optimizer: str | None = "adamw",
    device: str = "A100-40GB",
) -> ShardedPlan:
    """Make a plan by hand; ``recompute`` runs the first op of the first unit twice."""
    graph = step(configuration, Sizes()).graph
    plain = plain_schedule(KIND.graph)
    again = schedule_from_order(KIND.graph, [0, 1, 0, 2])
    first: Schedule = again if recompute else plain
    units = tuple(
        UnitPlan(f"h.{i}", 0, first if i == 0 else plain, keep) for i, keep in enumerate(kept)
    )
    order = list(range(len(graph.ops)))
    whole = Plan(
        graph=graph,
        schedule=schedule_from_order(graph, order),
        budget_bytes=10_000,
        status=Status.OPTIMAL,
        bound_seconds=0.0,
        method="auto",
        signature={"model": "Hand"},
        device=device,
        optimizer=optimizer,
    )
    return ShardedPlan(whole, configuration, cluster(device, 8), units, (KIND,))


def written(plan: ShardedPlan, tmp_path: Path, name: str) -> tuple[str, tuple[str, ...]]:
    notes = export(plan, tmp_path / "out", name, plan_path=tmp_path / "plan.json")
    return (tmp_path / "out").read_text(), notes


def deepspeed(plan: ShardedPlan, tmp_path: Path) -> dict[str, Any]:
    data = json.loads(written(plan, tmp_path, "deepspeed")[0])
    assert isinstance(data, dict)
    return data


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_every_configuration_in_every_format(name: str, case: str, tmp_path: Path) -> None:
    text, _ = written(make(CONFIGURATIONS[case], recompute=True), tmp_path, name)
    assert text.endswith("\n")
    assert all(ord(letter) < 128 for letter in text)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("case", "kept", "stage"),
    [
        ("ddp", (False,) * 3, 0),
        ("zero1", (False,) * 3, 1),
        ("fsdp", (True,) * 3, 2),
        ("fsdp", (False,) * 3, 3),
        ("fsdp", (False, True, True), 3),
        ("hsdp", (True,) * 3, 3),
    ],
)
def test_stages(case: str, kept: tuple[bool, ...], stage: int, tmp_path: Path) -> None:
    data = deepspeed(make(CONFIGURATIONS[case], kept=kept), tmp_path)
    assert data["zero_optimization"]["stage"] == stage
    assert (
        data["train_batch_size"]
        == 8 * data["train_micro_batch_size_per_gpu"] * (data["gradient_accumulation_steps"])
    )


def test_deepspeed_moves_a_unit_at_a_time(tmp_path: Path) -> None:
    zero = deepspeed(make(), tmp_path)["zero_optimization"]
    assert zero["reduce_bucket_size"] == zero["stage3_prefetch_bucket_size"] == 3030
    assert zero["stage3_param_persistence_threshold"] == 31
    assert "offload_optimizer" not in zero
    hsdp = deepspeed(make(CONFIGURATIONS["hsdp"]), tmp_path)
    assert hsdp["zero_optimization"]["zero_hpz_partition_size"] == 4
    assert hsdp["bf16"] == {"enabled": True}
    offloaded = deepspeed(make(CONFIGURATIONS["offload"]), tmp_path)["zero_optimization"]
    assert offloaded["offload_optimizer"] == offloaded["offload_param"]
    assert offloaded["offload_param"]["device"] == "cpu"


@pytest.mark.parametrize("name", ["deepspeed", "accelerate"])
def test_states_of_some_units_on_the_host_cannot_be_said(name: str, tmp_path: Path) -> None:
    some = replace(CONFIGURATIONS["offload"], staying=("", "h.1"))
    _, notes = written(make(some), tmp_path, name)
    assert any("states of 2 of 3 units are on the host in the plan" in note for note in notes)
    _, fewer = written(make(CONFIGURATIONS["offload"]), tmp_path, name)
    assert not any("are on the host in the plan" in note for note in fewer)


@pytest.mark.parametrize("name", ["deepspeed", "accelerate"])
def test_what_cannot_be_said_is_said_in_the_file(name: str, tmp_path: Path) -> None:
    text, notes = written(make(kept=(False, True, True), recompute=True), tmp_path, name)
    assert any("one by one in 1 of 3 units" in note for note in notes)
    assert any("keeps the gathered weight of 2 of 3 units" in note for note in notes)
    for note in notes:
        assert note in (
            json.loads(text)["_remat_planner"]["notes"] if name == "deepspeed" else text
        )
    _, fewer = written(make(), tmp_path, name)
    assert not any("one by one" in note or "keeps the gathered" in note for note in fewer)


def test_deepspeed_accepts_it(tmp_path: Path) -> None:
    config = pytest.importorskip("deepspeed.runtime.config", reason="deepspeed is not installed")
    for case, made in CONFIGURATIONS.items():
        read = deepspeed(make(made, recompute=True), tmp_path)
        read |= {"train_batch_size": made.micro_batch * made.accumulation}  # here: one process
        found = config.DeepSpeedConfig(read)
        assert found.zero_optimization_stage == {"ddp": 0, "zero1": 1}.get(
            case.removesuffix("16"), 3
        )
        assert found.train_micro_batch_size_per_gpu == made.micro_batch


def test_accelerate_accepts_it(tmp_path: Path) -> None:
    arguments = pytest.importorskip(
        "accelerate.commands.config.config_args", reason="accelerate is not installed"
    )
    for case, made in CONFIGURATIONS.items():
        written(make(made, recompute=True), tmp_path, "accelerate")
        (tmp_path / "out").rename(tmp_path / "out.yaml")
        found = arguments.load_config_from_file(str(tmp_path / "out.yaml"))
        assert found.num_processes == 8
        assert found.mixed_precision == ("bf16" if made.precision == "bfloat16" else "no")
        kinds = {"ddp": "MULTI_GPU", "ddp16": "MULTI_GPU", "zero1": "DEEPSPEED"}
        assert found.distributed_type.value == kinds.get(case, "FSDP")
        if made.strategy is Strategy.FSDP:
            assert found.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == "Block"
            assert found.fsdp_config["fsdp_version"] == 2
            assert found.fsdp_config["fsdp_activation_checkpointing"] is True


def test_accelerate_names_no_class_of_single_layers(tmp_path: Path) -> None:
    """An embedding and a head are units of the plan; to name Linear would wrap every linear."""
    found = capture_units(decoder(2, tied=False, vocabulary=400), batch(), device="cpu")
    text, notes = written(plan_of(found, CASES["mixed"][0], (False,) * 4), tmp_path, "accelerate")
    assert 'fsdp_transformer_layer_cls_to_wrap: "Block"' in text
    assert any("embed, head as units of their own" in note for note in notes)


class Leaf(nn.Module):
    """A block without modules in it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@pytest.mark.parametrize("block", [Leaf, lambda: nn.Linear(8, 8)])
def test_accelerate_names_blocks_that_are_leaves(
    block: Callable[[], nn.Module], tmp_path: Path
) -> None:
    """By their class, where that is theirs alone; else it says what more is wrapped."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(block(), block()), nn.Linear(8, 1))
    found = capture_units(
        model, torch.ones(2, 8), loss=torch.mean, device="cpu", units=("1.0", "1.1")
    )
    plan = plan_of(found, CASES["mixed"][0], (False, False))
    text, notes = written(plan, tmp_path, "accelerate")
    name = type(block()).__name__
    assert f'fsdp_transformer_layer_cls_to_wrap: "{name}"' in text
    assert any("wraps every Linear of the model" in n for n in notes) == (name == "Linear")


def test_accelerate_fields(tmp_path: Path) -> None:
    text, _ = written(make(kept=(True,) * 3), tmp_path, "accelerate")
    assert "  fsdp_reshard_after_forward: false\n" in text
    assert "  fsdp_activation_checkpointing: false\n" in text
    assert 'mixed_precision: "no"\n' in text
    text, _ = written(make(CONFIGURATIONS["hsdp"]), tmp_path, "accelerate")
    assert "  parallelism_config_dp_replicate_size: 2\n" in text
    assert "  parallelism_config_dp_shard_size: 4\n" in text
    assert "  fsdp_reshard_after_forward: true\n" in text
    text, _ = written(make(CONFIGURATIONS["ddp"], device="cpu"), tmp_path, "accelerate")
    assert 'distributed_type: "MULTI_CPU"\n' in text
    text, notes = written(make(device="cpu"), tmp_path, "accelerate")
    assert any(note.startswith("accelerate shards on accelerators only") for note in notes)


@pytest.mark.parametrize(
    ("case", "optimizer", "expected"),
    [
        ("fsdp", "adamw", "plan.make_optimizer(model, torch.optim.AdamW, lr=0.0001)\n"),
        ("fsdp", "adamw_fused", "(model, torch.optim.AdamW, lr=0.0001, fused=True)\n"),
        ("zero1", "momentum", "(model, torch.optim.SGD, lr=0.0001, momentum=0.9)\n"),
        ("fsdp", None, "(model, torch.optim.AdamW, lr=0.0001)\n"),
        ("fsdp", "Shampoo", "(model, lr=1e-4)  # the plan counts Shampoo\n"),
        ("fsdp", "adamw", 'MESH, NAMES = (8,), ("shard",)'),
        ("hsdp", "adamw", 'MESH, NAMES = (2, 4), ("replicate", "shard")'),
        ("ddp", "adamw", 'MESH, NAMES = (8,), ("replicate",)'),
        ("ddp", "adamw", "model.require_backward_grad_sync = micro == ACCUMULATION - 1"),
        ("ddp16", "adamw", "            with torch.autocast(DEVICE, torch.bfloat16):\n"),
        ("ddp", "adamw", "    return output if isinstance(output, torch.Tensor) else output.loss"),
        ("ddp", "adamw", ".apply(model.train().to(DEVICE), mesh=mesh)"),
        ("offload", "adamw", ".apply(model.train(), mesh=mesh)"),
        ("fsdp", "adamw", "MICRO_BATCH, ACCUMULATION = 2, 4"),
        ("fsdp", "adamw", "torchrun --nproc-per-node 8 SCRIPT MODEL"),
    ],
)
def test_the_script_says(case: str, optimizer: str | None, expected: str, tmp_path: Path) -> None:
    text, notes = written(make(CONFIGURATIONS[case], optimizer=optimizer), tmp_path, "fsdp2")
    assert expected in text
    ast.parse(text)
    assert notes == ()


def test_a_loss_of_the_users_is_asked_for(tmp_path: Path) -> None:
    plan = make()
    plan = replace(plan, step=replace(plan.step, signature={"model": "Hand", "loss": True}))
    text, notes = written(plan, tmp_path, "fsdp2")
    assert 'raise NotImplementedError("call here the loss' in text
    assert notes == ("the loss that planner.fit was given is not in the plan: call it in loss_of",)


def _started(plan: ShardedPlan, folder: Path) -> list[float]:
    """Export the script, start it on two ranks and return the losses it prints."""
    plan.export(folder / "train.py", "fsdp2")
    model = "from tests.planner.sharding.blocks import batch, decoder\n"
    model += "def build():\n    return decoder(2), batch()\n"
    (folder / "model.py").write_text(model)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    spec = f"{folder / 'model.py'}:build"
    ended = subprocess.run(
        [*launch, str(folder / "train.py"), spec, "3"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [float(loss) for loss in re.findall(r"^step \d: loss (\S+)$", ended.stdout, re.M)]


def _plain_losses() -> list[float]:
    """Train in one process as the script does; all of its ranks have the same inputs."""
    model = decoder(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(3):
        loss = model(batch())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != "mixed"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mixed", *SLOW])
def test_the_script_trains(case: str, tmp_path: Path) -> None:
    made, kept, _ = CASES[case]
    made = replace(made, accumulation=2)
    example = decoder(2)
    captures = capture_units(example, batch(), device="cpu", precision=made.computes_in)
    tolerance = 1e-2 if made.precision == "bfloat16" else 1e-5
    losses = _started(plan_of(captures, made, kept), tmp_path)
    assert losses == pytest.approx(_plain_losses(), rel=tolerance)


def test_the_script_finds_its_plan(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    export(make(), tmp_path / "runs" / "a.py", "fsdp2", plan_path=tmp_path / "plan.json")
    assert re.search(r'parent / "\.\./plan\.json"', (tmp_path / "runs" / "a.py").read_text())
    make().export(tmp_path / "b.py", "fsdp2")
    assert 'parent / "b.plan.json"' in (tmp_path / "b.py").read_text()
    assert (tmp_path / "b.plan.json").exists()


def test_unknown_formats_list_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(
        BadSpec, match=f"unknown format 'toml'; valid formats: {', '.join(FORMATS)}"
    ):
        make().export(tmp_path / "plan.toml")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)


def test_the_command_writes_and_warns(tmp_path: Path) -> None:
    make(recompute=True).save(tmp_path / "plan.json")
    for name, file in LAUNCHERS.items():
        result = run("export", tmp_path / "plan.json", "--format", name)
        assert result.exit_code == 0
        assert result.stdout.startswith(f"wrote {tmp_path / file}\n")
        assert ("one by one in 1 of 3 units" in result.stdout) == (name != "fsdp2")
        assert (tmp_path / file).exists()
    again = run("export", tmp_path / "plan.json", "--format", "accelerate")
    assert again.exit_code == 2
    assert "exists; say where to write with --output" in again.stderr
    answer = run("export", tmp_path / "plan.json", "--format", "txt", "--json")
    assert json.loads(answer.stdout)["written"] == str(tmp_path / "plan.txt")
    other = tmp_path / "other.yaml"
    assert (
        run("export", tmp_path / "plan.json", "--format", "accelerate", "--output", other).exit_code
        == 0
    )
    assert other.read_text() == (tmp_path / "accelerate.yaml").read_text()


def test_the_command_refuses(plan: Plan, tmp_path: Path) -> None:
    make().save(tmp_path / "plan.json")
    plan.save(tmp_path / "one.json")
    wrong = run("export", tmp_path / "plan.json", "--format", "toml")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith(
        "Error: unknown format 'toml'; valid formats: accelerate, deepsp"
    )
    one = run("export", tmp_path / "one.json", "--format", "fsdp2")
    assert one.exit_code == 2
    assert "is a plan for one device" in one.stderr
    page = run("export", tmp_path / "one.json", "--format", "html")
    assert page.stdout == f"wrote {tmp_path / 'one.html'}\n"


def test_a_unit_of_bfloat16_counts_as_half(tmp_path: Path) -> None:
    half = {"model": "Block", "parameters": [["w", [10, 3], "bfloat16", True]]}
    plan = replace(make(), kinds=(replace(KIND, signature=half),))
    assert deepspeed(plan, tmp_path)["bf16"] == {"enabled": True}
