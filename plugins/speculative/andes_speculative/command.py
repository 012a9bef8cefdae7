"""`andes draft train`: a draft head for a model, from the model's own answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress as Bar

from andes_sdk.cli.console import Json, clean, print_json, stderr, stdout
from andes_sdk.cli.loading import Options, Plugins

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Draft heads for speculative decoding.")
KINDS = ("eagle3", "block")


@app.callback()
def draft() -> None:
    """Draft heads for speculative decoding."""


@clean
def train(
    model: Annotated[str, typer.Argument(help="The model that the head is for: a folder, a file or a name.")],
    data: Annotated[Path, typer.Option(help="Data lines; their last answers are replaced by the model's own.")],
    out: Annotated[Path, typer.Option(help="Folder for answers, states and the head.")],
    kind: Annotated[str, typer.Option(help="eagle3 or block.")] = "eagle3",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 1000,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 3e-4,
    vocabulary: Annotated[int, typer.Option(min=2, help="Most tokens that the head knows.")] = 8192,
    unroll: Annotated[int, typer.Option(min=1, max=16, help="eagle3: tokens that it learns to go ahead.")] = 7,
    block: Annotated[int, typer.Option(min=2, max=16, help="block: tokens guessed in one pass.")] = 5,
    layers: Annotated[int, typer.Option(min=1, max=16, help="block: layers of the head.")] = 1,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of the model.")] = 256,
    temperature: Annotated[float, typer.Option(help="Of the model's answers; 0 is greedy, and loops.")] = 0.7,
    limit: Annotated[int, typer.Option(min=0, help="Lines of the data; 0 for all.")] = 0,
    backend: Annotated[str, typer.Option(help="What answers: torch, or numba, which is faster on a CPU.")] = "torch",
    max_tokens: Annotated[int, typer.Option(min=16, help="Tokens of a pack.")] = 1024,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between two states.")] = 200,
    plugin: Plugins = None,
    option: Options = None,
    given: Annotated[bool, typer.Option("--given", help="Learn from the answers in the data, as they are.")] = False,
    as_json: Json = False,
) -> None:
    """Train a draft head for MODEL. A run that was stopped goes on with the same command.

    The head is written to OUT/draft/KIND.safetensors, and fits this model only.
    """
    if kind not in KINDS:
        raise typer.BadParameter(f"no kind {kind!r}; known: {', '.join(KINDS)}", param_hint="--kind")
    from andes_training.recipe import DataRecipe, Recipe, StageRecipe

    from andes_sdk.cli.loading import open_pipeline
    from andes_sdk.runtime.options import GenerationOptions

    own = {"unroll": unroll} if kind == "eagle3" else {"block": block, "layers": layers}
    settings = {"rate": rate, "vocabulary": vocabulary, **own}
    more = [*(plugin or ()), "draft-heads"]
    options = [*(option or ()), *(f"draft-heads.{name}={value}" for name, value in settings.items())]
    pipeline = open_pipeline(model, None, plugins=more, options=options, backend="torch")
    source = data.resolve()
    if not given:
        from .answers import own_answers

        source = (out / "answers.jsonl").resolve()
        answering = pipeline
        if backend != "torch":
            answering = open_pipeline(model, None, plugins=plugin, options=option, backend=backend)
        how = GenerationOptions(max_tokens=answer_tokens, temperature=temperature)
        with Bar(console=stderr(), disable=as_json) as bar:
            job = bar.add_task("answers", total=None)
            own_answers(
                answering, data, source, how, limit=limit,
                show=lambda done, of: bar.update(job, completed=done, total=of),
            )  # fmt: skip
    # a model may say what no data may hold, such as a box with its corners swapped: those are left out, and counted
    bad: dict[str, Any] = {} if given else {"on_error": "skip", "max_errors": sys.maxsize}
    stage = StageRecipe(
        stage=kind, data=[DataRecipe(path=source, **bad)], steps=steps, warmup=min(50, steps // 2),
        max_tokens=max_tokens, checkpoint_every=checkpoint_every, clip=1.0, weight_decay=0.01,
    )  # fmt: skip
    # with the head's options, so that a run does not go on with others
    recipe = Recipe(name=f"draft-{kind}", stages=[stage], pipeline={"plugins": [{"draft-heads": settings}]})
    last = _learn(pipeline, recipe, out, as_json)
    head = out / "draft" / f"{kind}.safetensors"
    if as_json:
        print_json({"head": str(head), "answers": None if given else str(source), "last": last})
    else:
        stdout().print(f"trained head: {head}", markup=False, soft_wrap=True)


def _learn(pipeline: Any, recipe: Any, out: Path, as_json: bool) -> Any:
    """Run the stage -> its last figures."""
    from andes_training.progress import Progress
    from andes_training.stopping import Stopped, Stopping

    from andes_sdk.files import Journal

    with Progress(out, None if as_json else stdout(), [recipe.stages[0].log_every]) as progress, Stopping() as stopping:
        try:
            pipeline.train(recipe, out, progress=progress, stopping=stopping)
        except Stopped as stopped:
            stderr().print(f"{stopped.what}; to go on: the same command", markup=False, soft_wrap=True)
            raise typer.Exit(128 + stopped.signal) from None
    rows = Journal(progress.path).rows()
    return rows[-1] if rows else None


app.command("train")(train)
