"""Tasks scored while a stage learns, by `andes-evaluation`: on the weights of the moment, with torch's engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import asdict, field, frozen

from andes_sdk.assembling.discovery import extensions, load_extension
from andes_sdk.errors import TrainingError
from andes_sdk.hookspecs import METHODS
from andes_sdk.runtime.engine import Engine
from andes_sdk.runtime.generation import GenerationOptions, generate_batch
from andes_sdk.runtime.torch_backend import CompiledTorch
from andes_training.data.fingerprint import fingerprint

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.runtime.generation import Answer
    from andes_training.recipe import EvalRecipe
    from andes_training.run import StageRun

ROWS = (".jsonl", ".tsv", ".parquet")


@frozen(eq=False)
class Learning:
    """A pipeline whose answers are those of the weights that learn; all else is the pipeline's own."""

    pipeline: Pipeline

    def engine(self) -> Engine:
        """An engine on the model as it is now; nothing is kept of earlier weights."""
        pipe = self.pipeline
        compiled = CompiledTorch(pipe.model, taps=tuple(sorted({*pipe.policy.taps, *pipe.decoder.taps})))
        ends = frozenset((pipe.tokenizer.eos, pipe.tokenizer.pad))
        return Engine(compiled, pipe.policy, pipe.decoder, ends, pipe.model.text.max_positions)

    def generate_batch(
        self,
        conversations: Sequence[Any],
        options: GenerationOptions | Sequence[GenerationOptions] | None = None,
        *,
        allow_remote: bool = False,
    ) -> list[Answer]:
        """As `Pipeline.generate_batch`."""
        runs: Any = self
        return generate_batch(runs, conversations, options or GenerationOptions(), allow_remote=allow_remote)

    def generate(self, messages: Any, options: GenerationOptions | None = None, **more: Any) -> Answer:
        """As `Pipeline.generate`."""
        return self.generate_batch([messages], options, **more)[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)


@frozen(eq=False)
class Evaluation:
    """The tasks of one stage.

    Attributes:
        folder: of the recipe, which data is relative to. evaluate: what `andes-evaluation` adds to pipelines.
    """

    run: StageRun
    folder: Path
    evaluate: Any = field(init=False)

    @evaluate.default
    def _installed(self) -> Any:
        if "evaluate" not in extensions(METHODS):
            what = "scoring tasks while a stage learns needs andes-evaluation"
            raise TrainingError(what, who=self.run.recipe.stage, fix="pip install andes-evaluation, or leave out eval")
        return load_extension(METHODS, "evaluate")

    def due(self, step: int) -> bool:
        """Whether a step is followed by an evaluation."""
        recipe = self.run.recipe
        return step % (recipe.eval_every or recipe.checkpoint_every) == 0 or step == recipe.steps

    def figures(self, limit: int = 0) -> dict[str, float]:
        """Main figure of each task, as `eval/<task>`. Every process calls this; the first one asks the model.

        Args:
            limit: of how many items instead of what the recipe says; 0 for that.

        Raises:
            As `pipe.evaluate`.
        """
        self.run.gather()
        if self.run.rank:
            return {}
        with torch.inference_mode(), evaluation_mode(self.run.pipeline.model):
            return {f"eval/{one.task}": self._main(one, limit) for one in self.run.recipe.eval}

    def _main(self, one: EvalRecipe, limit: int) -> float:
        given: dict[str, Any] = {"data": self.folder / one.data} if one.data else {}
        given |= {"max_tokens": one.max_tokens} if one.max_tokens else {}
        given |= {"together": one.together} if one.data else {}
        found: dict[str, float] = self.evaluate(
            Learning(self.run.pipeline), one.task, limit or one.limit or None, **given
        )
        return float(next(iter(found.values())))


def task_hash(one: EvalRecipe, folder: Path) -> str:
    """A hash of what a task's figures are compared on: its settings, and its file or the files of rows in its folder.

    Pictures and folders within it are not read.
    """
    place = folder / one.data
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    files = [path for path in files if path.suffix in ROWS and path.is_file()] if one.data else []
    facts = [asdict(one), [[path.name, fingerprint(path)] for path in files]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """A model in evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
