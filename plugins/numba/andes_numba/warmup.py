"""`andes warmup`: compile and keep all machine code that a model needs, before anybody waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from andes_sdk.cli import loading
from andes_sdk.cli.console import Json, clean, print_json, stderr, stdout, table

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline


@clean
@loading.requesting
def warmup(opening: loading.Opening, plugin: loading.Plugins = None, as_json: Json = False) -> None:
    """Run every kind of pass once, so that what a backend compiles is in its cache for this model and these options.

    Such as: andes warmup --model model.andes --backend numba -o numba.kv=int8
    """
    pipeline = opening.opened(plugin)
    seconds: dict[str, float] = {}
    passes = passes_of(pipeline)
    with Progress(console=stderr(), disable=as_json, transient=True) as bar:
        task = bar.add_task("", total=len(passes))
        for name, run in passes.items():
            bar.update(task, description=name)
            start = time.perf_counter()
            run()
            seconds[name] = time.perf_counter() - start
            bar.advance(task)
    facts = dict(pipeline.compiled.facts())
    if as_json:
        print_json({"seconds": {k: round(v, 3) for k, v in seconds.items()}, "facts": facts})
        return
    rows = [(name, f"{one:.2f} s") for name, one in {**seconds, "in all": sum(seconds.values())}.items()]
    stdout().print(table(("pass", "time"), rows))
    stdout().print(table((f"backend {pipeline.plan.backend}", ""), list(facts.items())))


def passes_of(pipeline: Pipeline) -> dict[str, Callable[[], Any]]:
    """What a conversation runs, in order: a picture with a question, one token, a tree of tokens, two sessions."""
    from PIL import Image

    from andes_numba.backend import CompiledNumba
    from andes_sdk.inputs.messages import user_message
    from andes_sdk.types import Work

    picture = user_message("What is this?", [Image.new("RGB", (64, 64))])
    opened: list[Any] = []

    def open_model() -> None:
        _ = pipeline.processor, pipeline.policy, pipeline.decoder
        if isinstance(pipeline.compiled, CompiledNumba):
            pipeline.compiled.whole.here()

    def read() -> None:
        for _ in range(2):
            opened.append(pipeline.session())
            opened[-1].prefill(pipeline.prepare([picture]))

    def tree() -> None:
        opened[0].extend([1, 2, 3, 4, 5], [-1, 0, 0, 1, -1])
        opened[0].rollback()

    def together() -> None:
        pipeline.compiled.step([Work(session=opened[0], tokens=[1]), Work(session=opened[1], tokens=[2])])
        for session in opened:
            session.close()

    return {
        "open": open_model,
        "a picture and a question": read,
        "one token": lambda: (opened[0].extend([1]), opened[0].rollback()),
        "a tree of tokens": tree,
        "two conversations": together,
    }
