"""The commands, each a few lines around the function of ``planner`` that does the work.

Knows what each command is called, takes and ends in. Knows nothing of how answers are written.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from planner.analysis.curve_picture import render_curve_svg
from planner.analysis.max_batch import FORWARD, rebatched
from planner.analysis.max_batch import max_batch as run_max_batch
from planner.analysis.pareto import POINTS
from planner.analysis.pareto import pareto as run_pareto
from planner.cli.answers import DEFECT, answering, dumped, finish, show_plan, tell
from planner.cli.cluster_options import CLUSTER, cluster_arguments, cluster_options
from planner.cli.options import (
    BUDGET,
    DYNAMIC,
    JSON,
    LOGITS,
    LOSS_CHUNKS,
    MLP_CHUNKS,
    MODEL,
    OFFLOAD,
    PLAN,
    arguments,
    chunked,
    file_to_write,
    moved,
    shared,
)
from planner.cli.options import dynamic as sizes_said
from planner.comparison import compare as run_compare
from planner.errors import BadSpec
from planner.fit import fit as run_fit
from planner.graphs.files import write_atomically
from planner.model_argument import Example, load_example, load_function
from planner.output.exporters import EXPORTERS
from planner.output.exporters import export as write_plan
from planner.output.layout import wrap
from planner.plans import Plan, load
from planner.progress import on_terminal
from planner.request_defaults import example_inputs
from planner.textbook.estimate import estimate as run_estimate


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="remat-planner")
def cli() -> None:
    """Plan a training step so that it fits the memory there is, at the least extra time.

    MODEL is path.py:function or package.module:function. The function returns (model, inputs), or a
    model that carries its own example inputs.
    """


@cli.command()
@MODEL
@BUDGET
@shared
@cluster_options
@click.option("--method", default="auto", show_default=True, help="The solver to use.")
@DYNAMIC
@LOSS_CHUNKS
@MLP_CHUNKS
@LOGITS
@OFFLOAD
@file_to_write("--export", "Write the plan here, as JSON.")
@file_to_write("--report", "Write a report with a picture here, as HTML.")
def fit(
    model: str,
    inputs: str | None,
    method: str,
    export: Path | None,
    report: Path | None,
    *,
    dynamic: tuple[str, ...],
    loss_chunks: str,
    mlp_chunks: int,
    logits: str,
    offload: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Find a plan for MODEL within a budget."""
    with answering(as_json=as_json), on_terminal() as progress:
        cluster = cluster_arguments(**{name: options.pop(name) for name in CLUSTER})
        progress(f"loading {model}")
        example = load_example(model, inputs)
        plan = run_fit(
            example.model,
            inputs=example.inputs,
            method=method,
            dynamic=sizes_said(dynamic),
            progress=progress,
            **chunked(loss_chunks, logits, mlp_chunks),
            **cluster | moved(offload, cluster),
            **arguments(**options),
        )
        if export is not None:
            plan.save(export)
        if report is not None:
            plan.report(report)
    show_plan(plan, as_json=as_json)


@cli.command()
@PLAN
@JSON
@click.option(
    "--export", type=click.Path(path_type=Path), help="Write it as .html, .svg, .txt or .json."
)
def show(plan_path: Path, *, as_json: bool, export: Path | None) -> None:
    """Print what a plan file says."""
    with answering(as_json=as_json):
        plan = load(plan_path)
        if export is not None:
            write_plan(plan, export, plan_path=plan_path)
    show_plan(plan, as_json=as_json)


@cli.command()
@PLAN
@click.option(
    "--format",
    "name",
    required=True,
    help="fsdp2 (a script), deepspeed, accelerate; or html, svg, txt, json.",
)
@file_to_write("--output", "Write it here; by default beside PLAN.")
@JSON
def export(plan_path: Path, name: str, output: Path | None, *, as_json: bool) -> None:
    """Write PLAN for another program, and say what that one cannot do."""
    with answering(as_json=as_json):
        plan = load(plan_path)
        usual = EXPORTERS[name].file_name if name in EXPORTERS else None
        target = output or plan_path.with_name(usual or f"{plan_path.stem}.{name}")
        if output is None and target.exists():
            raise BadSpec(f"{target} exists; say where to write with --output")
        notes = write_plan(plan, target, name, plan_path=plan_path)
    answer = {"written": str(target), "notes": list(notes)}
    click.echo(dumped(answer) if as_json else f"wrote {target}{_listed(notes)}")


@cli.command()
@PLAN
@JSON
def explain(plan_path: Path, *, as_json: bool) -> None:
    """Say why PLAN is what it is: every alternative, and why it was rejected."""
    with answering(as_json=as_json):
        plan = load(plan_path)
    if as_json:
        show_plan(plan, as_json=True)
    click.echo(plan.explain())
    finish(fits=plan.fits)


