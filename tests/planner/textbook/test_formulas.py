"""Published numbers, and formulas against the sums they abbreviate."""

from __future__ import annotations

import pytest

from planner.textbook.formulas import (
    OPTIMIZER_BYTES,
    STAGES,
    Recompute,
    Stack,
    States,
    cache_bytes_per_token,
    layer_activations,
    logits_bytes,
    model_states,
    moved_elements,
    stage_limit,
    weight_bytes,
)

P = 7_500_000_000


def test_figure_1_of_the_zero_paper() -> None:
    sizes = [model_states(P, stage=stage).on(64) for stage in STAGES]
    assert [round(size / 1e9, 1) for size in sizes] == [120.0, 31.4, 16.6, 1.9]


@pytest.mark.parametrize(
    ("billions", "ranks", "gigabytes"),
    [  # table 1 of the paper: one device's share at stages 1, 2 and 3
        (7.5, 4, (52.5, 41.3, 30)),
        (7.5, 16, (35.6, 21.6, 7.5)),
        (7.5, 256, (30.4, 15.4, 0.47)),
        (7.5, 1024, (30.1, 15.1, 0.12)),
        (128, 64, (536, 284, 32)),
        (1000, 1024, (4011, 2013, 15.6)),
    ],
)
def test_table_1_of_the_zero_paper(
    billions: float, ranks: int, gigabytes: tuple[float, ...]
) -> None:
    found = [model_states(int(billions * 1e9), stage=s).on(ranks) / 1e9 for s in (1, 2, 3)]
    assert found == pytest.approx(gigabytes, rel=1e-3, abs=0.06)


def test_eight_times_the_model_in_the_same_memory() -> None:
    assert stage_limit() == 8
    assert stage_limit("float32") == 4
    many = 1_000_000
    assert model_states(8 * P, stage=2).on(many) / model_states(P, stage=0).on(many) == (
        pytest.approx(1, rel=1e-4)
    )


@pytest.mark.parametrize(
    ("stack", "stage", "ranks", "bytes_each"),
    [
        (Stack.TORCH, 0, 64, 16),
        (Stack.TORCH, 1, 4, 8 + 8 / 4),
        (Stack.TORCH, 2, 4, 2 + 16 / 4),
        (Stack.TORCH, 3, 4, 16 / 4),
        (Stack.DEEPSPEED, 2, 4, 2 + 18 / 4),
        (Stack.DEEPSPEED, 3, 4, 18 / 4),
    ],
)
def test_what_frameworks_hold(stack: Stack, stage: int, ranks: int, bytes_each: float) -> None:
    assert model_states(1000, stage=stage, stack=stack).on(ranks) == 1000 * bytes_each


@pytest.mark.parametrize("stack", [Stack.PAPER, Stack.TORCH])
@pytest.mark.parametrize("stage", STAGES)
def test_float32_has_no_copies(stack: Stack, stage: int) -> None:
    whole = model_states(1000, stage=stage, stack=stack, precision="float32")
    gathered = 4000 if stack is Stack.TORCH and stage == 2 else 0
    assert whole.fixed + whole.sharded == 16_000 + gathered


@pytest.mark.parametrize(
    ("stage", "held"), [(0, 2000 + 160), (1, 2000 + 40 + 30), (2, 2000 + 20 + 35), (3, 500 + 40)]
)
def test_frozen_parameters_are_their_compute_copy(stage: int, held: int) -> None:
    assert model_states(10, 1000, stage=stage).on(4) == held


def test_one_rank_holds_it_all_at_any_stage() -> None:
    for optimizer, state in OPTIMIZER_BYTES.items():
        for stage in STAGES:
            assert model_states(10, stage=stage, optimizer=optimizer).on(1) == 10 * (8 + state)


def test_least_ranks_is_the_least() -> None:
    for states in (States(0, 1000), States(300, 1000), States(100, 0), States(0, 0), States(7, 1)):
        for free in (0, 1, 99, 100, 101, 333, 400, 1000, 1300, 5000):
            least = states.least_ranks(free)
            if least is None:
                assert states.on(10**9) > free
            else:
                assert states.on(least) <= free
                assert least == 1 or states.on(least - 1) > free


def test_communication() -> None:
    assert moved_elements(100, stage=0, ranks=1) == 0
    assert moved_elements(100, 900, stage=2, ranks=2) == 100  # frozen weights stay where they are
    assert moved_elements(100, 900, stage=3, ranks=2) == (3 * 100 + 2 * 900) // 2


def test_activations_of_gpt_3() -> None:
    """Korthikanti et al., section 4: 5as/h is 80 for GPT-3, against 34."""
    gpt3 = {"seq": 2048, "batch": 1, "hidden": 12288, "heads": 96}
    sbh = 2048 * 12288
    assert layer_activations(Recompute.NONE, **gpt3) == (34 + 80) * sbh
    assert layer_activations(Recompute.SELECTIVE, **gpt3) == 34 * sbh
    assert layer_activations(Recompute.FULL, **gpt3) == 2 * sbh
    doubled = layer_activations(Recompute.SELECTIVE, **gpt3, precision="float32")
    assert doubled == (2 * 32 + 2) * sbh
    whole = layer_activations(Recompute.NONE, **gpt3, precision="float32")
    assert whole - doubled == 9 * 96 * 2048**2


def test_logits_cache_and_weights() -> None:
    assert logits_bytes(10, 2, 100) == 6 * 2000
    assert logits_bytes(10, 2, 100, "float32") == 8 * 2000
    assert cache_bytes_per_token(80, 8, 128) == 327_680  # Llama 3 70B, grouped queries
    assert [weight_bytes(1001, bits) for bits in (16, 8, 4)] == [2002, 1001, 501]
