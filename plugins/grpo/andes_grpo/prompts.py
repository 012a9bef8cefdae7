"""Data lines to prompts: messages with their pictures, tensors, and a seed for each answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, cast

from andes_training.data.bad import BadSample
from andes_training.data.pictures import Pictures, augmentation
from andes_training.data.samples import Sample, Samples
from andes_training.packing import patches_in
from andes_training.reading import stage_processor
from attrs import field, frozen

from andes_sdk.errors import AndesError, TrainingError
from andes_sdk.inputs.images import load_image

if TYPE_CHECKING:
    from andes_training.recipe import DataRecipe, StageRecipe

    from andes_sdk.inputs.processor import Processor
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Inputs


@frozen(eq=False)
class Prompt:
    """What is answered `len(seeds)` times.

    Attributes:
        entry: the data line, which rewards see; its `think` is what was asked for, never missing or null.
        messages: with pictures loaded. inputs: as tensors.
        seeds: one per answer. where: `file:line`.
    """

    entry: Mapping[str, Any]
    messages: Sequence[Mapping[str, Any]]
    inputs: Inputs
    seeds: tuple[int, ...]
    where: str


@frozen
class Completion:
    """One answer.

    Attributes:
        tokens: ids, the end token included. logps: their log-probabilities when they were sampled.
        text: what rewards see, a prefilled `<think>` included.
        finished: False if it was cut at the limit.
    """

    tokens: tuple[int, ...]
    logps: tuple[float, ...]
    text: str
    finished: bool


def seed_of(*key: object) -> int:
    """A seed of 63 bits from anything with a fixed `repr`."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


@frozen(eq=False)
class PromptMaker:
    """How a data line becomes a prompt.

    Attributes:
        processor: messages and pictures to tensors. thinking: where a line does not say.
        room: most tokens of prompt and answer together. max_answer: longest answer.
        max_tokens, max_patches: most of a prompt; 0 for no limit.
    """

    processor: Processor
    thinking: bool
    room: int
    max_answer: int
    max_tokens: int = 0
    max_patches: int = 0

    @classmethod
    def of(cls, pipeline: Pipeline, max_answer: int, recipe: StageRecipe | None = None) -> PromptMaker:
        """For a pipeline, with the resolution and the limits of a stage's recipe."""
        processor = pipeline.processor if recipe is None else stage_processor(pipeline, recipe)
        limits = {} if recipe is None else {"max_tokens": recipe.max_tokens, "max_patches": recipe.max_patches}
        thinking = bool(getattr(pipeline.tokenizer, "thinking", False))
        return cls(processor, thinking, pipeline.model.text.max_positions, max_answer, **limits)

    def prompt(self, sample: Sample, seeds: Sequence[int], rng: Random | None = None) -> Prompt:
        """A data line `{"messages": [... user], "think": bool or null, ...}` -> a prompt.

        Args:
            rng: of the changes to pictures that the line's file allows.

        Raises:
            BadSample: no such messages, a `think` that is no truth value or that the model does not have, a picture
                that cannot be read, or no room; with file and line.
        """
        messages = sample.entry.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        if not isinstance(last, Mapping) or last.get("role") != "user":
            fix = 'write {"messages": [..., {"role": "user", ...}], "answer": ...}'
            raise BadSample("is no prompt", who=sample.where, why="messages must end with the user's", fix=fix)
        think = self._thinks(sample)
        augment = augmentation(sample.source, rng or Random(0))
        try:
            placed = Pictures(sample, load_image, augment).fill(cast("list[Any]", messages))
            inputs = self.processor.prepare(placed, think=think)
        except BadSample:
            raise
        except AndesError as error:
            raise BadSample(
                "cannot be used as a prompt", reason="message", who=sample.where, why=str(error), fix=error.fix
            ) from error
        if sample.entry.get("think") and not inputs.prefix:
            why, fix = "the model has no such mode", "use a language model that has"
            raise BadSample("asks to think", reason="think", who=sample.where, why=why, fix=fix)
        self._fits(inputs, sample.where)
        return Prompt({**sample.entry, "think": think}, placed, inputs, tuple(seeds), sample.where)

    def _thinks(self, sample: Sample) -> bool:
        """What the line says; the model's own default where it says nothing, or null."""
        think = sample.entry.get("think")
        if think is None:
            return self.thinking
        if not isinstance(think, bool):
            fix = "write true or false, or leave it out"
            raise BadSample(f"`think` is {repr(think)[:80]}", reason="think", who=sample.where, fix=fix)
        return think

    def _fits(self, inputs: Inputs, where: str) -> None:
        size, patches = len(inputs.ids), patches_in(inputs.media)
        if size + self.max_answer > self.room:
            why = f"prompt and answer need {size + self.max_answer} positions, the model has {self.room}"
            raise BadSample("is too long", reason="tokens", who=where, why=why, fix="lower max_answer, or shorten it")
        if self.max_tokens and size > self.max_tokens:
            why = f"{size} tokens, the stage's max_tokens is {self.max_tokens}"
            raise BadSample("is too long", reason="tokens", who=where, why=why, fix="raise max_tokens, or shorten it")
        if self.max_patches and patches > self.max_patches:
            why = f"{patches} patches, the stage's max_patches is {self.max_patches}"
            raise BadSample("is too large", reason="patches", who=where, why=why, fix="raise max_patches")


@frozen(eq=False)
class Order:
    """The order of a stage's prompts: by (seed, epoch) and the shares of its files, or as the files have them.

    Raises:
        TrainingError: file order where an epoch takes only a part of a file, or `questions`, which has no meaning here.
    """

    samples: Sequence[Sample]
    seed: int
    as_filed: bool = False
    _epochs: dict[int, Sequence[int]] = field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.samples, Samples):
            return
        for source in self.samples.sources:
            if self.as_filed and source.drawn:
                fix = "leave out weight, samples and tokens, or set order = 'shuffle'"
                raise TrainingError("order = 'file' takes whole files", who=str(source.recipe.path), fix=fix)
            if source.recipe.questions:
                raise TrainingError("a prompt is one question", who=str(source.recipe.path), fix="leave out questions")

    def epoch(self, number: int) -> Sequence[int]:
        """Indices of the samples of an epoch."""
        if number not in self._epochs:
            self._epochs.clear()
            self._epochs[number] = self._made(number)
        return self._epochs[number]

    def _made(self, number: int) -> Sequence[int]:
        if self.as_filed:
            return range(len(self.samples))
        if isinstance(self.samples, Samples):
            return self.samples.order(self.seed, number)
        order = list(range(len(self.samples)))
        Random(f"{self.seed}/{number}").shuffle(order)
        return order

    def source(self, index: int) -> DataRecipe:
        """The recipe of a sample's file, whether or not the sample can be read."""
        return self.samples.source_of(index) if isinstance(self.samples, Samples) else self.samples[index].source