@cli.command()
@MODEL
@BUDGET
@shared
@LOSS_CHUNKS
@MLP_CHUNKS
@LOGITS
@OFFLOAD
@click.option("--method", "methods", multiple=True, help="A solver to run; repeatable.")
def compare(
    model: str,
    inputs: str | None,
    methods: tuple[str, ...],
    *,
    loss_chunks: str,
    mlp_chunks: int,
    logits: str,
    offload: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Plan MODEL by several solvers, all of them by default."""
    with answering(as_json=as_json), on_terminal() as progress:
        progress(f"loading {model}")
        example = load_example(model, inputs)
        result = run_compare(
            example.model,
            inputs=example.inputs,
            methods=methods or None,
            progress=progress,
            **chunked(loss_chunks, logits, mlp_chunks),
            **moved(offload),
            **arguments(**options),
        )
    tell(result, as_json=as_json)
    finish(fits=any(row.fits for row in result.rows))


@cli.command()
@MODEL
@PLAN
@click.option("--inputs", metavar="SPEC", help="path.py:function that returns the inputs.")
@JSON
def verify(model: str, plan_path: Path, inputs: str | None, *, as_json: bool) -> None:
    """Run MODEL plain and planned, and compare; on all ranks, if PLAN is for several of a CPU."""
    from planner.verification.verify import verify as run_verify

    with answering(as_json=as_json), on_terminal() as progress:
        plan = load(plan_path)
        progress(f"loading {model}")
        example = load_example(model, inputs)
        progress("running the plain and the planned step")
        given = example.model if isinstance(plan, Plan) else functools.partial(_made, model, inputs)
        result = run_verify(given, plan, _inputs(example))
    tell(result, as_json=as_json)
    finish(fits=result.fits)


@cli.command()
@click.option("--params", help="How many parameters: 70e9, 70B, 350M.")
@click.option("--config", type=click.Path(path_type=Path), help="A transformers config.json.")
@click.option("--model", metavar="MODEL", help="path.py:function; built on meta.")
@click.option("--trainable", help="How many of them are trained, as for LoRA; all by default.")
@click.option("--layers", type=int)
@click.option("--hidden", type=int)
@click.option("--heads", type=int)
@click.option("--kv-heads", type=int)
@click.option("--head-dim", type=int)
@click.option("--vocab", type=int)
@click.option("--intermediate", type=int, help="Width of the MLP.")
@click.option("--family", help="Whose layers: gpt, llama, bert, vit, t5, mixtral.")
@click.option("--seq", type=int, help="Tokens of a sample.")
@click.option(
    "--decoder-seq", type=int, help="Those of a decoder beside an encoder; --seq by default."
)
@click.option("--batch", type=int, default=1, show_default=True, help="Samples on each device.")
@click.option("--gpus", type=int, default=8, show_default=True, help="Data-parallel devices.")
@click.option(
    "--device", default="80GB", show_default=True, help="A size as printed, or 'A100-80GB'."
)
@click.option("--precision", default="bfloat16", show_default=True, help="Or float16, float32.")
@click.option(
    "--attention", default="fused", show_default=True, help="Or materialized: written out."
)
@click.option("--optimizer", default="adamw", show_default=True, help="Whose state to count.")
@click.option("--stage", type=int, help="One ZeRO stage; all by default.")
@JSON
def estimate(params: str | None, *, as_json: bool, **options: Any) -> None:
    """Say what a model takes by textbook arithmetic, without a graph."""
    with answering(as_json=as_json):
        found = run_estimate(params, **options)
    tell(found, as_json=as_json)


@cli.command()
@MODEL
@shared
@click.option(
    "--points", type=click.IntRange(min=2), default=POINTS, show_default=True, help="How many."
)
@click.option("--heuristics", is_flag=True, help="Set the usual heuristics beside (slower).")
@LOSS_CHUNKS
@MLP_CHUNKS
@LOGITS
@OFFLOAD
@file_to_write("--plot", "Draw the curve here, as SVG, with the usual heuristics.")
def pareto(
    model: str,
    inputs: str | None,
    points: int,
    plot: Path | None,
    *,
    heuristics: bool,
    loss_chunks: str,
    mlp_chunks: int,
    logits: str,
    offload: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Plan MODEL at many budgets: what every byte less costs in time."""
    with answering(as_json=as_json), on_terminal() as progress:
        progress(f"loading {model}")
        example = load_example(model, inputs)
        curve = run_pareto(
            example.model,
            inputs=example.inputs,
            points=points,
            heuristics=heuristics or plot is not None,
            progress=progress,
            **chunked(loss_chunks, logits, mlp_chunks),
            **moved(offload),
            **arguments(**options),
        )
        if plot is not None:
            write_atomically(plot, render_curve_svg(curve))
    tell(curve, as_json=as_json)


@cli.command(name="max-batch")
@MODEL
@BUDGET
@shared
@click.option(
    "--max-overhead",
    default=FORWARD,
    show_default=True,
    help="0.33, '33%', or 'forward': what one more forward pass takes.",
)
@LOSS_CHUNKS
@MLP_CHUNKS
@LOGITS
@OFFLOAD
def max_batch(
    model: str,
    inputs: str | None,
    *,
    loss_chunks: str,
    mlp_chunks: int,
    logits: str,
    offload: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the largest batch of MODEL within a budget.

    --inputs names a function of the batch size. Without it, every tensor of the model's example
    inputs that is as long as the first one is made longer.
    """
    with answering(as_json=as_json), on_terminal() as progress:
        progress(f"loading {model}")
        example = load_example(model)
        given = None if inputs is None else load_function(inputs)
        overhead = options.pop("max_overhead")
        result = run_max_batch(
            example.model,
            inputs=given or rebatched(_inputs(example)),
            max_overhead=overhead,
            progress=progress,
            **chunked(loss_chunks, logits, mlp_chunks),
            **moved(offload),
            **arguments(**options),
        )
    tell(result, as_json=as_json)


def _inputs(example: Example) -> Any:
    return example_inputs(example.model) if example.inputs is None else example.inputs


def _made(spec: str, inputs_spec: str | None) -> tuple[Any, Any]:
    """Return a model and its inputs, in whatever process this is called."""
    example = load_example(spec, inputs_spec)
    return example.model, _inputs(example)


def _listed(notes: Sequence[str]) -> str:
    return "".join(f"\n{wrap(note, '  - ', '    ')}" for note in notes)


def main() -> NoReturn:
    """Run the command line; a defect of this program is not confused with a plan's answer."""
    try:
        cli(standalone_mode=True)
    except Exception as defect:
        traceback.print_exc()
        raise SystemExit(DEFECT) from defect
    raise AssertionError("click ends the process")
