"""`andes train`: run a recipe, or say what it would do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from andes_sdk.cli.console import Json, clean, print_json, stdout, table
from andes_sdk.errors import TrainingError

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.training.recipe import Recipe, StageRecipe


def open_recipe(path: Path, overrides: list[str]) -> tuple[Recipe, Pipeline]:
    """Read a recipe and assemble its pipeline, from the checkpoint it starts with if it names one.

    Raises:
        TrainingError, AssemblyError, CheckpointError: what is wrong with either.
    """
    from andes_sdk.config import read_config
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.training.recipe import load_recipe

    recipe = load_recipe(path, overrides)
    arguments = read_config(recipe.pipeline)
    if recipe.start:
        if arguments["weights"] is not None:
            raise TrainingError(
                "names weights twice", who=str(path), why="both start and pipeline.weights", fix="keep `start`"
            )
        # relative to the recipe, as its data files are; an absolute path stays as it is
        arguments["weights"] = str(recipe.folder / recipe.start)
    return recipe, Pipeline.from_plugins(**arguments)


def outlook(recipe: Recipe, pipeline: Pipeline) -> dict[str, Any]:
    """What a recipe would do: steps, samples, what trains, and an estimate of memory. Reads data files, no weights."""
    model = pipeline.meta_model()
    total = model.parameter_count()
    stages = [_stage(stage, recipe, pipeline, model) for stage in recipe.stages]
    return {"recipe": recipe.name, "parameters": total, "stages": stages}


def _stage(stage: StageRecipe, recipe: Recipe, pipeline: Pipeline, model: Any) -> dict[str, Any]:
    from andes_sdk.training.data import read_samples
    from andes_sdk.training.recipe import rates_of

    rates = rates_of(stage, pipeline.pick("training_stages", stage.stage).rates(model))
    trainable = dict.fromkeys(model.parts(), 0)
    weights = learnt = 0
    for name, parameter in model.named_parameters():
        size = parameter.numel() * _bytes(pipeline.plan.dtype)
        weights += size
        prefix = max((p for p in rates if name == p or name.startswith(f"{p}.")), key=len, default=None)
        if prefix is not None and rates[prefix] > 0:
            trainable[name.partition(".")[0]] += parameter.numel()
            learnt += size
    # AdamW keeps two moments in the precision of the weights; activations come on top and depend on the packs
    memory = {"weights": weights, "gradients": learnt, "optimizer": 2 * learnt}
    return {
        "stage": stage.stage,
        "steps": stage.steps,
        "samples": sum(len(read_samples(d, recipe.folder)) for d in stage.data),
        "rates": rates,
        "trainable": trainable,
        "memory_bytes": {**memory, "total": sum(memory.values())},
    }


def _bytes(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def _print_outlook(facts: dict[str, Any]) -> None:
    modules = list(facts["stages"][0]["trainable"]) if facts["stages"] else []
    rows = [
        (
            s["stage"],
            f"{s['steps']:,}",
            f"{s['samples']:,}",
            *(f"{s['trainable'][m]:,}" for m in modules),
            f"{s['memory_bytes']['total'] / 2**20:,.0f} MiB",
        )
        for s in facts["stages"]
    ]
    heads = ("stage", "steps", "samples", *(f"{m} trains" for m in modules), "memory")
    console = stdout()
    console.print(table(heads, rows, f"{facts['recipe']}: {facts['parameters']:,} parameters"))
    console.print("memory: weights, gradients and AdamW's moments; activations come on top")


@clean
def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe.")],
    out: Annotated[Path | None, typer.Option(help="Folder for states, metrics and the trained model.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Such as stages.0.steps=20; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out, if there is one.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Train a RECIPE's stages. A run that was stopped goes on from its last state with identical numbers."""
    if out is None and not dry_run:
        raise typer.BadParameter("--out FOLDER is needed to train")
    loaded, pipeline = open_recipe(recipe, change or [])
    if dry_run or out is None:
        facts = outlook(loaded, pipeline)
        if as_json:
            print_json(facts)
        else:
            _print_outlook(facts)
        return
    from andes_sdk.training.progress import Progress

    console = None if as_json else stdout()
    with Progress(out, console, [s.log_every for s in loaded.stages]) as progress:
        model = pipeline.train(loaded, out, resume=resume, progress=progress)
    if as_json:
        last = progress.path.read_text(encoding="utf-8").splitlines() if progress.path.exists() else []
        done = {"recipe": loaded.name, "model": str(model), "metrics": str(progress.path)}
        print_json({**done, "steps": len(last), "last": json.loads(last[-1]) if last else None})
    elif console is not None:
        console.print(f"trained model: {model}", markup=False, soft_wrap=True)
