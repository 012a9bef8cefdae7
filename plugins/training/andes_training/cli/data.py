"""`andes data`: look at training data before training on it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import frozen

from andes_sdk.cli import loading
from andes_sdk.cli.console import Json, clean, print_json, stdout, table
from andes_sdk.errors import AndesError, TrainingError

if TYPE_CHECKING:
    from andes_training.data.samples import Samples
    from andes_training.reading import RowMaker

app = typer.Typer(no_args_is_help=True, help="Check, count and look at training data.")

Paths = Annotated[
    list[Path] | None,
    typer.Argument(metavar="PATH…", help="Files, folders of shards or patterns: .jsonl, .parquet, .tar."),
]
RecipeOption = Annotated[
    Path | None,
    typer.Option("--recipe", help="Tokenizer, resolution and limits of this recipe's stages; its data, too."),
]
Stage = Annotated[
    int | None,
    typer.Option(
        min=0, help="Stage of the recipe, counted from 0: it stands for PATHs (0 if none is given), or alone."
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Threads that read and prepare.")]


@frozen(kw_only=True)
class Looking:
    """The options of commands that read all samples."""

    paths: Paths = None
    recipe: RecipeOption = None
    stage: Stage = None
    workers: Workers = 1
    as_json: Json = False

    def opened(self, broken: list[dict[str, str]]) -> list[tuple[Samples, RowMaker | None]]:
        """Data to look at, each with how its stage makes rows; files that cannot be opened are added to `broken`."""
        from andes_training.recipe import DataRecipe

        paths, recipe, stage = self.paths or [], self.recipe, self.stage
        if not paths and recipe is None:
            raise typer.BadParameter("give a PATH or --recipe")
        if stage is not None and recipe is None:
            raise typer.BadParameter("--stage is one of a recipe: give --recipe")
        makers, folder, stages = _recipe(recipe) if recipe is not None else ([None], Path(), [])
        if stage is not None and stage >= len(makers):
            fix = f"give 0 to {len(makers) - 1}"
            raise TrainingError(
                f"the recipe has no stage {stage}", who=str(recipe), why=f"it has {len(makers)}", fix=fix
            )
        if paths:
            wanted = [([DataRecipe(path=p.absolute()) for p in paths], makers[stage or 0])]
        else:
            both = list(zip(stages, makers, strict=True))
            wanted = both if stage is None else both[stage : stage + 1]
        return [(s, maker) for data, maker in wanted for d in data for s in _samples(d, folder, broken)]


@clean
@loading.requesting
def check(looking: Looking) -> None:
    """Name every sample that training would refuse, with file and line. Exit code 1 if there is one."""
    from andes_training.data.inspection import problems

    found: list[dict[str, str]] = []
    places, files = set[tuple[str, str]](), dict[Path, int]()
    for samples, maker in looking.opened(found):
        files |= {shard.path.resolve(): len(shard) for source in samples.sources for shard in source.shards}
        for problem in problems(samples, maker, looking.workers):
            if (problem.where, problem.reason) in places:  # a file of several stages
                continue
            places.add((problem.where, problem.reason))
            row = {name: getattr(problem, name) for name in ("where", "reason", "what", "why", "fix")}
            found.append(row)
            if not looking.as_json:
                _print(row)
    total, reasons = sum(files.values()), dict(Counter(row["reason"] for row in found).most_common())
    if looking.as_json:
        print_json({"samples": total, "bad": len(found), "reasons": reasons, "problems": found})
    else:
        listed = ", ".join(f"{reason}: {n}" for reason, n in reasons.items())
        stdout().print(f"{total:,} samples, {len(found):,} problems" + (f" ({listed})" if listed else ""), markup=False)
    if found:
        raise typer.Exit(1)


def _print(row: dict[str, str]) -> None:
    why = f" ({' '.join(row['why'].split())})" if row["why"] else ""
    stdout().print(f"{row['where']}: {row['reason']}: {row['what']}{why}", markup=False, soft_wrap=True)


def _samples(data: Any, folder: Path, broken: list[dict[str, str]]) -> list[Samples]:
    from attrs import evolve

    from andes_training.data.samples import stage_samples

    try:
        # looked at as a whole, whatever share of it an epoch takes
        return [stage_samples([evolve(data, weight=0.0, samples=0, tokens=0, repeat=1)], folder)]
    except AndesError as error:
        facts = error.to_dict()
        row = {"where": facts["who"], "reason": "file", **{k: facts[k] for k in ("what", "why", "fix")}}
        if row not in broken:
            broken.append(row)
        return []


def _recipe(path: Path) -> tuple[list[RowMaker | None], Path, list[Any]]:
    """Makers of rows of a recipe's stages, what its paths are relative to, and the stages' data and validation."""
    from andes_training.cli.train import open_recipe
    from andes_training.reading import stage_maker

    recipe, pipeline = open_recipe(path, [])
    makers: list[RowMaker | None] = [
        stage_maker(pipeline, stage, pipeline.pick("training_stages", stage.stage)) for stage in recipe.stages
    ]
    return makers, recipe.folder, [[*stage.data, *stage.validation] for stage in recipe.stages]


@clean
@loading.requesting
def stats(looking: Looking) -> None:
    """Count samples, turns, tokens (with --recipe), pictures and duplicates. Of pictures only the headers are read."""
    from andes_training.data.statistics import statistics

    broken: list[dict[str, str]] = []
    opened = looking.opened(broken)
    for row in broken:  # unlike for `check`, an error
        raise TrainingError(row["what"], who=row["where"], why=row["why"], fix=row["fix"])
    rows = []
    for samples, maker in opened:
        facts = statistics(samples, maker, looking.workers).to_dict()
        rows.append({"path": ", ".join(str(s.recipe.path) for s in samples.sources), **facts})
    if looking.as_json:
        print_json(rows)
        return
    for row in rows:
        _print_stats(row)


def _print_stats(row: dict[str, Any]) -> None:
    console, pictures, twins = stdout(), row["pictures"], row["duplicates"]
    facts = [("samples", f"{row['samples']:,}"), ("conversations", f"{row['conversations']:,}")]
    facts += [(f"turns: {role}", f"{n:,}") for role, n in row["turns"].items()]
    facts += [("samples that reason", f"{row['thinking']:,}"), ("characters", f"{row['characters']:,}")]
    facts += [(f"unusable: {reason}", f"{n:,}") for reason, n in row["unusable"].items()]
    facts += [("pictures", f"{pictures['count']:,} ({pictures['megapixels']:,} megapixels)")]
    facts += [(f"longer side {name} px", f"{n:,}") for name, n in pictures["longer_side"].items() if n]
    facts += [("samples without pictures", f"{pictures['samples_without']:,}")]
    facts += [("duplicates", f"{twins['extra']:,}" + "".join(f"\n{', '.join(g[:3])}" for g in twins["groups"][:3]))]
    console.print(table(("", "count"), facts, row["path"]))
    if "tokens" not in row:
        return
    tokens = row["tokens"]
    numbers = [(name, f"{tokens[name]:,}") for name in tokens if name != "histogram"]
    console.print(table(("tokens", "count"), numbers))
    most = max(tokens["histogram"].values())
    bars = [(name, f"{n:,}", "█" * -(-40 * n // most)) for name, n in tokens["histogram"].items()]
    console.print(table(("tokens of a sample", "samples", ""), bars))


@clean
def preview(
    paths: Paths = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The HTML page to write.")] = Path("preview.html"),
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many samples of each PATH.")] = 20,
    seed: Annotated[int, typer.Option(help="Which samples are drawn.")] = 0,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page that shows samples: pictures with their boxes, and the text."""
    from andes_training.data.page import write_page
    from andes_training.data.samples import stage_samples
    from andes_training.recipe import DataRecipe

    if not paths:
        raise typer.BadParameter("give a PATH")
    shown = write_page(
        stage_samples([DataRecipe(path=p.absolute()) for p in paths], Path()), out, count=count, seed=seed
    )
    if as_json:
        print_json({"samples": shown, "page": str(out)})
    else:
        stdout().print(f"{shown} samples: {out}", markup=False, soft_wrap=True)


app.command("check")(check)
app.command("stats")(stats)
app.command("preview")(preview)
