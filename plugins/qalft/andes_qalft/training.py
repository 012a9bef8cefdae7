"""An adapter from a packed base, a contract and data, without a recipe file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from andes_adapters.contract import read_contract
from andes_adapters.reading import WEIGHTS
from andes_training.data.fingerprint import fingerprint
from andes_training.loop import train
from andes_training.recipe import Recipe

from andes_sdk.config import structure
from andes_sdk.errors import ConfigError

if TYPE_CHECKING:
    from andes_training.progress import Progress
    from andes_training.stopping import Stopping


def train_adapter(
    base: str | Path,
    contract: Path,
    data: list[Path],
    out: Path,
    *,
    name: str,
    epochs: int = 10,
    steps: int = 0,
    max_tokens: int = 2048,
    max_patches: int = 4096,
    seed: int = 0,
    progress: Progress | None = None,
    stopping: Stopping | None = None,
    **options: Any,
) -> Path:
    """Train -> folder of the adapter. The base's file is only read. A run that was stopped goes on.

    The mechanism's settings: AdamW at 3e-4 without decay, linear schedule without warm-up, 10 epochs.

    Args:
        base: a packed file. steps: instead of epochs. max_tokens, max_patches: of one pack.
        options: of the plugin `qalft`, such as rate and recovery.

    Raises:
        ConfigError: the base is no packed file, or not the contract's. As `andes_training.loop.train` otherwise.
    """
    from andes_sdk.pipeline import Pipeline

    agreed = read_contract(contract)
    plugin = {"qalft": {"file": str(contract), "adapter": name, **options}}
    pipeline = Pipeline.from_pretrained(base, backend="torch", plugins=[plugin])
    if pipeline.artefact is None:
        fix = "pack it first: `andes compress`, or `andes pack`"
        raise ConfigError("is no packed file, so it has no codes to agree on", who=str(base), fix=fix)
    stage: dict[str, Any] = {
        "stage": "qalft", "schedule": "linear", "max_tokens": max_tokens, "max_patches": max_patches,
        "weight_decay": 0.0, "data": [{"path": str(p.resolve())} for p in data],
        **({"steps": steps} if steps else {"epochs": epochs}),
    }  # fmt: skip
    facts = {"base": agreed.hash, "adapter": name, "options": {k: v for k, v in options.items() if k != "recovery"}}
    if recovery := options.get("recovery"):  # by what it holds, wherever it lies
        try:
            facts["recovery"] = fingerprint(Path(recovery) / WEIGHTS)
        except OSError as error:
            fix = "give the folder of an adapter, such as runs/recovery/adapters/recovery"
            raise ConfigError("cannot be read", who=f"recovery {recovery}", why=str(error), fix=fix) from None
    recipe = structure(Recipe, {"name": name, "seed": seed, "pipeline": facts, "stages": [stage]}, "qalft train")
    train(pipeline, recipe, out, progress=progress, stopping=stopping, keep_model=False)
    return out / "adapters" / name
