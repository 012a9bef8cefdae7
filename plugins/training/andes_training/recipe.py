"""A recipe: what to train, with which stages, on which data. Read from TOML, with dotted overrides."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import Attribute, field, frozen
from attrs.validators import deep_iterable, ge, gt, in_, le, lt, min_len

from andes_sdk.config import CONVERTER, read_config, structure
from andes_sdk.errors import TrainingError
from andes_sdk.files import regular
from andes_sdk.reading import parse_toml, value_of

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline

NAME = re.compile(r"[^\W_][\w.-]{0,99}")
"""What becomes the name of a file or folder: no path, nothing hidden."""


def _name(_: object, attribute: Attribute[str], value: str) -> None:
    if value and not NAME.fullmatch(value):
        raise ValueError(f"{attribute.name} is {value!r}: write letters, digits, '.', '_' and '-', a letter first")


def _rates(_: object, attribute: Attribute[Mapping[str, float]], value: Mapping[str, float]) -> None:
    for prefix, rate in value.items():
        if not 0 <= rate < math.inf:
            raise ValueError(f"{attribute.name}: the rate of {prefix!r} is {rate}, not a number from 0 (frozen) up")


@frozen(kw_only=True)
class DataRecipe:
    """One data file of a stage, or several of one kind.

    Attributes:
        path: a file (`.jsonl`, `.parquet`, `.tar`), a folder of shards or a pattern; relative to the recipe.
        flip: mirror pictures left to right at random (only where the answer does not depend on it).
        shift, rotate: move pictures at random by up to this share of their sides, turn them by up to this many
            degrees; what comes into view is black.
        questions: at most this many conversations of a sample per epoch, chosen at random; 0 for all.
        repeat: how often an epoch shows each sample.
        weight: share of the mixture, against the weights of the stage's other files; 0 for every sample.
        samples, tokens: what an epoch takes from this file instead: so many samples, or about so many tokens (pictures
            included, by the mean of a few samples).
        on_error: what to do with a sample that cannot be used: 'fail', or 'skip' and count it.
        max_errors: more skipped samples of this file than this stop the run.
    """

    path: Path
    flip: bool = False
    shift: float = field(default=0.0, validator=[ge(0.0), lt(1.0)])
    rotate: float = field(default=0.0, validator=[ge(0.0), le(180.0)])
    questions: int = field(default=0, validator=ge(0))
    repeat: int = field(default=1, validator=ge(1))
    weight: float = field(default=0.0, validator=[ge(0.0), lt(math.inf)])
    samples: int = field(default=0, validator=ge(0))
    tokens: int = field(default=0, validator=ge(0))
    on_error: str = field(default="fail", validator=in_(("fail", "skip")))
    max_errors: int = field(default=1000, validator=ge(0))


_CHANGING: Mapping[str, Any] = {
    "flip": False, "shift": 0.0, "rotate": 0.0, "questions": 0, "repeat": 1, "weight": 0.0, "tokens": 0,
}  # fmt: skip
"""Options of a data file that validation, which must compare like with like, cannot honour -> what leaves them out."""


@frozen(kw_only=True)
class EvalRecipe:
    """A task that is scored while a stage learns, by `andes-evaluation`.

    Attributes:
        task: name of a task, or of a benchmark that a plugin of the pipeline brings.
        data: file or folder with the task's data, relative to the recipe; a benchmark brings its own.
        limit: of how many items, the first ones; 0 for all.
        max_tokens: longest answer; 0 leaves the task's. together: items that are decoded together.
    """

    task: str = field(validator=_name)
    data: str = ""
    limit: int = field(default=0, validator=ge(0))
    max_tokens: int = field(default=0, validator=ge(0))
    together: int = field(default=8, validator=ge(1))


@frozen(kw_only=True)
class LoraRecipe:
    """Low-rank adapters of a stage, through peft (LoRA, arXiv 2106.09685).

    Attributes:
        rank, alpha, dropout: as in the paper; the update is scaled by alpha / rank.
        rate: learning rate of A and B. Beside them only what the recipe's own `rates` names learns.
        targets: kinds of module that get an adapter: 'attention' and 'mlp' of the language model, 'vision' for the
            encoder's matrices, 'projector'.
        merge: write the adapter into the weights at the stage's end; otherwise the weights stay as they were.
        name: of the adapter's folder, `adapters/<name>`; empty for the stage's name. No two stages of a recipe have the
            same, unless the later one says `chain`.
        chain: go on with the adapter that an earlier stage of the recipe left under this name.
    """

    rank: int = field(default=16, validator=ge(1))
    alpha: int = field(default=32, validator=ge(1))
    dropout: float = field(default=0.0, validator=[ge(0.0), lt(1.0)])
    rate: float = field(default=2e-4, validator=[gt(0.0), lt(math.inf)])
    targets: list[str] = field(
        factory=lambda: ["attention", "mlp"],
        validator=[min_len(1), deep_iterable(in_(("attention", "mlp", "vision", "projector")))],
    )
    merge: bool = False
    name: str = field(default="", validator=_name)
    chain: bool = False


@frozen(kw_only=True)
class StageRecipe:
    """One stage of a recipe.

    Attributes:
        stage: name of a training stage that a plugin of the pipeline brings.
        steps: optimizer steps.
        epochs: instead of `steps`: how often the data is gone through. The schedule then follows the data's progress.
        warmup: steps of linear warm-up.
        schedule: shape after the warm-up: 'cosine', 'linear', 'constant', or 'wsd' (warm-up, stable, decay:
            MiniCPM, arXiv 2404.06395; the decay is 1 - sqrt, arXiv 2405.18392, figure 5).
        decay: steps of the decay of 'wsd'; 0 for a tenth of all.
        horizon: step at which the schedule would end; 0 for `steps`. A later one stops the stage before its decay.
        floor: share of the learning rate left at the end.
        rates: module prefix -> learning rate, instead of the stage's own.
        max_tokens, max_patches: budget of one pack; a sample that is larger cannot be used.
        image: options of the preprocessor for this stage, over those of the pipeline (max_size, min_size …).
        workers: threads that read and prepare samples; no number of them changes the batches.
        accumulate: packs per optimizer step, over all processes; their loss is one mean over all supervised tokens.
        clip: largest gradient norm.
        ema: decay of an exponential moving average of what trains; 0 for none.
        ema_export: 'replace' ends the stage with the averaged weights; 'beside' keeps the last ones and writes the
            averaged ones to `ema-<stage number>`.
        recompute: compute activations of each layer again in the backward pass: less memory, more time.
        lora: train low-rank adapters instead of the weights.
        checkpoint_every, log_every: steps.
        validation: data that is not learnt from; its mean loss is told as `validation_loss`. Of a file's options
            `path`, `samples` (at most so many, the same each time), `on_error` and `max_errors` hold for it.
        validate_every: steps between two validations; 0 for `checkpoint_every`.
        eval: tasks that are scored on data that is not learnt from; their main figures are told as `eval/<task>`.
        eval_every: steps between two scorings; 0 for `checkpoint_every`.
        best: the figure whose best state is kept beside the newest ones; empty for the validation's loss, or without a
            validation for the first task's.
        patience: end the stage, with the best state, once so many looks in a row were not better; 0 for never.
    """

    stage: str = field(validator=_name)
    data: list[DataRecipe]
    steps: int = field(default=0, validator=ge(0))
    epochs: int = field(default=0, validator=ge(0))
    warmup: int = field(default=0, validator=ge(0))
    schedule: str = field(default="cosine", validator=in_(("cosine", "linear", "constant", "wsd")))
    decay: int = field(default=0, validator=ge(0))
    horizon: int = field(default=0, validator=ge(0))
    floor: float = field(default=0.0, validator=[ge(0.0), le(1.0)])
    rates: dict[str, float] = field(factory=dict, validator=_rates)
    max_tokens: int = field(default=4096, validator=ge(1))
    max_patches: int = field(default=4096, validator=ge(1))
    image: dict[str, object] = field(factory=dict)
    workers: int = field(default=1, validator=ge(1))
    accumulate: int = field(default=1, validator=ge(1))
    clip: float = field(default=1.0, validator=gt(0.0))
    weight_decay: float = field(default=0.05, validator=[ge(0.0), lt(math.inf)])
    ema: float = field(default=0.0, validator=[ge(0.0), lt(1.0)])
    ema_export: str = field(default="replace", validator=in_(("replace", "beside")))
    recompute: bool = False
    lora: LoraRecipe | None = None
    checkpoint_every: int = field(default=200, validator=ge(1))
    log_every: int = field(default=10, validator=ge(1))
    validation: list[DataRecipe] = field(factory=list)
    validate_every: int = field(default=0, validator=ge(0))
    eval: list[EvalRecipe] = field(factory=list)
    eval_every: int = field(default=0, validator=ge(0))
    best: str = ""
    patience: int = field(default=0, validator=ge(0))

    def __attrs_post_init__(self) -> None:
        if bool(self.steps) == bool(self.epochs):
            raise ValueError("steps or epochs: give one of them, at least 1")
        if self.epochs and (self.decay or self.horizon):
            raise ValueError("decay and horizon are numbers of steps: give steps, not epochs")
        if self.horizon and self.horizon < self.steps:
            raise ValueError(f"a horizon of {self.horizon} lies before the last of {self.steps} steps")
        if self.steps and self.warmup > (end := self.horizon or self.steps):
            raise ValueError(f"a warmup of {self.warmup} steps does not end within {end}: lower it")
        if self.validate_every and not self.validation:
            raise ValueError("validate_every needs data: give validation")
        for source in self.validation:
            if given := [n for n, idle in _CHANGING.items() if getattr(source, n) != idle]:
                raise ValueError(
                    f"validation shows each sample of {source.path} once, as it is: leave out {', '.join(given)}"
                )
        if self.eval_every and not self.eval:
            raise ValueError("eval_every needs tasks: give eval")
        if len({*self.figures}) < len(self.figures):
            raise ValueError("eval names a task twice: its figures have one name")
        if self.best and self.best not in self.figures:
            raise ValueError(f"best is {self.best!r}: this stage has {', '.join(self.figures) or 'no such figures'}")
        if self.patience and not self.figures:
            raise ValueError("patience needs a figure: give validation or eval")
        if self.decay and self.schedule != "wsd":
            raise ValueError(f"decay belongs to the schedule 'wsd', not to {self.schedule!r}")
        if self.decay and self.decay > (self.horizon or self.steps) - self.warmup:
            raise ValueError(f"a decay of {self.decay} steps does not fit after {self.warmup} of warm-up")

    def scale(self, step: int, progress: float = 0.0) -> float:
        """Learning-rate factor at a step, counted from 0; `progress` is the share of `epochs` done before it."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        end = self.horizon or self.steps
        if self.schedule == "wsd":
            decay = self.decay or max(1, end // 10)
            late = (step - (end - decay)) / decay if end else 10 * progress - 9
            shape = 1 - math.sqrt(min(1.0, max(0.0, late)))
        else:
            done = min(1.0, (step - self.warmup) / max(1, end - self.warmup) if end else progress)
            shape = 0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1 - done
        return self.floor + (1 - self.floor) * shape

    @property
    def figures(self) -> list[str]:
        """Figures on data that is not learnt from, the one that is watched first unless `best` says otherwise."""
        return [*(["validation_loss"] if self.validation else []), *(f"eval/{one.task}" for one in self.eval)]

    @property
    def watched(self) -> str:
        """The figure whose best state is kept."""
        return self.best or self.figures[0]

    @property
    def changes_weights(self) -> bool:
        """Whether anything but an adapter beside the weights learns."""
        return self.lora is None or self.lora.merge or any(rate > 0 for rate in self.rates.values())

    @property
    def adapter(self) -> str:
        """Where the adapter is saved, relative to the run's folder; empty without one."""
        return "" if self.lora is None else f"adapters/{self.lora.name or self.stage}"


@frozen(kw_only=True)
class Recipe:
    """A whole training run.

    Attributes:
        pipeline: arguments of `Pipeline.from_plugins` (plugins, image, seed …); `{folder}` in a text is the recipe's.
            With `start`, what it adds to the checkpoint or changes of it; see `open_pipeline`.
        stages: run one after another on the same weights.
        precision: 'no' (float32) or 'bf16' autocast.
        threads: CPU threads for torch; 0 leaves torch's choice.
        start: checkpoint folder to start from, or owner/name on the Hub; empty for random weights.
        sharding: with several processes, 'none' keeps weights and optimizer whole in each (DDP), 'full' divides them
            (FSDP2). Decides where numbers lie, so a run may go on with another choice.
        timeout: seconds after which a process gives up waiting for the others.
        keep_states: how many of the newest states stay.
    """

    name: str
    stages: list[StageRecipe] = field(validator=min_len(1))
    pipeline: dict[str, object] = field(factory=dict)
    seed: int = 0
    precision: str = field(default="no", validator=in_(("no", "bf16")))
    threads: int = field(default=0, validator=ge(0))
    start: str = ""
    sharding: str = field(default="none", validator=in_(("none", "full")))
    timeout: float = field(default=1800.0, validator=gt(0.0))
    keep_states: int = field(default=2, validator=ge(1))
    folder: Path = Path()

    def __attrs_post_init__(self) -> None:
        known: dict[str, LoraRecipe] = {}
        for stage in self.stages:
            if stage.lora is None:
                continue
            if not NAME.fullmatch(name := stage.lora.name or stage.stage):
                raise ValueError(f"the stage's name {name!r} cannot be an adapter's: give lora.name")
            before = known.get(name)
            if before is not None and not stage.lora.chain:
                raise ValueError(f"two stages save adapters as {name!r}: give lora.name, or lora.chain = true to go on")
            if stage.lora.chain and (before is None or not _alike(before, stage.lora)):
                raise ValueError(f"lora.chain needs an earlier adapter {name!r} of the same matrices, not merged")
            known[name] = stage.lora

    def facts(self) -> dict[str, Any]:
        """Everything that decides the run's numbers, as plain data, but not where it lies or on how many processes."""
        data = CONVERTER.unstructure(self)
        for key in ("sharding", "timeout", "keep_states"):
            del data[key]
        for stage in data["stages"]:
            for key in (
                "workers",
                "checkpoint_every",
                "log_every",
                "validation",
                "validate_every",
                "eval",
                "eval_every",
                "best",
                "patience",
            ):
                del stage[key]
            for source in stage["data"]:  # a run that met a bad sample may go on and skip it
                del source["on_error"], source["max_errors"]
        folder = data.pop("folder")
        found: dict[str, Any] = data if folder == "." else _replaced(data, folder, "")
        return found

    def digest(self) -> str:
        """Hash of `facts`."""
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()


def _alike(one: LoraRecipe, other: LoraRecipe) -> bool:
    """Whether the matrices of one adapter fit the other."""
    parts = [(r.rank, r.alpha, sorted(r.targets)) for r in (one, other)]
    return parts[0] == parts[1] and not one.merge


def differences(one: Any, other: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Places at which two pieces of plain data differ, such as `stages.0.clip`, with both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(key, one.get(key), other.get(key)) for key in {**one, **other}]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(str(i), *both) for i, both in enumerate(zip(one, other, strict=True))]
    else:
        if one != other or type(one) is not type(other):
            yield place, one, other
        return
    for key, a, b in pairs:
        yield from differences(a, b, f"{place}.{key}" if place else str(key))


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a TOML recipe and apply overrides such as `stages.0.steps=20`.

    Raises:
        TrainingError: the file cannot be read, or an override does not fit it.
        AssemblyError: every option that is unknown or of the wrong type.
    """
    data = read_recipe(path)
    for override in overrides:
        _override(data, override)
    data = _replaced(data, "{folder}", str(path.parent.resolve()))
    return structure(Recipe, {**data, "folder": path.parent.resolve()}, path.name)


def open_pipeline(recipe: Recipe) -> Pipeline:
    """The pipeline of a recipe: the one that `start` was saved with and what `pipeline` adds, or that of `pipeline`.

    Raises:
        AssemblyError, CheckpointError: as `Pipeline.from_pretrained` and `from_plugins`. TrainingError: weights are
        named twice, or plugins not at all.
    """
    from andes_sdk.pipeline import Pipeline

    given = dict(recipe.pipeline)
    if not recipe.start:
        if "plugins" not in given:
            fix = 'write [pipeline] plugins = [...], or start = "CHECKPOINT"'
            raise TrainingError("names no plugins", who=recipe.name, why="it has no `start` either", fix=fix)
        return Pipeline.from_config(given)
    known = read_config({"plugins": [], **given})
    if known.pop("weights") is not None:
        raise TrainingError(
            "names weights twice", who=recipe.name, why="both start and pipeline.weights", fix="keep `start`"
        )
    plugins = known["plugins"]
    given = {key: value for key, value in known.items() if key in given}
    return Pipeline.from_pretrained(_start(recipe), **{**given, "plugins": plugins})


def _start(recipe: Recipe) -> Path | str:
    """A path, relative to the recipe as its data files are, or a name on the Hub."""
    path = recipe.folder / recipe.start
    named = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?", recipe.start)
    return recipe.start if named and not os.path.exists(path) else path


def check_start(recipe: Recipe, pipeline: Pipeline) -> None:
    """Refuse a pipeline that does not hold the weights that the recipe starts from.

    Raises:
        TrainingError: it holds others.
    """
    if not recipe.start:
        return
    start, there = _start(recipe), pipeline.weights
    if there is None or (isinstance(start, Path) and there.resolve() != start.resolve()):
        why = f"the pipeline's are {'random' if there is None else f'from {there}'}"
        fix = "make it with andes_training.recipe.open_pipeline(recipe)"
        raise TrainingError(f"starts from {start}", who=recipe.name, why=why, fix=fix)


def read_recipe(path: Path) -> dict[str, Any]:
    """A TOML file as plain data.

    Raises:
        TrainingError: it cannot be read.
    """
    try:
        return parse_toml(regular(path).read_bytes())
    except (OSError, ValueError) as error:
        fix = "write it as TOML"
        raise TrainingError("the recipe cannot be read", who=str(path), why=str(error), fix=fix) from None


def _replaced(value: Any, text: str, by: str) -> Any:
    """The same plain data with a text replaced wherever it stands."""
    if isinstance(value, str):
        return value.replace(text, by)
    if isinstance(value, list):
        return [_replaced(v, text, by) for v in value]
    return {k: _replaced(v, text, by) for k, v in value.items()} if isinstance(value, dict) else value


def _override(data: dict[str, Any], text: str) -> None:
    key, equals, raw = text.partition("=")
    if not equals:
        raise TrainingError(f"override {text!r} has no '='", fix="write stages.0.steps=20")
    value = value_of(raw)
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
