"""`andes eval`: tasks and benchmarks, runs compared, devices compared. `andes batch`: a file of conversations."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from typer.core import TyperGroup

from andes_sdk.cli.console import Json, clean, print_json, stderr, stdout, table
from andes_sdk.cli.loading import Backend, Device, Dtype, Options, Plugins, Request, open_pipeline, requesting
from andes_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from andes_sdk.pipeline import Pipeline

    from .run import Outcome, Settings
    from .suite import Suite
    from .tasks.judged import Judge


class Scores(TyperGroup):
    """A group whose first word may be a model instead of a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`MODEL TASK…` is `run MODEL TASK…`."""
        own = {*self.commands, "--help"}
        return super().parse_args(ctx, ["run", *args] if args and args[0] not in own else args)


app = typer.Typer(
    cls=Scores,
    add_completion=False,
    no_args_is_help=True,
    help="Score a model: `andes eval MODEL TASK…`. `andes eval run --help` has the options.",
)

Model = Annotated[str, typer.Argument(help="Checkpoint folder, packed file, or owner/name on the Hub.")]
Data = Annotated[
    Path | None,
    typer.Option(envvar="LMUData", help="Folder or file with the tasks' data; without it the Hugging Face cache."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Score the first items only.")]
Out = Annotated[Path | None, typer.Option(help="Folder of answers, results and report; continued if it exists.")]
Together = Annotated[int, typer.Option(min=1, help="Items that are decoded together.")]
Adapter = Annotated[str | None, typer.Option(metavar="NAME=FOLDER", help="Answer with a LoRA adapter that peft saved.")]
Think = Annotated[
    bool | None, typer.Option("--think/--no-think", help="Thinking mode; without it the model's own default.")
]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, instead of the task's.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the sampling noise and of the intervals.")]


@app.command("run")
@clean
def evaluate(
    model: Model,
    tasks: Annotated[list[str], typer.Argument(metavar="TASK…", help="Names of `andes eval tasks`, or of benchmarks.")],
    data: Data = None,
    limit: Limit = None,
    out: Out = None,
    together: Together = 8,
    adapter: Adapter = None,
    think: Think = None,
    max_tokens: MaxTokens = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="No picture is larger than a square of this side in pixels.")
    ] = None,
    image_scale: Annotated[
        float | None, typer.Option(min=0.01, max=16.0, help="Enlarge pictures by this factor, instead of the task's.")
    ] = None,
    seed: Seed = 0,
    judge: Annotated[str | None, typer.Option(help="Address of an OpenAI-compatible server, up to /v1.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="Name of the judge's model there.")] = None,
    plugin: Plugins = None,
    option: Options = None,
    device: Device = None,
    dtype: Dtype = None,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Score MODEL on each TASK: a task of this package, or a benchmark that a plugin brings."""
    pipeline = open_pipeline(model, None, plugins=plugin, options=option, device=device, dtype=dtype, backend=backend)
    given = {"max_tokens": max_tokens, "seed": seed, "image_size": image_size}
    settings = _settings(limit, together, think, image_scale, given, adapter)
    benchmarks = [name for name in tasks if name in pipeline.collection("benchmarks")]
    if benchmarks == tasks and len(tasks) == 1:
        _benchmark(pipeline, model, tasks[0], limit, as_json=as_json)
        return
    suite = _suite(tasks, benchmarks, pipeline, data, settings, _judge(judge, judge_model))
    _attach(pipeline, adapter)
    figures = {name: _run_benchmark(pipeline, name, limit) for name in benchmarks}
    outcomes = _run(suite, pipeline, model, out, quiet=as_json)
    if as_json:
        found = {"model": model, "limit": limit, "tasks": {one.task.name: one.to_dict() for one in outcomes}}
        print_json({**found, "benchmarks": figures} if figures else found)
        return
    stdout().print(_scores(outcomes))
    rows = [(name, figure, f"{value:.4f}") for name, some in figures.items() for figure, value in some.items()]
    if rows:
        stdout().print(table(("benchmark", "figure", "value"), rows))
    if out is not None:
        stdout().print(f"report: {out / 'report.html'}")


def _settings(
    limit: int | None,
    together: int,
    think: bool | None,
    scale: float | None,
    given: dict[str, Any],
    adapter: str | None,
) -> Settings:
    from .run import Settings

    name, folder = (None, None) if adapter is None else _named(adapter)
    place = None if folder is None else Path(folder)
    if place is not None and not place.is_dir():
        raise ConfigError("there is no such folder", who=f"--adapter {adapter}", fix="give the folder that peft saved")
    options = {**given, "adapter": name}
    return Settings(limit=limit, together=together, think=think, scale=scale, given=options, adapter=place)


