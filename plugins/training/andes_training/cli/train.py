"""`andes train`: run a recipe, or say what it would do."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from andes_sdk.cli.console import Json, clean, print_json, stderr, stdout, table
from andes_sdk.files import Journal

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_training.recipe import Recipe


def open_recipe(path: Path, overrides: list[str]) -> tuple[Recipe, Pipeline]:
    """Read a recipe and assemble its pipeline, from the checkpoint it starts with if it names one.

    Raises:
        TrainingError, AssemblyError, CheckpointError: what is wrong with either.
    """
    from andes_training.recipe import load_recipe, open_pipeline

    recipe = load_recipe(path, overrides)
    return recipe, open_pipeline(recipe)


def _print_outlook(facts: dict[str, Any]) -> None:
    modules = list(facts["stages"][0]["trainable"]) if facts["stages"] else []
    rows = [
        (
            s["stage"],
            f"{s['steps']:,}" if s["steps"] else f"of {s['epochs']} epochs",
            f"{s['samples']:,}",
            f"{s['tokens']:,}" if s["tokens"] else "?",
            *(f"{s['trainable'][m]:,}" for m in modules),
            f"{s['memory_bytes']['total'] / 2**20:,.0f} MiB",
        )
        for s in facts["stages"]
    ]
    heads = ("stage", "steps", "samples", "tokens, at most", *(f"{m} trains" for m in modules), "memory")
    console = stdout()
    console.print(table(heads, rows, f"{facts['recipe']}: {facts['parameters']:,} parameters"))
    for s in facts["stages"]:
        parts = ", ".join(f"{k} {v / 2**20:,.0f}" for k, v in s["memory_bytes"].items() if k != "total")
        console.print(f"memory of {s['stage']} (MiB): {parts}", markup=False, highlight=False, soft_wrap=True)


@clean
def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe.")],
    out: Annotated[Path | None, typer.Option(help="Folder for states, metrics and the trained model.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Such as stages.0.steps=20; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out, if there is one.")] = True,
    report: Annotated[
        bool, typer.Option("--report", help="Write report.html to --out at the end; again: andes report FOLDER.")
    ] = False,
    accept_changed_data: Annotated[
        bool, typer.Option("--accept-changed-data", help="Go on although data files have changed since the last state.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Train a RECIPE's stages. A run that was stopped goes on from its last state with identical numbers.

    SIGTERM and Ctrl-C finish the step, save a state and exit with 143 or 130; a second one ends at once.
    """
    if out is None and not dry_run:
        raise typer.BadParameter("--out FOLDER is needed to train")
    loaded, pipeline = open_recipe(recipe, change or [])
    if dry_run or out is None:
        from andes_training.outlook import outlook

        facts = outlook(loaded, pipeline)
        if as_json:
            print_json(facts)
        else:
            _print_outlook(facts)
        return
    from andes_training.processes import leave_processes
    from andes_training.progress import Progress
    from andes_training.report import need_matplotlib, write_report
    from andes_training.stopping import Stopped, Stopping

    if report:
        need_matplotlib()
    first = os.environ.get("RANK", "0") == "0"
    console = None if as_json or not first else stdout()
    with Progress(out, console, [s.log_every for s in loaded.stages]) as progress, Stopping() as stopping:
        try:
            model = pipeline.train(
                loaded,
                out,
                resume=resume,
                accept_changed_data=accept_changed_data,
                progress=progress,
                stopping=stopping,
            )
        except Stopped as stopped:
            if first:
                sets = [part for text in change or () for part in ("--set", text)]
                given = {"--report": report, "--accept-changed-data": accept_changed_data, "--json": as_json}
                options = [*sets, *(option for option, said in given.items() if said)]
                again = shlex.join(["andes", "train", str(recipe), "--out", str(out), *options])
                if as_json:
                    name = signal.Signals(stopped.signal).name
                    print_json({"recipe": loaded.name, "stopped": name, "what": stopped.what, "again": again})
                else:
                    stderr().print(f"{stopped.what}; to go on: {again}", markup=False, soft_wrap=True)
            raise typer.Exit(128 + stopped.signal) from None
        finally:
            leave_processes()
    if not first:
        return
    if report:
        write_report(out)
    adapters = [str(out / s.adapter) for s in loaded.stages if s.lora is not None and not s.lora.merge]
    if as_json:
        rows = Journal(progress.path).rows()
        done = {"recipe": loaded.name, "model": str(model), "adapters": adapters, "metrics": str(progress.path)}
        print_json({**done, "steps": len(rows), "last": rows[-1] if rows else None})
    elif console is not None:
        for adapter in dict.fromkeys(adapters):
            console.print(f"trained adapter: {adapter}", markup=False, soft_wrap=True)
        console.print(f"{_model_is(loaded, pipeline)}: {model}", markup=False, soft_wrap=True)


def _model_is(recipe: Recipe, pipeline: Pipeline) -> str:
    """What the saved model is, beside the adapters of a run."""
    from andes_sdk.types import ModelChange

    changed = [
        s.changes_weights or isinstance(pipeline.pick("training_stages", s.stage), ModelChange) for s in recipe.stages
    ]
    last = recipe.stages[-1]
    if not any(changed):
        return "its base, as it was"
    if last.lora is None or last.lora.merge or (changed[-1] and not last.changes_weights):
        return "trained model"
    return "the last adapter's base" + (", with what was trained beside it" if changed[-1] else "")


@clean
def report(
    folder: Annotated[Path, typer.Argument(help="The --out folder of a run, finished or not.")], as_json: Json = False
) -> None:
    """Draw a run's metrics: loss, learning rate, gradient norm and speed of each stage, in one HTML file."""
    from andes_training.report import write_report

    path = write_report(folder)
    if as_json:
        print_json({"report": str(path)})
    else:
        stdout().print(f"report: {path}", markup=False, soft_wrap=True)
