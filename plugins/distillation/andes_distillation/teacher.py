"""The teacher: another model, frozen, that reads the same packs as the student."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from andes_sdk.errors import AndesError, AssemblyError, TrainingError
from andes_sdk.numbers import weights_of
from andes_sdk.types import Turn

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Model, TextSpec, Tokenizer

PROBE = "The quick brown fox: 12,345.67 naïve café! 中文 русский 🙂\n\tdef f(x): return x**2  # <|im_end|>"
"""A text that other merges, or another way to split, would cut elsewhere."""


def open_teacher(source: str, student: Model) -> tuple[Pipeline, TextSpec]:
    """A teacher that a student can learn from, and its sizes; its weights are not read yet.

    Raises:
        TrainingError: none is named, it cannot be opened, or it reads other tokens or pictures than the student.
    """
    from andes_sdk.pipeline import Pipeline

    if not source:
        fix = 'give the option `teacher` a folder, a file or a name: { distillation = { teacher = "model" } }'
        raise TrainingError("no teacher is named", who="distillation.teacher", fix=fix)
    try:
        pipeline = Pipeline.from_pretrained(source, backend="torch")
        model = pipeline.meta_model()
    except (AndesError, AssemblyError) as error:
        why = " ".join(str(error).split())
        fix = "name a folder, a file or an installed model; a path is relative to where the command runs"
        raise TrainingError("the teacher cannot be opened", who=source, why=why, fix=fix) from None
    if why := difference(model, student):
        fix = "take a teacher of the same family, or give the student the teacher's tokenizer"
        raise TrainingError("the teacher does not fit the student", who=source, why=why, fix=fix)
    return pipeline, model.text


def difference(teacher: Model, student: Model) -> str:
    """What a teacher reads or says otherwise than a student, the first thing that differs; "" if it fits."""
    one, two = teacher.tokenizer, student.tokenizer
    for name in ("vocab_size", "eos", "pad"):
        ours, theirs = getattr(two, name), getattr(one, name)
        if ours != theirs:
            return f"its tokenizer's {name} is {theirs}, the student's {ours}"
    if missing := [kind for kind in student.kinds if kind not in teacher.kinds]:
        return f"it has no modality {missing[0]!r}, which the student has"
    for kind in student.kinds:
        if one.placeholder(kind) != two.placeholder(kind):
            return f"its placeholder of {kind} is id {one.placeholder(kind)}, the student's {two.placeholder(kind)}"
    if why := _texts(one, two):
        return why
    if teacher.text.vocab_size != student.text.vocab_size:
        return f"it gives {teacher.text.vocab_size} logits, the student {student.text.vocab_size}"
    for name in ("patch_size", "merge", "mean", "std"):
        ours, theirs = getattr(student.vision, name), getattr(teacher.vision, name)
        if ours != theirs:
            return f"its encoder's {name} is {theirs}, the student's {ours}"
    return ""


def _texts(one: Tokenizer, two: Tokenizer) -> str:
    """How two vocabularies of one size differ."""
    for number in range(one.vocab_size):
        if one.decode([number]) != two.decode([number]):
            return f"its token {number} is {one.decode([number])!r}, the student's {two.decode([number])!r}"
    if one.encode(PROBE) != two.encode(PROBE):
        return "its tokenizer cuts texts elsewhere (other merges)"
    turns = [Turn("system", ("s",)), Turn("user", ("a",)), Turn("assistant", ("b",)), Turn("user", ("c",))]
    for think in (False, True):
        if one.render(turns, think=think, generate=False) != two.render(turns, think=think, generate=False):
            return "its chat template writes conversations otherwise"
    return ""


def frozen_model(pipeline: Pipeline, device: torch.device) -> VisionLanguageModel:
    """The teacher's model with its weights, for evaluation only."""
    return pipeline.model.to(device).eval().requires_grad_(False)


def mark_of(model: VisionLanguageModel) -> Tensor:
    """(32,) uint8: names the numbers that a teacher computes with."""
    name = model.numbers or weights_of(model)
    return torch.tensor(list(hashlib.sha256(name.encode()).digest()), dtype=torch.uint8)