def _suite(
    tasks: Sequence[str],
    benchmarks: Sequence[str],
    pipeline: Pipeline,
    data: Path | None,
    settings: Settings,
    judge: Judge | None,
) -> Suite:
    """The tasks that are no benchmarks. What is neither is told with the names of both."""
    from andes_sdk.config import suggestion

    from .suite import Suite
    from .tasks.catalogue import TASKS

    rest = [name for name in tasks if name not in benchmarks]
    for name in rest:
        if name.lower() not in TASKS:
            known = [*TASKS, *pipeline.collection("benchmarks")]
            why = "no plugin of this pipeline brings a benchmark of that name either"
            raise ConfigError(f"no task {name!r}", who="andes eval", why=why, fix=suggestion(name.lower(), known))
    return Suite.of(rest, data, settings, judge)


def _judge(address: str | None, model: str | None) -> Judge | None:
    from .judge import ServerJudge

    if (address is None) != (model is None):
        raise ConfigError("a judge is an address and a model", who="--judge", fix="give --judge and --judge-model")
    return None if address is None or model is None else ServerJudge(address=address, model=model)


def _named(adapter: str) -> tuple[str, str]:
    name, _, folder = adapter.partition("=")
    if not (name and folder):
        raise ConfigError(f"cannot read {adapter!r}", who="--adapter", fix="write NAME=FOLDER")
    return name, folder


def _attach(pipeline: Pipeline, adapter: str | None) -> None:
    if adapter is not None:
        pipeline.add_adapter(*_named(adapter))


def _run(suite: Suite, pipeline: Pipeline, model: str, out: Path | None, *, quiet: bool) -> list[Outcome]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), disable=quiet) as bar:
        bars: dict[str, Any] = {}

        def tell(name: str, count: int) -> None:
            if name not in bars:
                bars[name] = bar.add_task(name, total=suite.settings.limit)
            bar.advance(bars[name], count)

        return suite.run(pipeline, model=model, out=out, tell=tell)


def _scores(outcomes: Sequence[Outcome]) -> Any:
    rows = []
    for one in outcomes:
        main = one.main
        interval = f"{main.low:.4f} to {main.high:.4f}"
        told = f"{one.failed} failed, {one.cut_short} cut short" if one.failed or one.cut_short else ""
        rows.append((one.task.name, one.task.measure, f"{main.value:.4f}", interval, len(one.rows), told))
    return table(("task", "measure", "score", "95 % interval", "n", ""), rows)


def _benchmark(pipeline: Pipeline, model: str, name: str, limit: int | None, *, as_json: bool) -> None:
    """One benchmark of a plugin, told as it always was."""
    begin = time.perf_counter()
    figures = _run_benchmark(pipeline, name, limit)
    seconds = time.perf_counter() - begin
    if as_json:
        facts = {"model": model, "benchmark": name, "limit": limit, "seconds": round(seconds, 3)}
        print_json({**facts, "figures": figures})
        return
    rows = [(figure, f"{value:.4f}") for figure, value in figures.items()]
    stdout().print(table(("figure", "value"), rows, f"{name}, {seconds:.1f} s"))


def _run_benchmark(pipeline: Pipeline, name: str, limit: int | None) -> dict[str, float]:
    from .evaluate import evaluate as run

    with stderr().status(f"running {name}"):
        return run(pipeline, name, limit)


@app.command("tasks")
@clean
def tasks(as_json: Json = False) -> None:
    """List the tasks, and the files that hold their data."""
    from .tasks.catalogue import TASKS

    if as_json:
        print_json([{"name": t.name, "files": list(t.place.names), "hub": t.place.hub} for t in TASKS.values()])
        return
    rows = [(t.name, t.measure, ", ".join(t.place.names), t.place.hub) for t in TASKS.values()]
    stdout().print(table(("task", "measure", "file or folder below --data", "in the Hugging Face cache"), rows))


