"""`andes compress MODEL --recipe NAME`: a model trained on a grid, with itself as the teacher, and packed.

A recipe is a choice that measurements made (`docs/results/compression.md`): grids, scales and rates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from andes_compression.compress import recipe_for, write
from andes_training.progress import Progress
from andes_training.recipe import Recipe
from andes_training.stopping import Stopping

from andes_sdk.config import structure
from andes_sdk.errors import ConfigError
from andes_sdk.numbers import weights_of

if TYPE_CHECKING:
    from andes_packing import Artefact
    from rich.console import Console

SUB2: Mapping[str, Any] = {
    "body": "ternary34_g128", "roles": {"o": "w4_g128"}, "scales": "seq", "rate": 3e-4,
    "projector_rate": 6e-5, "embedding": "w4_g32", "head": "w4_g32", "vision": "w8", "projector": "w8",
    "bits": 1.8,
}  # fmt: skip
"""Options of the plugin `qat`: 1.6 bits per weight of the body where 8 % of it are `o`. Queries, keys and values have
one grid, since the backend numba runs no others. What would take more than 1.8 is refused: rows that do not fill groups
of 128 are padded."""


def sub2(
    model: str | Path,
    data: Sequence[Path],
    out: Path,
    *,
    run: Path,
    steps: int,
    options: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> tuple[Artefact, Mapping[str, Any]]:
    """Train below 1.8 bits per weight of the body, and pack -> the file, and what the compressor says.

    Args:
        model: a checkpoint folder, the teacher too. data: files of conversations, such as the model was trained on.
        run: folder of states; the same call goes on there, one of another model is refused.
        options: of the plugin `qat`, over the recipe's.
        console: where progress is shown; None for nowhere.

    Raises:
        Stopped: by a signal, after a state was saved.
        ConfigError: no data, options that cannot be, or a model of more bits. As `andes_training.loop.train` otherwise.
    """
    from andes_sdk.pipeline import Pipeline

    if not data:
        why, fix = "below two bits a model has to be trained", "give --data files of conversations; repeatable"
        raise ConfigError("needs data", who="recipe sub2", why=why, fix=fix)
    own = {**SUB2, "teacher": str(model), "every": max(1, steps // 20), **(options or {})}
    pipe = Pipeline.from_pretrained(str(model), dtype="float32", plugins=[{"qat": own}])
    stage = {
        "stage": "qat", "steps": steps, "warmup": steps // 20, "schedule": "linear",
        "checkpoint_every": max(1, min(100, steps // 4)), "data": [{"path": str(p.resolve())} for p in data],
    }  # fmt: skip
    facts = {"sub2": {k: v for k, v in own.items() if k != "teacher"}, "model": weights_of(pipe.model)}
    recipe = structure(Recipe, {"name": "sub2", "pipeline": facts, "stages": [stage]}, "recipe sub2")
    with Progress(run, console, [10]) as progress, Stopping() as stopping:
        pipe.train(recipe, run, progress=progress, stopping=stopping)
    trained = Pipeline.from_pretrained(run / "model", dtype="float32", plugins=["qat"])
    made = trained.compress("qat", codes=str(run / "qat"))
    formats = recipe_for(trained, made, "f16")
    formats |= {n: f for n, f in recipe_for(trained, made, None).items() if n in made.codes}
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last: Mapping[str, Any] = next((one for one in reversed(lines) if "kl" in one), {})
    report = {**made.report, "steps": steps, "kl": last.get("kl"), "agreement": last.get("agreement")}
    return write(trained, made, out, formats), report
