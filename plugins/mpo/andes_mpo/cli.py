"""`andes-pairs`: preference pairs from a model's own answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from andes_sdk.errors import AndesError, AssemblyError

from .pairs import PairBuilder, PairOptions

Plugins = Annotated[list[str] | None, typer.Option("--plugin", "-p", help="One more plugin that brings rewards.")]


def pairs(
    prompts: Annotated[Path, typer.Argument(help='A file of {"prompt": [messages], "answer": …}.')],
    model: Annotated[Path, typer.Option("--model", "-m", help="Checkpoint folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON Lines of pairs.")],
    reward: Annotated[str, typer.Option(help="Verifier; empty for none.")] = "exact",
    threshold: Annotated[float, typer.Option(help="Score from which an answer is right.")] = 1.0,
    k: Annotated[int, typer.Option(help="Answers per prompt.")] = 8,
    per_prompt: Annotated[int, typer.Option("--pairs", help="Pairs per prompt, at most.")] = 1,
    blind: Annotated[bool, typer.Option(help="Make a wrong answer where there is none.")] = True,
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample among the best K; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among the most likely this share.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 512,
    think: Annotated[bool | None, typer.Option("--think/--no-think", help="Thinking mode.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling noise.")] = 0,
    batch: Annotated[int, typer.Option(help="Prompts answered together.")] = 16,
    device: Annotated[str, typer.Option(help="cpu, cuda …")] = "cpu",
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print counts as JSON and nothing else.")] = False,
) -> None:
    """Answer PROMPTS several times, judge the answers, and write pairs of a better and a worse one."""
    from andes_sdk import Pipeline

    try:
        options = PairOptions(
            reward=reward, threshold=threshold, k=k, pairs=per_prompt, blind=blind, temperature=temperature,
            top_k=top_k, top_p=top_p, max_tokens=max_tokens, think=think, seed=seed, batch=batch,
        )  # fmt: skip
    except ValueError as error:
        raise typer.BadParameter(str(error.args[0])) from None
    console = Console(stderr=True)
    try:
        names = [*(plugin or ()), *(["verifiers"] if reward and "verifiers" not in (plugin or ()) else [])]
        pipeline = Pipeline.from_pretrained(model, plugins=names, device=device)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, disable=as_json) as bar:
            task = bar.add_task("prompts", total=None)
            builder = PairBuilder(
                pipeline, prompts, out, options, lambda done, of: bar.update(task, completed=done, total=of)
            )
            counts = builder.run()
    except (AndesError, AssemblyError) as error:
        console.print(f"error {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(counts))
    else:
        typer.echo("\n".join(f"{count:8} {reason}" for reason, count in counts.items()) + f"\npairs: {out}")


def main() -> None:
    """Entry point of the command."""
    typer.run(pairs)