@app.command("compare")
@clean
def compare(
    one: Annotated[Path, typer.Argument(metavar="A", help="The --out folder of a run.")],
    other: Annotated[Path, typer.Argument(metavar="B", help="That of another, on the same data.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare run B with run A: differences with 95 % intervals, by a paired bootstrap."""
    from .compare import compare_runs

    found = compare_runs(one, other, seed=seed)
    if as_json:
        differences = {name: difference.to_dict() for name, difference in found.differences.items()}
        print_json({"a": str(one), "b": str(other), "tasks": differences, "not_in_both": found.not_in_both})
        return
    rows = []
    for name, d in found.differences.items():
        gap = f"{d.difference.value:+.4f}"
        interval = f"{d.difference.low:+.4f} to {d.difference.high:+.4f}"
        rows.append((name, f"{d.a:.4f}", f"{d.b:.4f}", gap, interval, f"{d.p:.4f}", f"{d.agreement:.1%}", d.n))
    heads = ("task", "A", "B", "B - A", "95 % interval", "p", "same answers", "n")
    stdout().print(table(heads, rows))
    for name, d in found.differences.items():
        if d.only_a or d.only_b:
            stdout().print(f"{name}: {d.only_a} items are in A alone, {d.only_b} in B alone; they are left out")
    if found.not_in_both:
        stdout().print(f"in one run alone: {', '.join(found.not_in_both)}")


@app.command("device")
@clean
def device(
    model: Model,
    tasks: Annotated[list[str], typer.Argument(metavar="TASK…", help="Names of `andes eval tasks`.")],
    variant: Annotated[
        list[str],
        typer.Option(
            metavar="'NAME: KEY=VALUE …'", help="A way to run it; keys are options of andes eval; repeatable."
        ),
    ],
    data: Data = None,
    limit: Limit = None,
    out: Out = None,
    together: Together = 1,
    think: Think = None,
    max_tokens: MaxTokens = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="No picture is larger than a square of this side in pixels.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Put MODEL beside variants of it: scores, agreement and distance of answers, speed, memory."""
    import tempfile

    from .device import Variant, measure
    from .tasks.catalogue import task_of

    names = [task_of(name).name for name in tasks]
    given = {"data": data, "limit": limit, "max-tokens": max_tokens, "image-size": image_size}
    shared = [part for key, value in given.items() if value is not None for part in (f"--{key}", str(value))]
    shared += ["--together", str(together), "--seed", str(seed)]
    shared += [] if think is None else ["--think" if think else "--no-think"]
    variants = [Variant.parse(text) for text in variant]
    with tempfile.TemporaryDirectory() as temporary, stderr().status("") as status:
        place = Path(temporary) if out is None else out
        found = measure(model, names, variants, place, shared, lambda name: status.update(f"running {name}"))
    if as_json:
        print_json({"model": model, "variants": {name: one.to_dict() for name, one in found.items()}})
        return
    rows = []
    for name, one in found.items():
        scores = (f"{task['score']:.4f} [{task['low']:.4f}, {task['high']:.4f}]" for task in one.tasks.values())
        memory = "" if one.memory is None else f"{one.memory / 2**20:,.0f}"
        figures = (f"{one.same:.1%}", f"{one.rouge_l:.3f}", f"{one.edit:.3f}", f"{one.first_token:.3f}",
                   f"{one.tokens_per_second:.1f}", f"{one.kv_bytes / 2**20:.2f}", memory)  # fmt: skip
        rows.append((name, *scores, *figures))
    heads = ("", *names, "same text", "ROUGE-L", "edit", "first token, s", "tokens/s", "KV, MiB", "memory, MiB")
    stdout().print(table(heads, rows))


@clean
@requesting
def batch(
    request: Request,
    source: Annotated[Path, typer.Argument(help="JSON Lines, one list of messages (or one text) a line.")],
    out: Annotated[Path, typer.Argument(help="JSON Lines of answers; continued if it exists.")],
    together: Annotated[int, typer.Option(min=1, help="Lines that are decoded together.")] = 1,
    as_json: Json = False,
) -> None:
    """Answer every line of SOURCE into OUT. Started again, it goes on where it was stopped, and retries what failed."""
    from .batch import BatchJob, check_out

    if request.image:
        raise typer.BadParameter("messages hold their own pictures: leave --image out")
    options = request.generation()
    check_out(out)  # before weights are read
    pipeline, folder = request.pipeline(), request.adapter_folder
    job = BatchJob(pipeline, options, source, out, together, request.allow_remote, folder)
    done = job.run(console=None if as_json else stderr())
    if as_json:
        print_json(done)
    if done["failed"]:
        raise typer.Exit(1)
