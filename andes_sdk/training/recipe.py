"""A recipe: what to train, with which stages, on which data. Read from TOML, with dotted overrides."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen
from attrs.validators import ge, gt, in_, le, lt

from andes_sdk.config import CONVERTER, structure
from andes_sdk.errors import TrainingError


@frozen(kw_only=True)
class DataRecipe:
    """One data file of a stage.

    Attributes:
        path: JSON Lines of samples; relative to the recipe.
        flip: mirror pictures left to right at random (only where the answer does not depend on it).
        shift, rotate: move pictures at random by up to this share of their sides, turn them by up to this many
            degrees; what comes into view is black.
        questions: at most this many conversations of a sample per epoch, chosen at random; 0 for all.
        repeat: how often an epoch shows each sample.
    """

    path: Path
    flip: bool = False
    shift: float = field(default=0.0, validator=[ge(0.0), lt(1.0)])
    rotate: float = field(default=0.0, validator=[ge(0.0), le(180.0)])
    questions: int = field(default=0, validator=ge(0))
    repeat: int = field(default=1, validator=ge(1))


@frozen(kw_only=True)
class StageRecipe:
    """One stage of a recipe.

    Attributes:
        stage: name of a training stage that a plugin of the pipeline brings.
        steps: optimizer steps.
        warmup: steps of linear warm-up.
        schedule: shape after the warm-up.
        horizon: step at which the schedule would end; 0 for `steps`. A later one stops the stage before its decay.
        floor: share of the learning rate left at the end.
        rates: module prefix -> learning rate, instead of the stage's own.
        max_tokens, max_patches: budget of one pack.
        accumulate: packs per optimizer step; their loss is one mean over all supervised tokens.
        clip: largest gradient norm.
        checkpoint_every, log_every: steps.
    """

    stage: str
    data: list[DataRecipe]
    steps: int = field(validator=ge(1))
    warmup: int = field(default=0, validator=ge(0))
    schedule: str = field(default="cosine", validator=in_(("cosine", "linear", "constant")))
    horizon: int = field(default=0, validator=ge(0))
    floor: float = field(default=0.0, validator=ge(0.0))
    rates: dict[str, float] = field(factory=dict)
    max_tokens: int = field(default=4096, validator=ge(1))
    max_patches: int = field(default=4096, validator=ge(1))
    accumulate: int = field(default=1, validator=ge(1))
    clip: float = field(default=1.0, validator=gt(0.0))
    weight_decay: float = field(default=0.05, validator=ge(0.0))
    checkpoint_every: int = field(default=200, validator=ge(1))
    log_every: int = field(default=10, validator=ge(1))

    def scale(self, step: int) -> float:
        """Learning-rate factor at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup) / max(1, (self.horizon or self.steps) - self.warmup))
        shape = 0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1 - done
        return self.floor + (1 - self.floor) * shape


@frozen(kw_only=True)
class Recipe:
    """A whole training run.

    Attributes:
        pipeline: arguments of `Pipeline.from_plugins` (plugins, image, seed …); `{folder}` in a text is the recipe's.
        stages: run one after another on the same weights.
        precision: 'no' (float32) or 'bf16' autocast.
        threads: CPU threads for torch; 0 leaves torch's choice.
        start: checkpoint folder to start from, or empty for random weights.
    """

    name: str
    pipeline: dict[str, object]
    stages: list[StageRecipe]
    seed: int = 0
    precision: str = field(default="no", validator=in_(("no", "bf16")))
    threads: int = field(default=0, validator=ge(0))
    start: str = ""
    folder: Path = Path()

    def digest(self) -> str:
        """Hash of everything that decides the run's numbers, but not of where it lies."""
        data = CONVERTER.unstructure(self)
        text = json.dumps(data, sort_keys=True).replace(json.dumps(data.pop("folder"))[1:-1], "")
        return hashlib.sha256(text.encode()).hexdigest()


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a TOML recipe and apply overrides such as `stages.0.steps=20`.

    Raises:
        TrainingError: the file cannot be read, or an override does not fit it.
        AssemblyError: every option that is unknown or of the wrong type.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(
            "the recipe cannot be read", who=str(path), why=str(error), fix="write it as TOML"
        ) from None
    for override in overrides:
        _override(data, override)
    data = _in_folder(data, str(path.parent.resolve()))
    return structure(Recipe, {**data, "folder": path.parent.resolve()}, path.name)


def _in_folder(value: Any, folder: str) -> Any:
    """The same data with `{folder}` in texts replaced by the recipe's folder."""
    if isinstance(value, str):
        return value.replace("{folder}", folder)
    if isinstance(value, list):
        return [_in_folder(v, folder) for v in value]
    return {k: _in_folder(v, folder) for k, v in value.items()} if isinstance(value, dict) else value


def _override(data: dict[str, Any], text: str) -> None:
    key, equals, raw = text.partition("=")
    if not equals:
        raise TrainingError(f"override {text!r} has no '='", fix="write stages.0.steps=20")
    try:
        value = tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        value = raw
    *path, last = key.split(".")
    target: Any = data
    try:
        for step in path:
            target = target[int(step)] if isinstance(target, list) else target.setdefault(step, {})
        if isinstance(target, list):
            target[int(last)] = value
        else:
            target[last] = value
    except (KeyError, IndexError, ValueError, TypeError, AttributeError):
        raise TrainingError(f"override {key!r} names nothing in the recipe", fix="compare it with the file") from None


def rates_of(stage: StageRecipe, own: Mapping[str, float]) -> dict[str, float]:
    """The recipe's learning rates where given, else the stage's own."""
    return dict(stage.rates or own)
